"""From lifetimes to what the program asks of an allocator: one stream of allocations and frees per training step."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.memory.events import EventStream
from peakline.memory.lifetimes import Program
from peakline.models.graph import Operator
from peakline.models.kernels import Convolution, Gemm, GroupedGemm
from peakline.models.operators import Node, operator_type

__all__ = ["RequestStream", "request_streams"]


@dataclass(frozen=True)
class RequestStream:
    """The allocator's view of one step.

    Attributes:
        events: allocations and frees.
        step_of_event: number of the program's step during which each event happens; −1 before the first.
        storage_of_block: number of the program's storage in each block; −1 for a workspace.
        operator_of_block: operator that asked for each block (None: before the first).
    """

    events: EventStream
    step_of_event: list[int]
    storage_of_block: list[int]
    operator_of_block: list[Operator | None]


def request_streams(program: Program, *, repetitions: int, library_workspace: int = 0) -> list[RequestStream]:
    """Streams of `repetitions` steps run one after the other by the same process.

    The first one allocates parameters, buffers, inputs and caches; optimizer states appear at the first optimizer
    operator, as PyTorch creates them lazily. `library_workspace` bytes are allocated once by the first matrix product
    of the forward thread and once by the first of the autograd thread (cuBLAS: one workspace per handle and stream,
    `at::cuda::getCurrentCUDABlasHandle`; handles are per thread), and stay.
    """
    return [_stream(program, first=i == 0, library_workspace=library_workspace) for i in range(repetitions)]


def _creation_order(program: Program) -> list[int]:
    """Resident storages as a process creates them: module by module, layer by layer; optimizer states last."""
    first: dict[str, int] = {}
    for position, tensor in enumerate(program.graph.tensors.values()):
        if tensor.family:
            first.setdefault(tensor.family, position)
    position_of = {name: i for i, name in enumerate(program.graph.tensors)}

    def order(key: int) -> tuple[int, int, int, int]:
        tensor, layer = program.storages[key].tensor, program.storages[key].layer
        name = tensor.name
        if tensor.role == "optimizer_state":
            name = name.rsplit(".", 1)[0]
        position = position_of.get(name, position_of[tensor.name])
        return (first.get(tensor.family or "", position), layer, position, position_of[tensor.name])

    return sorted(program.resident, key=order)


def _uses_library(program: Program) -> set[int]:
    """`id` of the operators that run a matrix product of the vendor's library."""
    families = program.graph.families
    found = set()
    for _, operator in program.graph.operators():
        kernels = operator_type(operator.type).kernels(Node.of(program.graph, operator, families))
        if any(isinstance(k, Gemm | GroupedGemm) for k in kernels) and not any(
            isinstance(k, Convolution) for k in kernels
        ):
            found.add(id(operator))
    return found


def _stream(program: Program, *, first: bool, library_workspace: int) -> RequestStream:
    sizes = program.sizes
    storages = program.storages
    workspaces = program.workspaces
    dying = program.dying
    library = _uses_library(program) if library_workspace else set()

    ops: list[int] = []
    block_bytes: list[int] = []
    keys: list[object] = []
    storage_of_block: list[int] = []
    owners: list[Operator | None] = []
    step_of_event: list[int] = []
    block_of: dict[int, int] = {}

    def new(key: object, size: int, storage: int, operator: Operator | None) -> int:
        number = len(block_bytes)
        block_bytes.append(size)
        keys.append(key)
        storage_of_block.append(storage)
        owners.append(operator)
        return number

    created = _creation_order(program)
    states = [k for k in created if storages[k].tensor.role == "optimizer_state"]
    others = [k for k in created if storages[k].tensor.role != "optimizer_state"]
    threads = [t for t, uses in _threads(program, library).items() if uses]
    for key in others:
        block_of[key] = new(key, int(sizes[key]), key, None)
    if first:
        ops.extend(range(len(block_bytes)))
        step_of_event.extend([-1] * len(block_bytes))
    else:
        for key in states:
            block_of[key] = new(key, int(sizes[key]), key, None)
        for thread in threads:
            new(("library workspace", thread), library_workspace, -1, None)
    inherited = 0 if first else len(block_bytes)

    pending_states = states if first else []
    seen_threads = set() if first else set(threads)
    for position, step in enumerate(program.steps):
        operator = step.operator
        if pending_states and operator.phase == "optimizer":
            for key in pending_states:
                block_of[key] = new(key, int(sizes[key]), key, operator)
                ops.append(block_of[key])
            pending_states = []
        if id(operator) in library:
            thread = _thread(operator)
            if thread not in seen_threads:
                seen_threads.add(thread)
                ops.append(new(("library workspace", thread), library_workspace, -1, operator))
        for key in step.makes:
            block = block_of[key] = new(key, int(sizes[key]), key, operator)
            ops.append(block)
        inside = workspaces.get(id(operator))
        if inside:
            blocks = [new(("workspace", position, i), int(size), -1, operator) for i, size in enumerate(inside) if size]
            ops.extend(blocks)
            ops.extend([~b for b in blocks])
        for key in dying[position]:
            ops.append(~block_of[key])
        step_of_event.extend([position] * (len(ops) - len(step_of_event)))
    events = EventStream(ops=ops, sizes=block_bytes, streams=[0] * len(block_bytes), keys=keys, inherited=inherited)  # type: ignore[arg-type]
    return RequestStream(events, step_of_event, storage_of_block, owners)


def _thread(operator: Operator) -> str:
    return "autograd" if operator.phase in ("backward", "recompute") else "main"


def _threads(program: Program, library: set[int]) -> dict[str, bool]:
    uses = {"main": False, "autograd": False}
    for _, operator in program.graph.operators():
        if id(operator) in library:
            uses[_thread(operator)] = True
    return uses
