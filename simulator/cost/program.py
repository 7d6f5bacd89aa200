"""Price every operator of a graph on a device, and add them up.

An operator runs `repeat · times` times at the same price. Operators run one after another, so the step's time is the
sum of theirs, at each of the three fidelities.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from peakline.cost.evaluate import FEW_QUERIES
from peakline.cost.gpu import GPU
from peakline.cost.price import KernelCost, price
from peakline.hardware import Device
from peakline.models.dims import Dim
from peakline.models.graph import Block, Graph, Operator
from peakline.models.kernels import Attention, Kernel, Scan, Stream
from peakline.models.operators import Node, operator_type

__all__ = ["OperatorCost", "ProgramCost", "Working", "kernel_kind", "price_program", "working"]


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator's price, for a single execution.

    Attributes:
        executions: how often it runs in the step.
        flops: of matrix products, convolutions, attention and scans (exact int, or float64 array).
        vector_work: scalar operations outside those.
        reads, writes: compulsory bytes.
        costs: one price per kernel.
        kinds: what kind of kernel each is (`kernel_kind`).
    """

    name: str
    type: str
    phase: str
    module: str
    executions: int
    flops: Any
    vector_work: Any
    reads: Dim
    writes: Dim
    costs: tuple[KernelCost, ...]
    kinds: tuple[str, ...] = ()

    def seconds(self, fidelity: str) -> Any:
        """Seconds of one execution at `bound`, `io` or `tiled`."""
        total: Any = 0.0
        for cost in self.costs:
            total = total + getattr(cost, fidelity)
        return total


@dataclass(frozen=True)
class ProgramCost:
    """A graph's price on a device; arrays in a sweep.

    Attributes:
        operators: by operator, in program order.
        flops: total, exact int (float64 array in a sweep).
        bound, io, tiled: seconds.
        traffic: bytes that move per memory level as tiled.
        io_lower_bound: bytes per level that no schedule can avoid.
        limited_by: resource → seconds of the tiled time it limits.
        by_kind: kind of kernel → its tiled seconds; what calibrations and their residuals speak of.
    """

    operators: tuple[OperatorCost, ...]
    flops: Any
    vector_work: Any
    bound: Any
    io: Any
    tiled: Any
    traffic: Mapping[str, Any]
    io_lower_bound: Mapping[str, Any]
    limited_by: Mapping[str, Any]
    by_kind: Mapping[str, Any] = field(default_factory=dict)


class Working(NamedTuple):
    """An operator that starts kernels: where it stands, its kernels, and the bytes each reads and writes."""

    block: Block
    operator: Operator
    kernels: tuple[Kernel, ...]
    moves: tuple[tuple[Dim, Dim], ...]

    @property
    def executions(self) -> int:
        """How often it runs in the step."""
        return self.block.repeat * self.block.times


def kernel_kind(kernel: Kernel) -> str:
    """`gemm` (matrix products, grouped ones and convolutions), `prefill` or `decode` (attention), or `stream`."""
    if isinstance(kernel, Attention):
        few = np.all(np.asarray(kernel.queries) <= FEW_QUERIES) and np.all(np.asarray(kernel.qk_dim) <= GPU.latent_dim)
        return "decode" if few else "prefill"
    return "stream" if isinstance(kernel, Stream | Scan) else "gemm"


def working(graph: Graph) -> Iterator[Working]:
    """The operators of a graph that start kernels, in program order, with the bytes that each kernel has to move.

    An operator's compulsory bytes belong to its first kernel.
    """
    families = graph.families
    sizes: dict[str, Dim] = {}
    for block, operator in graph.operators():
        kind = operator_type(operator.type)
        node = Node.of(graph, operator, families, sizes)
        kernels = kind.kernels(node)
        if kernels:
            moves = ((kind.reads(node), kind.writes(node)), *((0, 0) for _ in kernels[1:]))
            yield Working(block, operator, kernels, moves)


def price_program(graph: Graph, device: Device, *, cuda_graph: bool = False) -> ProgramCost:
    """Price `graph` on `device`; `cuda_graph` removes the host's part of launches.

    Raises:
        UnsupportedDtype: the device cannot compute in a format the graph uses.
    """
    found: list[OperatorCost] = []
    known: dict[Any, KernelCost] = {}
    for work in working(graph):
        operator, kernels, (reads, writes) = work.operator, work.kernels, work.moves[0]
        costs = []
        for kernel, moved in zip(kernels, work.moves):
            key = _key(kernel, moved)
            if key not in known:
                known[key] = price(kernel, *moved, device, cuda_graph=cuda_graph)
            costs.append(known[key])
        flops, vector = _count(kernels)
        found.append(
            OperatorCost(
                operator.name, operator.type, operator.phase, operator.module, work.executions, flops, vector,
                reads, writes, tuple(costs), tuple(kernel_kind(kernel) for kernel in kernels),
            )
        )  # fmt: skip
    return _total(tuple(found))


def _key(kernel: Kernel, moved: tuple[Dim, Dim]) -> Any:
    """What makes two kernels the same; arrays by content, so that a layer's equal products are priced once."""
    values = [getattr(kernel, name) for name in kernel.__dataclass_fields__]
    return (
        type(kernel),
        *(v.tobytes() if isinstance(v, np.ndarray) else v for v in (*values, *moved)),
    )


def _count(kernels: tuple[Kernel, ...]) -> tuple[Any, Any]:
    """(FLOPs of matrix kernels, scalar operations of the others)."""
    flops: Any = 0
    work: Any = 0
    for kernel in kernels:
        if isinstance(kernel, Stream):
            work = work + kernel.flops
        else:
            flops = flops + kernel.flops
    return flops, work


def _total(operators: tuple[OperatorCost, ...]) -> ProgramCost:
    flops, work = ExactSum(), ExactSum()
    seconds: dict[str, Any] = {"bound": 0.0, "io": 0.0, "tiled": 0.0}
    traffic: dict[str, Any] = {}
    lower: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    kinds: dict[str, Any] = {}
    for operator in operators:
        n = operator.executions
        flops.add(operator.flops, n)
        work.add(operator.vector_work, n)
        for cost, kind in zip(operator.costs, operator.kinds, strict=True):
            kinds[kind] = kinds.get(kind, 0.0) + n * cost.tiled
            seconds["bound"] = seconds["bound"] + n * cost.bound
            seconds["io"] = seconds["io"] + n * cost.io
            seconds["tiled"] = seconds["tiled"] + n * cost.tiled
            for level, amount in cost.traffic.items():
                traffic[level] = traffic.get(level, 0) + n * amount
            for level, amount in cost.io_lower_bound.items():
                lower[level] = lower.get(level, 0) + n * amount
            _attribute(limits, cost, n)
    return ProgramCost(
        operators, flops.value(), work.value(), seconds["bound"], seconds["io"], seconds["tiled"], traffic, lower,
        limits, kinds,
    )  # fmt: skip


def _attribute(limits: dict[str, Any], cost: KernelCost, n: int) -> None:
    """Add the kernel's tiled seconds to the resource that limits it, configuration by configuration."""
    if not isinstance(cost.tiled, np.ndarray):
        name = cost.limited_by
        limits[str(name)] = limits.get(str(name), 0.0) + n * cost.tiled
        return
    names = list(cost.limits)
    worst = np.broadcast_to(cost.limits[names[0]], cost.tiled.shape)
    which = np.zeros(cost.tiled.shape, dtype=np.int8)
    for j, name in enumerate(names[1:], 1):
        higher = cost.limits[name] > worst
        which = np.where(higher, np.int8(j), which)
        worst = np.where(higher, cost.limits[name], worst)
    for j, name in enumerate(names):
        share = which == j
        if share.any():
            limits[name] = limits.get(name, 0.0) + n * np.where(share, cost.tiled, 0.0)


class ExactSum:
    """Sum of FLOP counts: exact for ints; for arrays the correctly rounded float64 of the exact sum.

    Array terms are integers held in float64 (exact below 2**53 each), added in int64 while that cannot overflow;
    beyond, they are split into two limbs of 2**32 so that neither limb loses a bit, and joined once at the end. Small
    arrays wait until then, to be added up together.
    """

    def __init__(self) -> None:
        self._integer = 0
        self._whole: Any = 0
        self._most = 0.0
        self._high: Any = 0.0
        self._low: Any = 0.0
        self._is_array = False
        self._small: dict[tuple[int, ...], list[tuple[Any, int]]] = {}

    def add(self, value: Any, times: int) -> None:
        """Add `value · times`."""
        if not isinstance(value, np.ndarray):
            self._integer += int(value) * times
            return
        self._is_array = True
        if value.size <= _SMALL:
            self._small.setdefault(value.shape, []).append((value, times))
        else:
            self._add(value, times)

    def _add(self, value: Any, times: int) -> None:
        most = float(value.max()) * times
        if self._most + most < _INT64_ROOM:
            self._most += most
            self._whole = self._whole + value.astype(np.int64) * times
            return
        high = np.floor(value / 2.0**32)
        self._high = self._high + high * times
        self._low = self._low + (value - high * 2.0**32) * times

    def value(self) -> Any:
        """The sum: int, or float64 array."""
        if not self._is_array:
            return self._integer
        for terms in self._small.values():
            stacked = np.stack([value for value, _ in terms])
            often = np.asarray([times for _, times in terms])
            most = float(stacked.reshape(len(terms), -1).max(axis=1) @ often)
            if self._most + most < _INT64_ROOM:
                self._most += most
                self._whole = self._whole + np.tensordot(often, stacked.astype(np.int64), 1)
            else:
                for value, times in terms:
                    self._add(value, times)
        self._small = {}
        high, low = divmod(self._integer, 1 << 32)
        above = self._whole >> 32
        return (self._high + (high + above)) * 2.0**32 + (self._low + (low + (self._whole - (above << 32))))


_INT64_ROOM = 2.0**62
_SMALL = 256
