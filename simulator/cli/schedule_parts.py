"""`peakline schedule` where operators may run in parts: alternatives of a file, or tilings of a model (`--tile`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from peakline.cli.schedule_time import Rates

if TYPE_CHECKING:
    from peakline.solvers.alternatives import Choices
    from peakline.solvers.plan import Plan
    from peakline.solvers.schedule import Progress

__all__ = ["best_choice", "refuse_mixed", "split_words"]


def refuse_mixed(choices: Choices, tile: bool, allow: str | None, objective: str, capacity: int | None) -> None:
    """Refuse what alternatives do not go with."""
    if not choices.alternatives and not tile:
        return
    what = "--tile" if tile else "alternatives"
    if allow is not None:
        raise ValueError(f"{allow if allow.startswith('--') else '--allow'}: does not go with {what}")
    if capacity is None:
        raise ValueError(f"--capacity: {what} need one: whether to run in parts depends on it")
    if objective == "peak":
        raise ValueError(f"--objective peak: {what} serve traffic and time within a capacity")


def best_choice(
    choices: Choices,
    capacity: int,
    rates: Rates | None,
    time_limit: float,
    seed: int,
    progress: Callable[[Progress], None],
) -> Plan:
    """The plan of the best choice of alternatives."""
    if rates is not None:
        from peakline.solvers.makespan.choosing import fastest_choosing

        return fastest_choosing(
            choices, capacity, bandwidth=rates.bandwidth, compute_rate=rates.compute, overlap=rates.overlap,
            time_limit=time_limit, seed=seed, progress=progress,
        )  # fmt: skip
    from peakline.solvers.schedule.choosing import schedule_choosing

    return schedule_choosing(choices, capacity, time_limit=time_limit, seed=seed, progress=progress)


def split_words(alternatives: Mapping[str, str]) -> str:
    """How many operators run in parts, and which way."""
    ways = Counter(alternatives.values())
    count = len(alternatives)
    return f"{count} operator{'s' if count > 1 else ''}: " + ", ".join(
        f"{n} × {way}" for way, n in sorted(ways.items())
    )
