"""`peakline schedule --capacity 1MiB,32MiB`: several levels of memory between operators and where inputs come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peakline.cli.progress import Meter
from peakline.files import check_target, written_whole

if TYPE_CHECKING:
    from peakline.solvers.alternatives import Choices
    from peakline.solvers.levels import Level, LevelsPlan
    from peakline.solvers.problem import Problem
    from peakline.solvers.replay_levels import LevelsReplay

__all__ = ["bytes_of", "counted", "over_levels", "refuse_beside_levels"]

SCHEMA = "peakline.schedule-levels/1"


def refuse_beside_levels(choices: Choices, objective: str, options: Mapping[str, object]) -> None:
    """Refuse what several levels do not go with."""
    if objective != "traffic":
        raise ValueError(f"--objective {objective}: with several levels: traffic alone")
    if choices.alternatives:
        raise ValueError("alternatives: do not go with several levels")
    for option, value in options.items():
        if value:
            raise ValueError(f"{option}: does not go with several levels")


def over_levels(
    problem: Problem,
    capacities: str,
    weights: str | None,
    time_limit: float,
    seed: int,
    out: Path | None,
    as_json: bool,
) -> int:
    """Solve, replay, write and print; the exit code."""
    from peakline.solvers.levels import schedule_levels
    from peakline.solvers.replay_levels import replay_levels
    from peakline.solvers.schedule import Infeasible

    levels = _levels(capacities, weights)
    if out is not None:
        check_target(out)
    try:
        with Meter(lambda weighed: f"{weighed:,.0f}", time_limit) as meter:
            plan = schedule_levels(problem, levels, time_limit=time_limit, seed=seed, progress=meter)
    except Infeasible as error:
        answer = {"schema": SCHEMA, "status": "infeasible", "smallest_capacity": error.smallest}
        print(json.dumps({**answer, "forced_by": error.operator, "reason": str(error)}) if as_json else error)
        return 1
    done = replay_levels(problem, plan)
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(plan.to_json() + "\n", encoding="utf-8")
    print(json.dumps(_document(plan, done)) if as_json else "\n".join(_lines(problem, plan, done, out)))
    return 0


def counted(problem: Problem) -> str:
    """How many operators and tensors a problem has."""
    listed = ((len(problem.operators), "operator"), (len(problem.tensors), "tensor"))
    return ", ".join(f"{count:,} {noun}{'s' if count != 1 else ''}" for count, noun in listed)


def bytes_of(capacity: str) -> int:
    """Bytes, or a number with a unit. Raises ValueError naming the option."""
    from peakline.hardware.units import parse_bytes

    try:
        return int(capacity) if capacity.strip().lstrip("+-").isdigit() else parse_bytes(capacity)
    except ValueError as error:
        raise ValueError(f"--capacity: {error}") from None


def _levels(capacities: str, weights: str | None) -> tuple[Level, ...]:
    from peakline.solvers.levels import Level

    listed = [text.strip() for text in capacities.split(",")]
    if not all(listed):
        raise ValueError(f"--capacity: must be capacities between commas, such as 1MiB,32MiB, got {capacities!r}")
    sizes = [bytes_of(text) for text in listed]
    if weights is None:
        return tuple(Level(size) for size in sizes)
    try:
        numbers = [float(text) for text in weights.split(",")]
    except ValueError:
        raise ValueError(f"--weights: must be numbers between commas, such as 1,10, got {weights!r}") from None
    if len(numbers) != len(sizes):
        raise ValueError(f"--weights: one for each of the {len(sizes)} levels, got {len(numbers)}")
    return tuple(Level(size, weight) for size, weight in zip(sizes, numbers))


def _document(plan: LevelsPlan, done: LevelsReplay) -> dict[str, Any]:
    """The JSON of schema `peakline.schedule-levels/1`: the plan without its steps; bytes, and bytes times weight."""
    stated = plan.to_dict()
    levels = [
        {**level, "peak": peak, "traffic": moved}
        for level, peak, moved in zip(stated["levels"], done.peak, stated["traffic"])
    ]
    proof = stated["certificate"]
    return {"schema": SCHEMA, "status": proof["status"], "levels": levels, "certificate": proof}


def _lines(problem: Problem, plan: LevelsPlan, done: LevelsReplay, out: Path | None) -> list[str]:
    from peakline.hardware.units import format_bytes

    proof = plan.certificate
    lines = [f"{counted(problem)}, {len(plan.levels)} levels"]
    for n, (level, moved, peak) in enumerate(zip(plan.levels, plan.traffic, done.peak), 1):
        lines.append(
            f"level {n}   {format_bytes(level.capacity)}, {format_bytes(peak)} of it taken; over the link behind it "
            f"{format_bytes(moved.load)} in, {format_bytes(moved.store)} out, {moved.non_compulsory:,} B of them "
            f"non-compulsory, weight {level.weight:g}"
        )
    lines += [
        f"proven    {proof.status}: objective {proof.objective:,.10g}, bound {proof.lower_bound:,.10g}, "
        f"gap {proof.gap:.1%}",
        f"method    {proof.method} ({proof.seconds:.2f} s)",
    ]
    return [*lines, f"written   {out}"] if out is not None else lines
