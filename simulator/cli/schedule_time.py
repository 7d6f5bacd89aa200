"""`peakline schedule --objective time`: rates of a device or by hand, and the answer in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from peakline.hardware import Device
    from peakline.solvers.plan import Plan, Timing
    from peakline.solvers.problem import Problem
    from peakline.solvers.schedule import Progress

__all__ = ["Rates", "rates_of", "shortest", "time_lines"]


@dataclass(frozen=True)
class Rates:
    """The link's bytes/s, FLOP/s for operators that give FLOPs, and what says how long a model's operators take."""

    bandwidth: float
    compute: float | None
    overlap: bool
    device: Device | None

    @property
    def work(self) -> Device | Literal["flops"]:
        """What `problem_of` is to note of each operator."""
        return self.device if self.device is not None and self.compute is None else "flops"


def rates_of(
    objective: str, device: str | None, bandwidth: str | None, compute: str | None, overlap: bool
) -> Rates | None:
    """The rates that the options give; None for another objective.

    Raises ValueError for rates without `--objective time`, and for time without a link.
    """
    from peakline.cost.machine import machine
    from peakline.hardware import device as find
    from peakline.hardware.units import parse_bandwidth, parse_rate

    given = {
        "--device": device,
        "--bandwidth": bandwidth,
        "--compute": compute,
        "--no-overlap": None if overlap else "",
    }
    if objective != "time":
        for option, value in given.items():
            if value is not None:
                raise ValueError(f"{option}: rates matter to --objective time; got --objective {objective}")
        return None
    found = find(device) if device is not None else None
    if bandwidth is None and found is None:
        raise ValueError("--bandwidth: time needs the link's, such as 25GB/s, or a --device")
    link = _number(bandwidth, parse_bandwidth, "--bandwidth") if bandwidth is not None else machine(found).supply
    rate = _number(compute, parse_rate, "--compute") if compute is not None else None
    return Rates(link, rate, overlap, found)


def _number(text: str, parse, option: str) -> float:  # type: ignore[no-untyped-def]
    """A plain number, or one with a unit; refused unless it is above 0."""
    try:
        value = float(text)
    except ValueError:
        value = float(parse(text))
    if not 0 < value < float("inf"):
        raise ValueError(f"{option}: must be a rate above 0, got {text}")
    return value


def shortest(
    problem: Problem, capacity: int, rates: Rates, time_limit: float, seed: int, progress: Callable[[Progress], None]
) -> Plan:
    """The plan with the least makespan."""
    from peakline.solvers.makespan import fastest

    return fastest(
        problem, capacity, bandwidth=rates.bandwidth, compute_rate=rates.compute, overlap=rates.overlap,
        time_limit=time_limit, seed=seed, progress=progress,
    )  # fmt: skip


def time_lines(timing: Timing) -> list[str]:
    """The time in words."""
    from peakline.hardware.units import format_bandwidth, format_time

    return [
        f"time      {format_time(timing.makespan)}: compute {format_time(timing.compute)}, stalled "
        f"{format_time(timing.stall)}; the link moves {format_time(timing.transfer)} at "
        f"{format_bandwidth(timing.bandwidth)}{'' if timing.overlap else ', nothing beside operators'}",
        f"proven    {timing.status}: no plan takes less than {format_time(timing.lower_bound)}, gap {timing.gap:.1%}",
    ]
