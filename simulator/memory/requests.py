"""From lifetimes to what the program asks of an allocator: one stream of allocations and frees per training step.

The order of requests is the same for every configuration of a sweep and for every step: it is written down once, as
a *script* over keys, and turned into a stream of numbered blocks with the sizes at hand.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peakline.memory.events import EventStream
from peakline.memory.lifetimes import Program
from peakline.models.graph import Operator
from peakline.models.kernels import Convolution, Gemm, GroupedGemm
from peakline.models.operators import Node, operator_type

__all__ = ["RequestStream", "Script", "request_streams", "script"]

Int64 = NDArray[np.int64]

_THREADS = ("main", "autograd")


@dataclass(frozen=True)
class RequestStream:
    """The allocator's view of one step.

    Attributes:
        events: allocations and frees; a block's key is its storage's number, or a larger one for a workspace.
        step_of_event: number of the program's step during which each event happens; −1 before the first.
        program: the program whose storages and steps are numbered.
    """

    events: EventStream
    step_of_event: Int64
    program: Program

    @cached_property
    def storage_of_block(self) -> list[int]:
        """Number of the program's storage in each block; −1 for a workspace."""
        storages = len(self.program.storages)
        return [key if key < storages else -1 for key in self.events.keys]  # type: ignore[operator, misc]

    @cached_property
    def operator_of_block(self) -> list[Operator | None]:
        """Operator that asked for each block; None: before the first."""
        owners: list[Operator | None] = [None] * len(self.events.sizes)
        for op, step in zip(self.events.ops, self.step_of_event.tolist()):
            if op >= 0 and step >= 0:
                owners[op] = self.program.steps[step].operator
        return owners


@dataclass(frozen=True)
class Script:
    """What a step requests, over keys: storages by number, then one key per workspace block, then the libraries'.

    Attributes:
        codes: `key` allocates, `~key` frees.
        steps: number of the step during which each happens.
        before: keys that exist before the first step, in order of creation; without optimizer states.
        previous: keys that a later step finds, freed within it → keys of the step before whose blocks they are.
        states: optimizer states, in order of creation.
        first_update: place in `codes` where the first optimizer operator begins.
        workspaces: (id of the operator, index of the block) of each workspace key.
        libraries: (thread, place in `codes`) of the first matrix product of each thread.
    """

    codes: Int64
    steps: Int64
    before: list[int]
    states: list[int]
    first_update: int
    workspaces: list[tuple[int, int]]
    libraries: list[tuple[str, int]]
    previous: dict[int, int] = field(default_factory=dict)


def script(program: Program) -> Script:
    """Write down the order of a program's requests."""
    storages = len(program.storages)
    workspaces: list[tuple[int, int]] = []
    library = _uses_library(program)
    places: dict[str, int] = {}
    codes: list[int] = []
    steps: list[int] = []
    first_update = -1
    for position, (step, dying) in enumerate(zip(program.steps, program.dying)):
        operator = step.operator
        if first_update < 0 and operator.phase == "optimizer":
            first_update = len(codes)
        if operator.type in library:
            places.setdefault(_thread(operator), len(codes))
        codes.extend(step.makes)
        inside = program.workspaces.get(id(operator))
        if inside:
            keys = range(storages + len(workspaces), storages + len(workspaces) + len(inside))
            workspaces.extend([(id(operator), i) for i in range(len(inside))])
            codes.extend(keys)
            codes.extend([~key for key in keys])
        codes.extend([~key for key in dying])
        steps.extend([position] * (len(codes) - len(steps)))
    created = _creation_order(program)
    is_state = [program.storages[key].tensor.role == "optimizer_state" for key in created]
    return Script(
        np.asarray(codes, dtype=np.int64),
        np.asarray(steps, dtype=np.int64),
        [key for key, state in zip(created, is_state) if not state],
        [key for key, state in zip(created, is_state) if state],
        first_update if first_update >= 0 else len(codes),
        workspaces,
        [(thread, places[thread]) for thread in _THREADS if thread in places],
        program.previous,
    )


def request_streams(
    program: Program, *, repetitions: int, library_workspace: int = 0, written: Script | None = None
) -> list[RequestStream]:
    """Streams of `repetitions` steps run one after the other by the same process.

    The first one allocates parameters, buffers, inputs and caches, and finds nothing of a step before (what
    `Graph.previous` says a step leaves); optimizer states appear at the first optimizer operator, as PyTorch creates
    them lazily. `library_workspace` bytes are allocated once by the first matrix product
    of the forward thread and once by the first of the autograd thread (cuBLAS: one workspace per handle and stream,
    `at::cuda::getCurrentCUDABlasHandle`; handles are per thread), and stay. A tensor without elements asks for nothing.

    Args:
        written: the program's `script`, if at hand.
    """
    order = written or script(program)
    libraries = order.libraries if library_workspace else []
    size_of = np.asarray(
        [
            *map(int, program.sizes),
            *(int(program.workspaces[operator][i]) for operator, i in order.workspaces),
            *(library_workspace for _ in libraries),
        ],
        dtype=np.int64,
    )
    keys = range(len(size_of) - len(libraries), len(size_of))
    return [_stream(program, order, size_of, [*zip(libraries, keys)], first=i == 0) for i in range(repetitions)]


def _stream(
    program: Program, order: Script, size_of: Int64, libraries: list[tuple[tuple[str, int], int]], *, first: bool
) -> RequestStream:
    """Number the blocks of a step: the first step's, or a later one's on top of what the first left."""
    codes, steps = order.codes, order.steps
    before = np.asarray(order.before, dtype=np.int64)
    old, new = (np.asarray([*keys], dtype=np.int64) for keys in (order.previous, order.previous.values()))
    exists = size_of > 0
    if first:
        exists[old] = False
        places = [order.first_update] * len(order.states) + [place for (_, place), _ in libraries]
        late = np.asarray([*order.states, *(key for _, key in libraries)], dtype=np.int64)
        step_at = np.append(steps, steps[-1:])
        codes = np.concatenate([before, np.insert(codes, places, late)])
        steps = np.concatenate([np.full(len(before), -1), np.insert(steps, places, step_at[places])])
        inherited = np.empty(0, dtype=np.int64)
    else:
        inherited = np.concatenate([before, order.states, [key for _, key in libraries], new]).astype(np.int64)
        inherited = inherited[exists[inherited]]
    key_of = np.where(codes >= 0, codes, ~codes)
    asked = exists[key_of]
    codes, steps, key_of = codes[asked], steps[asked], key_of[asked]
    made = np.concatenate([inherited, codes[codes >= 0]])
    block_of = np.zeros(len(size_of), dtype=np.int64)
    block_of[inherited] = np.arange(len(inherited))
    block_of[old] = block_of[new]  # what the step before left, under the keys of those that made it
    block_of[made[len(inherited) :]] = np.arange(len(inherited), len(made))
    blocks = block_of[key_of]
    events = EventStream(
        ops=np.where(codes >= 0, blocks, ~blocks).tolist(),
        sizes=size_of[made].tolist(),
        streams=[0] * len(made),
        keys=made.tolist(),
        inherited=len(inherited),
    )
    return RequestStream(events, steps, program)


def _creation_order(program: Program) -> list[int]:
    """Resident storages as a process creates them: module by module, layer by layer; optimizer states last."""
    first: dict[str, int] = {}
    position_of: dict[str, int] = {}
    for position, tensor in enumerate(program.graph.tensors.values()):
        position_of[tensor.name] = position
        if tensor.family:
            first.setdefault(tensor.family, position)
    places: dict[str, tuple[int, int, int]] = {}

    def order(key: int) -> tuple[int, int, int, int]:
        tensor, layer = program.storages[key]
        place = places.get(tensor.name)
        if place is None:
            own = position_of[tensor.name]
            owner = tensor.name.rsplit(".", 1)[0] if tensor.role == "optimizer_state" else tensor.name
            position = position_of.get(owner, own)
            place = places[tensor.name] = (first.get(tensor.family or "", position), position, own)
        return (place[0], layer, place[1], place[2])

    return sorted((key for key in program.resident if key not in program.previous), key=order)


def _uses_library(program: Program) -> set[str]:
    """Operator types that run a matrix product of the vendor's library."""
    families = program.graph.families
    uses: dict[str, bool] = {}
    for _, operator in program.graph.operators():
        if operator.type not in uses:
            kernels = operator_type(operator.type).kernels(Node.of(program.graph, operator, families))
            products = any(isinstance(k, Gemm | GroupedGemm) for k in kernels)
            uses[operator.type] = products and not any(isinstance(k, Convolution) for k in kernels)
    return {kind for kind, product in uses.items() if product}


def _thread(operator: Operator) -> str:
    return "autograd" if operator.phase in ("backward", "recompute") else "main"
