"""A program whose steps are executed in any order and number, as tasks: what is alive follows from who reads what.

Each execution of a step makes new versions of its storages; a version lives until the last execution that touches it
before the next one is made. So the order alone decides what is kept, and nothing is kept for nobody.
"""

from __future__ import annotations

from collections.abc import Sequence

from peakline.planning.execute import COMPUTE, DEVICE
from peakline.planning.extract import Profile
from peakline.solvers.offload.checkmate import Node
from peakline.streams import Hold, Program, Task, Tier

__all__ = ["nodes_of", "rerun"]


def rerun(profile: Profile, order: Sequence[int], capacity: int | None) -> Program:
    """The tasks of the steps in this order; a step that comes a second time is counted as recomputation.

    Args:
        order: numbers of steps.
        capacity: bytes of the device; None lets the peak be what it is.

    Raises:
        ValueError: a step touches a storage that was not made before.
    """
    source = profile.program
    mortal = {key for key in range(len(source.births)) if source.births[key] >= 0}
    program = Program({}, {DEVICE: Tier(DEVICE, capacity)})
    resident = sum(int(source.sizes[key]) for key in source.resident if key not in source.previous)
    program.initial.append(Hold("resident", DEVICE, resident))
    version: dict[int, int] = {}
    last: dict[tuple[int, int], int] = {}
    for key in source.previous:  # the step before left it, and this one frees it
        program.initial.append(Hold(_buffer(profile, key, 0), DEVICE, int(source.sizes[key])))
        version[key], last[key, 0] = 0, 0
    for place, i in enumerate(order):
        step = profile.steps[i]
        for key in step.makes:
            version[key] = version.get(key, 0) + 1
        for key in (*step.makes, *step.touches):
            if key in version:
                last[key, version[key]] = place
            elif key in mortal:
                raise ValueError(f"step {step.name!r} touches {source.storages[key].name}, which was not made before")
    dying: dict[int, list[str]] = {}
    for (key, number), place in last.items():
        dying.setdefault(place, []).append(_buffer(profile, key, number))
    made: dict[int, int] = {}
    seen: set[int] = set()
    for place, i in enumerate(order):
        step = profile.steps[i]
        holds = []
        for key in step.makes:
            made[key] = made.get(key, 0) + 1
            holds.append(Hold(_buffer(profile, key, made[key]), DEVICE, int(source.sizes[key])))
        drops = dying.get(place, [])
        inside = sum(map(int, source.workspaces.get(id(step.operator), ())))
        if inside:
            holds.append(Hold(f"workspace {place}", DEVICE, inside))
            drops = [*drops, f"workspace {place}"]
        again = i in seen
        name, kind = (f"{step.name} again", "recompute") if again else (step.name, step.operator.phase)
        program.add(Task(name, COMPUTE, profile.seconds[i], holds=tuple(holds), drops=tuple(drops), kind=kind))
        seen.add(i)
    return program


def nodes_of(profile: Profile) -> tuple[tuple[Node, ...], int] | None:
    """The step as operators for Checkmate, and bytes that are there throughout; None where one writes in place.

    Every step is an operator whose result is all that it makes.
    """
    program = profile.program
    nodes = []
    for i, step in enumerate(profile.steps):
        written = step.touches[-len(step.operator.outputs) :] if step.operator.outputs else ()
        if any(key not in step.makes and program.births[key] >= 0 for key in written):
            return None
        reads = {program.births[key] for key in step.touches} - {-1, i}
        inside = sum(map(int, program.workspaces.get(id(step.operator), ())))
        made = sum(int(program.sizes[key]) for key in step.makes)
        nodes.append(Node(step.name, profile.seconds[i], made, tuple(sorted(reads)), inside))
    return tuple(nodes), sum(int(program.sizes[key]) for key in program.resident if key not in program.previous)


def _buffer(profile: Profile, key: int, number: int) -> str:
    return f"{profile.program.storages[key].name}#{key}.{number}"
