"""A processor with memory that computes: which operators run beside the banks, and what two half batches gain.

The weights and the KV cache lie in memory whose banks have units of their own (`peakline.cost.pim`). A matrix product
or an attention step of few rows reads each of its operands once and does little with it: beside the banks it sees their
whole internal bandwidth, but does everything once per row. On the processor it sees the pins, and reads the operand
once for all rows. Each operator goes where it takes less; the crossover in rows is where both take the same.

While the processor works on one half of the batch, the banks can work on the other (NeuPIMs, arXiv:2403.00579, §5):
then a step takes as long as the busier of the two, plus the other's first share, instead of the sum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from peakline.cost.machine import Machine, machine
from peakline.cost.price import price
from peakline.cost.program import working
from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.models.graph import Graph
from peakline.models.kernels import Attention, Gemm, GroupedGemm

__all__ = ["Hybrid", "Share", "crossover", "hybrid", "lines", "together"]


@dataclass(frozen=True, slots=True)
class Share:
    """An operator: seconds of all its executions on the processor and beside the banks (None: it cannot run there)."""

    operator: str
    executions: int
    host: float
    banks: float | None

    @property
    def goes_to_banks(self) -> bool:
        """Whether it takes less there."""
        return self.banks is not None and self.banks < self.host

    @property
    def seconds(self) -> float:
        """Where it takes less."""
        return min(self.host, self.banks) if self.banks is not None else self.host


@dataclass(frozen=True)
class Hybrid:
    """A step on a processor with computing memory; seconds.

    Attributes:
        shares: one per operator.
        layers: number of layers, the stages of the overlapped pipeline.
    """

    shares: tuple[Share, ...]
    layers: int

    @property
    def host_only(self) -> float:
        """Everything on the processor."""
        return sum(s.host for s in self.shares)

    @property
    def busy(self) -> tuple[float, float]:
        """Seconds of the processor and of the banks, each operator where it takes less."""
        return (
            sum(s.host for s in self.shares if not s.goes_to_banks),
            sum(s.seconds for s in self.shares if s.goes_to_banks),
        )

    @property
    def in_turn(self) -> float:
        """One after the other, each operator where it takes less."""
        return sum(self.busy)

    @property
    def overlapped(self) -> float:
        """Two half batches side by side, if this is the step of one of them: both of them, seconds.

        The busier side never waits but for the other's part of the first layer.
        """
        host, banks = self.busy
        return 2.0 * max(host, banks) + min(host, banks) / max(self.layers, 1)


def lines(split: Hybrid, memory: str, count: int = 1) -> list[str]:
    """The split in words: how long with the banks' help and without, and what goes to them."""
    from peakline.hardware.units import format_time

    there = [s for s in split.shares if s.goes_to_banks]
    by_type: dict[str, float] = {}
    for share in there:
        name = ".".join(share.operator.split(".")[-2:])
        by_type[name] = by_type.get(name, 0.0) + share.seconds
    named = ", ".join(f"{name} {format_time(t, 3)}" for name, t in sorted(by_type.items(), key=lambda x: -x[1])[:6])
    beside = f"{count} × {memory}" if count > 1 else memory
    gain = split.host_only / split.in_turn
    return [
        f"With {beside}: {format_time(split.in_turn, 3)} instead of {format_time(split.host_only, 3)} ({gain:.2f} "
        "times as fast), one after the other",
        f"  to the banks: {named}" if there else "  nothing goes to the banks",
    ]


def hybrid(graph: Graph, host: str | Device, memory: str | Device, *, count: int = 1) -> Hybrid:
    """Price every operator on both sides.

    Args:
        graph: a workload that is no sweep.
        host: the processor; its main memory's bandwidth is that of the pins.
        memory: a device of kind `pim`.
        count: stacks or chips of it, all at work together.

    Raises:
        ValueError: a sweep, a memory that does not compute, or no stack at all.
    """
    if graph.is_sweep:
        raise ValueError("a sweep has no single split; price one configuration")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    if (kind := find_device(memory).kind) != "pim":
        raise ValueError(
            f"{find_device(memory).name} is a {kind}; only memory that computes (kind pim) takes operators"
        )
    processor, banks = find_device(host), together(machine(find_device(memory)), count)
    shares = []
    for work in working(graph):
        times, here, there = work.executions, 0.0, 0.0
        possible = all(isinstance(k, Gemm | GroupedGemm | Attention) for k in work.kernels)
        for kernel, moved in zip(work.kernels, work.moves):
            here += float(price(kernel, *moved, processor).tiled)
            if possible:
                there += float(price(kernel, *moved, banks).tiled)
        shares.append(Share(work.operator.name, times, times * here, times * there if possible else None))
    return Hybrid(tuple(shares), max(graph.families.values(), default=1))


def crossover(host: str | Device, memory: str | Device, n: int, k: int, kind: str = "fp16", *, count: int = 1) -> int:
    """Rows m from which a product [m,k]·[k,n] is faster on the processor than beside the banks."""
    from peakline.models.dtypes import dtype

    form = dtype(kind)
    size = form.bits // 8
    processor, banks = find_device(host), together(machine(find_device(memory)), count)

    def banks_win(m: int) -> bool:
        gemm = Gemm(1, m, n, k, form, form, form)
        moved = (size * (m * k + n * k), size * m * n)
        return float(price(gemm, *moved, banks).tiled) < float(price(gemm, *moved, processor).tiled)

    low, high = 0, 1
    while banks_win(high) and high < 1 << 20:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if banks_win(middle) else (low, middle)
    return high


def together(one: Machine, count: int) -> Machine:
    """Several stacks as one device."""
    if count == 1:
        return one
    banks = one.banks
    scaled: dict[str, Any] = {
        "matrix": {name: rate * count for name, rate in one.matrix.items()},
        "vector": {name: rate * count for name, rate in one.vector.items()},
        "units": one.units * count,
        "levels": tuple(
            replace(
                level,
                capacity=None if level.capacity is None else level.capacity * count,
                bandwidth=None if level.bandwidth is None else level.bandwidth * count,
            )
            for level in one.levels
        ),
    }
    if banks is not None:
        scaled["banks"] = replace(
            banks,
            units=banks.units * count,
            channels=banks.channels * count,
            inside=banks.inside * count,
            outside=banks.outside * count,
        )
    return replace(one, **scaled)
