"""How a program uses programmable logic: one operator at a time, all at once, or in groups that are reconfigured.

* *sequential*: every operator has all multipliers in turn; what passes between operators stays on chip if it fits,
  else it goes out and comes back. Fast where operators are large, bound by memory where intermediates are.
* *dataflow*: every operator has multipliers of its own, in proportion to its work, and passes results on as they are
  made. Nothing goes out, but multipliers come in whole shares, small operators waste theirs, and the weights of all
  operators must be on chip together.
* *hybrid*: consecutive operators form groups; within a group they run as a dataflow, groups run one after another on
  all multipliers, and only what passes between groups may have to leave. Which groups are best is a shortest path
  (InTAR, arXiv:2502.08807, calls it inter-task auto-reconfiguration); sequential and dataflow are its two extremes.

A burst of b bytes on a channel costs its bytes and a fixed opening, so short rows see less than the stated bandwidth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, log2

from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.models.graph import Graph
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm
from peakline.models.operators import Node, operator_type

__all__ = [
    "CLOCK",
    "Fabric",
    "Group",
    "Stage",
    "dataflow",
    "fabric_of",
    "hybrid_groups",
    "pruned",
    "sequential",
    "stages_of",
]

CLOCK = 225e6
"""Hertz where a device file names none: FlightLLM's U280 design, arXiv:2401.03868, table 3."""

BURST = 64
"""Bytes in whose time a burst opens that nothing hides: one beat of 64 bytes, assumed."""


INT8_PER_DSP = {"DSP48E2": 2, "DSP58": 3}
"""int8 products that one block does in a cycle: two share a DSP48E2's multiplier (AMD WP486), a DSP58 adds three (AMD
AM004, INT8 dot product)."""


@dataclass(frozen=True, slots=True)
class Fabric:
    """Programmable logic in plain figures.

    Attributes:
        multipliers: multiply-accumulates that all of it does per cycle.
        clock: hertz.
        memory: bytes on chip.
        bandwidth: bytes/s off chip, over all channels.
    """

    multipliers: int
    clock: float
    memory: float
    bandwidth: float

    def streaming(self, burst: float) -> float:
        """Bytes/s with bursts of `burst` bytes."""
        return self.bandwidth * burst / (burst + BURST)


@dataclass(frozen=True, slots=True)
class Stage:
    """One operator: multiply-accumulates, bytes of weights, of what it reads of earlier ones, and of its result."""

    name: str
    work: float
    weights: float
    reads: float
    result: float


@dataclass(frozen=True, slots=True)
class Group:
    """Operators `first` to `last` that run as a dataflow: seconds, and bytes moved off chip."""

    first: int
    last: int
    seconds: float
    bytes: float


def fabric_of(device: str | Device, kind: str = "int8") -> Fabric:
    """The figures of an FPGA.

    Raises:
        ValueError: the device is none, or does not multiply in `kind`.
    """
    found = find_device(device)
    if found.kind != "fpga" or found.fpga is None:
        raise ValueError(f"{found.name} is a {found.kind}; only FPGAs run in these modes")
    clock = found.clock or CLOCK
    on_chip = sum(level.capacity or 0 for level in found.onchip) or (found.fpga.bram or 0) + (found.fpga.uram or 0)
    if not found.main.bandwidth:
        raise ValueError(f"{found.name}: memory.{found.main.name}.bandwidth is unknown")
    if not found.clock and found.fpga.dsp:  # a stated rate is at a clock that designs do not reach
        block = found.compute.unit if found.compute else ""
        stated = float(found.fpga.dsp * (INT8_PER_DSP.get(block, 2) if kind == "int8" else 1))
    else:
        stated = found.peak(kind) / (2 * clock)
    return Fabric(max(floor(stated), 1), clock, float(on_chip), float(found.main.bandwidth))


def stages_of(graph: Graph) -> list[Stage]:
    """The operators of a forward pass that multiply, layers unrolled; the rest rides along with the one before."""
    flat = graph.flatten()
    families = flat.families
    stages: list[Stage] = []
    for _, operator in flat.operators():
        node = Node.of(flat, operator, families)
        kernels = operator_type(operator.type).kernels(node)
        work = sum(float(k.flops) / 2 for k in kernels if isinstance(k, Gemm | GroupedGemm | Convolution | Attention))
        if not work:
            continue
        weights = sum(float(t.bytes) for t in node.inputs if t.role in ("parameter", "buffer"))
        reads = sum(float(t.bytes) for t in node.inputs if t.role not in ("parameter", "buffer"))
        stages.append(Stage(operator.name, work, weights, reads, sum(float(t.bytes) for t in node.outputs)))
    return stages


def pruned(stages: Sequence[Stage], kept: int, of: int, bits: float) -> list[Stage]:
    """The stages with `kept` of every `of` weights left: as much less work, and weights with their places.

    A weight that stays needs ⌈log₂ of⌉ bits beside its `bits` to say which of the block it is (A. Mishra et al.,
    "Accelerating sparse deep neural networks", arXiv:2104.08378, §3, for 2 of 4; FlightLLM, §4.2, for N of M). What is
    no product with weights (attention) stays as it is.

    Raises:
        ValueError: a block that does not hold as many.
    """
    if not 1 <= kept <= of:
        raise ValueError(f"kept, of: {kept} of {of} weights cannot be kept; accepted: 1 to {of}")
    share, place = kept / of, ceil(log2(of)) if kept < of else 0
    return [
        replace(s, work=s.work * share, weights=s.weights * share * (bits + place) / bits) if s.weights else s
        for s in stages
    ]


def _group(fabric: Fabric, stages: Sequence[Stage], first: int, last: int, *, spill: bool = False) -> Group | None:
    """Stages first..last as a dataflow on all multipliers; None if their weights and a line of each do not fit."""
    chosen = stages[first : last + 1]
    total = sum(s.work for s in chosen)
    if len(chosen) > fabric.multipliers:
        return None
    shares = [max(floor(fabric.multipliers * s.work / total), 1) for s in chosen]
    compute = max(s.work / share for s, share in zip(chosen, shares)) / fabric.clock
    moved = sum(s.weights for s in chosen)
    held = moved if len(chosen) > 1 else 0.0  # one operator alone streams its weights past
    if held > fabric.memory:
        return None
    room = 0.0 if spill else fabric.memory - held
    into, out = chosen[0].reads, chosen[-1].result
    moved += 0.0 if first > 0 and into <= room / 2 else into
    moved += 0.0 if last < len(stages) - 1 and out <= room / 2 else out
    return Group(first, last, max(compute, moved / fabric.streaming(4096.0)), moved)


def sequential(fabric: Fabric, stages: Sequence[Stage], *, spill: bool = False) -> float:
    """Seconds of one pass, every operator alone on all multipliers.

    Args:
        spill: what passes between operators always leaves the chip, as in designs without a buffer for it.
    """
    groups = [_group(fabric, stages, i, i, spill=spill) for i in range(len(stages))]
    return sum(g.seconds for g in groups if g is not None)


def dataflow(fabric: Fabric, stages: Sequence[Stage]) -> float | None:
    """Seconds per pass with all operators at once; None if the weights do not fit on chip."""
    whole = _group(fabric, stages, 0, len(stages) - 1)
    return None if whole is None else whole.seconds


def hybrid_groups(fabric: Fabric, stages: Sequence[Stage], longest: int = 24) -> list[Group]:
    """The groups whose times add up to the least: a shortest path over places to cut.

    Args:
        longest: most operators in a group.

    Raises:
        ValueError: there is nothing to run.
    """
    if not stages:
        raise ValueError("no operator of the program multiplies, so there is nothing to lay out")
    best: list[float] = [0.0] + [float("inf")] * len(stages)
    via: list[Group | None] = [None] * (len(stages) + 1)
    spans = [*range(longest), len(stages) - 1] if len(stages) > longest else [*range(len(stages))]
    for end in range(1, len(stages) + 1):
        for span in spans:
            first = end - 1 - span
            if first < 0:
                continue
            found = _group(fabric, stages, first, end - 1)
            if found is not None and best[first] + found.seconds < best[end]:
                best[end], via[end] = best[first] + found.seconds, found
    groups: list[Group] = []
    end = len(stages)
    while end > 0:
        taken = via[end]
        assert taken is not None  # a single operator always fits
        groups.append(taken)
        end = taken.first
    return groups[::-1]
