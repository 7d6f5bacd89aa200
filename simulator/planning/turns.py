"""The optimizer in turns: one layer after the other instead of all parameters at once, on the device or on the host.

An optimizer that walks over sub-groups needs the states of one of them at a time, and is done with a gradient as soon
as its turn is over (ZeRO-Infinity, arXiv:2104.07857, §5.2.2; Deep Optimizer States, arXiv:2410.21316). On the host
(ZeRO-Offload, arXiv:2101.06840, §4) states never come to the device: gradients go out as they are made, the host
updates at the speed of its memory, and the new parameters come back while the next turn runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from peakline.memory.lifetimes import Program, Step
from peakline.models.graph import Block, Operator

__all__ = ["HostOptimizer", "hosted_bytes", "in_turns"]


@dataclass(frozen=True, slots=True)
class HostOptimizer:
    """An optimizer on the host.

    Attributes:
        memory_bandwidth: bytes/s at which the host reads states, gradients and parameters, and writes those it updates.
        link_bandwidth: bytes/s at which new parameters come back.
    """

    memory_bandwidth: float
    link_bandwidth: float


def in_turns(program: Program, seconds: list[float], host: HostOptimizer | None = None) -> tuple[Program, list[float]]:
    """The same program with its one optimizer operator cut into a turn per layer; seconds of each step.

    On the device a turn takes its share of the whole by bytes. A host's turn passes over its bytes, and what it has
    updated goes back over the link while the next one runs: together they take as long as the slower of the two, and
    the last one both. What each turn computes and sends back is in its attributes, for those who replay it.

    Raises:
        ValueError: the optimizer is not a single pass (build the step with a fused implementation, `adamw-fused`).
    """
    steps = program.steps
    optimizer = [i for i, step in enumerate(steps) if step.operator.phase == "optimizer"]
    if not optimizer:
        return program, seconds
    working = [i for i in optimizer if _updates(program, steps[i])]
    if len(working) != 1:
        raise ValueError(
            f"the optimizer is {len(working)} operators over all parameters; one pass is needed to cut it into turns: "
            "name a fused implementation, as in optimizer='adamw-fused' (in torch, fused=True)"
        )
    whole = working[0]
    groups = _groups(program, steps[whole])
    if host is not None:  # the last layers' gradients arrive first
        groups = dict(reversed(groups.items()))
    sizes = [sum(int(program.sizes[key]) for key in keys) for keys in groups.values()]
    total = max(sum(sizes), 1)
    turns, times = [], []
    computed = returned = 0.0
    for (name, keys), size in zip(groups.items(), sizes):
        attributes: dict[str, object] = {"host": host is not None}
        if host is not None:
            updated = [key for key in keys if program.storages[key].tensor.role == "parameter"]
            keys = [key for key in keys if program.storages[key].tensor.role == "gradient"]
            written = size - _bytes(program, keys)  # gradients are read, what they update is read and written
            passing, sending = (size + written) / host.memory_bandwidth, _bytes(program, updated) / host.link_bandwidth
            computed += passing
            returned = max(returned, computed) + sending
            took = max(passing, sending)
            attributes |= {"seconds": passing, "updates": tuple(updated)}
        else:
            took = seconds[whole] * size / total
        operator = Operator(f"optimizer.{name}", "update_pass", (), (), phase="optimizer", module=name,
                            attributes=attributes)  # fmt: skip
        turns.append(Step(operator, Block(f"optimizer.{name}", (operator,)), 0, (), tuple(keys)))
        times.append(took)
    if host is not None:
        times[-1] = max(times[-1], returned - sum(times[:-1]))
    gradients = {key for keys in groups.values() for key in keys if program.storages[key].tensor.role == "gradient"}
    ends = [
        (steps[i]._replace(touches=tuple(k for k in steps[i].touches if k not in gradients)), seconds[i])
        for i in optimizer
        if i > whole
    ]
    before = [i for i in range(len(steps)) if i not in set(optimizer) or i < whole]
    resident = [
        key for key in program.resident if host is None or program.storages[key].tensor.role != "optimizer_state"
    ]
    cut = replace(
        program, steps=[*(steps[i] for i in before), *turns, *(step for step, _ in ends)], resident=resident
    )  # a new program: nothing remembered of the old one
    return cut, [*(seconds[i] for i in before), *times, *(took for _, took in ends)]


def _updates(program: Program, step: Step) -> bool:
    """Whether the step changes parameters: neither a release, nor the counting of steps."""
    roles = {program.storages[key].tensor.role for key in step.touches}
    return step.operator.type != "release" and "parameter" in roles


def _bytes(program: Program, keys: Iterable[int]) -> int:
    return sum(int(program.sizes[key]) for key in keys)


def hosted_bytes(program: Program, *, parameters: bool = True) -> int:
    """Bytes that the host holds where it runs the optimizer: states, and its copies of the parameters.

    Args:
        parameters: count the copies; without, where parameters themselves may lie on the host.
    """
    roles = {"optimizer_state", "parameter"} if parameters else {"optimizer_state"}
    return _bytes(program, (key for key, storage in enumerate(program.storages) if storage.tensor.role in roles))


def _groups(program: Program, step: Step) -> dict[str, list[int]]:
    """Storages of each turn: the i-th parameter, the i-th of each state and the i-th gradient belong together."""
    keys = list(dict.fromkeys(step.touches))
    count = 0
    while count < len(keys) and program.storages[keys[count]].tensor.role == program.storages[keys[0]].tensor.role:
        count += 1
    if len(keys) % count:
        raise ValueError(f"operator {step.name!r} does not walk over equally many parameters, states and gradients")
    found: dict[str, list[int]] = {}
    for i in range(count):
        tensor, layer = program.storages[keys[i]]
        name = f"{tensor.family}.{layer}" if tensor.family else tensor.name
        found.setdefault(name, []).extend(keys[i::count])
    return found
