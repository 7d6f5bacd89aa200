"""Whole graphs: every operator by itself, all of them together, and what can be kept on the chip between them.

*Bound.* Each byte moved belongs to one tensor. Operators that share no tensor therefore add up: an operator's bound may
count the loads of its inputs and of its own half-done results, and nobody else's (V. Elango et al., "On characterizing
the data access complexity of programs", POPL 2015, thm. 1). What another operator made, or will read, may come and go
on the chip, so it is taken off once:

    Q ≥ Σ_operators max(resident bytes, bound(S) − bytes of intermediates read or made),

resident bytes being weights, inputs and results that stay. Products that share one input (query, key and value; gate
and up) are one product of all their columns. Where an input is shared otherwise, the larger product counts and the
other only its resident bytes. Nothing is computed twice.

*Plan.* Operators in the given order, each with its best tiling; intermediates of a layer stay on the chip where that
saves more than the smaller tiles beside them cost, those that save most per byte and step first. Where all tensors of
the graph fit together, all of them stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peakline.cost.io_bounds import convolution_traffic, matmul_traffic
from peakline.cost.program import Working, working
from peakline.io_complexity.fused import Attention
from peakline.io_complexity.products import Convolution, Matmul, best_matmul
from peakline.io_complexity.rows import Pass, Rows
from peakline.io_complexity.work import Tiling, Work
from peakline.models import kernels
from peakline.models.graph import ALL, RESIDENT_ROLES, Block, Graph, Tensor, base_name
from peakline.models.operators import Node, operator_type

__all__ = ["Entry", "Kept", "Scheduled", "entries", "keep", "scheduled", "whole_bound"]


@dataclass(frozen=True)
class Implicit:
    """A convolution known only as an implicit matrix product: transposed, dilated, or a weight's gradient."""

    kernel: kernels.Convolution

    @property
    def name(self) -> str:
        """Kind and FLOPs."""
        return f"implicit product of {self.kernel.flops:.3g} FLOPs"

    @property
    def compulsory(self) -> float:
        """Unknown here: the operator says it."""
        return 0.0

    def bound(self, capacity: float, copies: int = 1) -> float:
        """The matmul bound over √taps."""
        k = self.kernel
        widths = (k.a.bits / 8, k.b.bits / 8, k.c.bits / 8)
        return float(convolution_traffic(k.flops / 2.0, max(float(k.taps), 1.0), capacity, *widths, copies))

    def best(self, capacity: float) -> Tiling | None:
        """The blocking of the product; an unrolled input is read once for all its taps."""
        k, taps = self.kernel, max(int(self.kernel.taps), 1)
        narrow_in, narrow_out = int(k.in_channels) // int(k.groups), int(k.out_channels) // int(k.groups)
        if k.transposed:
            m, n, inner, a = int(k.batch * k.in_space), taps * narrow_out, narrow_in, k.a.bits / 8
        else:
            m, n, inner, a = int(k.batch * k.space), narrow_out, taps * narrow_in, k.a.bits / 8 / taps
        found = best_matmul(m, n, max(inner, 1), capacity, a, k.b.bits / 8, k.c.bits / 8)
        if found is None:
            return None
        return Tiling(found.strategy, found.tile, found.footprint, found.traffic * int(k.groups))


@dataclass(frozen=True)
class Entry:
    """An operator of a graph.

    Attributes:
        block, operator, type, phase: where it stands.
        executions: how often it runs.
        moved: compulsory bytes of one execution, as the operator says.
        works: its kernels.
        node: the operator with its tensors.
    """

    block: Block
    operator: str
    type: str
    phase: str
    executions: int
    moved: float
    works: tuple[Work, ...]
    node: Node = field(compare=False)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Bytes of one execution that no schedule of the operator alone avoids."""
        return max(self.moved, *(w.bound(capacity, copies) for w in self.works))

    def best(self, capacity: float) -> tuple[float, tuple[Tiling, ...]] | None:
        """Least bytes found for one execution, and the tilings; None where a kernel does not fit.

        What an operator moves beside its kernel's operands (a bias, statistics) moves once.
        """
        found = [w.best(capacity) for w in self.works]
        tilings = tuple(t for t in found if t is not None)
        if len(tilings) < len(found):
            return None
        beside = max(self.moved - sum(w.compulsory for w in self.works), 0.0)
        return max(sum(t.traffic for t in tilings) + beside, self.moved), tilings


def entries(graph: Graph) -> list[Entry]:
    """The operators of a graph that start kernels.

    Raises ValueError for a sweep of configurations.
    """
    if graph.is_sweep:
        raise ValueError(f"{graph.name}: a sweep has no single traffic; give one configuration")
    families = graph.families
    return [_entry(graph, w, families) for w in working(graph)]


def _entry(graph: Graph, work: Working, families: Mapping[str, int]) -> Entry:
    node = Node.of(graph, work.operator, families)
    works = tuple(
        _work(node, kernel, float(reads + writes)) for kernel, (reads, writes) in zip(work.kernels, work.moves)
    )
    moved = float(sum(work.moves[0]))
    o = work.operator
    return Entry(work.block, o.name, o.type, o.phase, work.executions, moved, works, node)


def _work(node: Node, kernel: Any, moved: float) -> Work:
    """A kernel of the models as an operator of this package."""
    if isinstance(kernel, kernels.Gemm):
        widths = (kernel.a.bits / 8, kernel.b.bits / 8, kernel.c.bits / 8)
        return Matmul(int(kernel.m), int(kernel.n), int(kernel.k), int(kernel.batch), *widths)
    if isinstance(kernel, kernels.GroupedGemm):
        widths = (kernel.a.bits / 8, kernel.b.bits / 8, kernel.c.bits / 8)
        groups = max(int(kernel.groups), 1)
        return Matmul(max(int(kernel.rows) // groups, 1), int(kernel.n), int(kernel.k), groups, *widths)
    if isinstance(kernel, kernels.Attention):
        window = node.attributes.get("window")
        latent = not kernel.backward and len({t.storage or t.name for t in node.inputs[-2:]}) == 1
        return Attention(
            int(kernel.queries), int(kernel.keys), int(kernel.qk_dim), int(kernel.v_dim), int(kernel.heads),
            int(kernel.kv_heads), int(kernel.batch), bool(node.attributes.get("causal")),
            None if window is None else int(window), kernel.kind.bits / 8, kernel.kv_kind.bits / 8,
            passes=1, backward=kernel.backward, latent=latent,
        )  # fmt: skip
    if isinstance(kernel, kernels.Convolution):
        return _convolution(node, kernel)
    if isinstance(kernel, kernels.Stream) and kernel.passes != 1 and kernel.rows and node.outputs:
        rows, out = int(kernel.rows), node.outputs[0]
        width = max(int(out.elements) // rows, 1)
        element = out.dtype.bits / 8
        inputs = max(round(moved / (rows * width * element)) - 1, 1)
        inputs = 1 if node.operator.phase == "forward" else min(inputs, 2)
        beside = moved - rows * width * element * (inputs + 1)
        return Rows(rows, width, inputs, element, max(beside, 0.0), node.operator.type)
    return Pass(moved, node.operator.type)


def _convolution(node: Node, kernel: kernels.Convolution) -> Work:
    a = node.attributes
    plain = node.operator.type == "convolution" and not kernel.transposed and len(node.inputs[0].shape) == 4
    if not plain or set(a.get("dilation", (1, 1))) != {1} or len(set(a.get("stride", (1, 1)))) > 1:
        return Implicit(kernel)
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    stride = int(a.get("stride", (1, 1))[0])
    taps = (int(w.shape[2]), int(w.shape[3]))
    space, extent = (int(y.shape[2]), int(y.shape[3])), (int(x.shape[2]), int(x.shape[3]))
    spare = [max((n - 1) * stride + t - e, 0) for n, t, e in zip(space, taps, extent, strict=True)]
    given = a.get("padding", (0, 0))
    padding = tuple(total // 2 if p == "same" else int(p) for p, total in zip(given, spare, strict=True))
    return Convolution(
        int(kernel.batch), int(kernel.in_channels), int(kernel.out_channels), space, taps, stride, int(kernel.groups),
        kernel.a.bits / 8, kernel.b.bits / 8, kernel.c.bits / 8, (padding[0], padding[1]), extent,
    )  # fmt: skip


# --- the whole graph --------------------------------------------------------------------------------------------


class _Tensors:
    """Which memory a tensor lies in, who makes it, and whether it is an intermediate."""

    def __init__(self, graph: Graph, found: Sequence[Entry]) -> None:
        self.graph = graph
        self.carried: dict[str, str] = {}
        for block in graph.blocks:
            for name, carry in block.carries.items():
                self.carried[name] = carry.following
        self.read = {
            self.root(name) for b in graph.blocks for c in b.carries.values() for name in (c.initial, c.following)
        }
        self.renewed: dict[str, float] = {}
        self.made: set[str] = {
            name for _, o in graph.operators() for name in map(base_name, o.outputs) if self._own(name)
        }
        for block, operator in graph.operators():
            self.read |= {self.root(r) for r in operator.inputs}
            others = {root for root in map(self.root, operator.outputs) if root not in self.made}
            renews = {root for root in others if root in graph.tensors and graph.tensors[root].role in RESIDENT_ROLES}
            kind = operator_type(operator.type)
            if renews and kind.launches:
                written = float(kind.writes(Node.of(graph, operator, graph.families))) * block.times
                for root in renews:
                    self.renewed[root] = self.renewed.get(root, 0.0) + written

    def _own(self, name: str) -> bool:
        return self.graph.tensors[name].storage is None

    def root(self, reference: str) -> str:
        """The tensor whose memory is meant; a carry is the layer's result."""
        name = base_name(reference)
        for _ in range(64):
            tensor = self.graph.tensors.get(name)
            if tensor is None or tensor.name in self.carried:
                name = self.carried.get(name, name)
                tensor = self.graph.tensors.get(name)
            if tensor is None or tensor.storage is None:
                return name
            name = tensor.storage
        return name

    def whole(self, tensor: Tensor) -> float:
        """Bytes of all its instances, one for each layer; 0 for a name of another tensor's memory."""
        if tensor.storage is not None or tensor.name in self.carried:
            return 0.0
        return float(tensor.bytes) * (self.graph.families.get(tensor.family, 1) if tensor.family else 1)

    def intermediate(self, root: str) -> bool:
        """Made by an operator of the graph."""
        return root in self.made

    def resident(self, tensor: Tensor, root: str) -> float:
        """Bytes of a tensor that were there before, less what a cache is given in this step."""
        size = float(tensor.bytes)
        own = self.graph.tensors.get(root)
        if own is not None and own.role == "kv_cache":
            layers = self.graph.families.get(own.family, 1) if own.family else 1
            return max(size - self.renewed.get(root, 0.0) / max(layers, 1), 0.0)
        return size


def whole_bound(graph: Graph, capacity: float, found: Sequence[Entry] | None = None) -> float:
    """Bytes that no schedule of the whole graph avoids, tiled or fused in any way; see the module's docstring."""
    found = entries(graph) if found is None else found
    tensors = _Tensors(graph, found)
    claimed, groups = _groups(found, tensors, capacity)
    counted: set[str] = set()
    total = 0.0
    for group in groups:
        resident = sum(_resident(e, tensors, counted, claimed=set()) * e.executions for e in group)
        free = _passing(group, tensors)
        total += max(resident, group[0].executions * (_together(group, capacity) - free))
    grouped = {id(e) for group in groups for e in group}
    for entry in found:
        if id(entry) not in grouped:
            total += _resident(entry, tensors, counted, claimed) * entry.executions
    return total


def _resident(entry: Entry, tensors: _Tensors, counted: set[str], claimed: set[str]) -> float:
    """Bytes of one execution that must come from memory, or stay in it, and that nobody else has counted."""
    graph, operator, total = tensors.graph, entry.node.operator, 0.0
    kind = operator_type(operator.type)
    for reference, tensor in _inputs(entry):
        root = tensors.root(reference)
        own = graph.tensors.get(root)
        if root in counted or root in claimed or tensors.intermediate(root) or own is None:
            continue
        if own.role not in RESIDENT_ROLES:
            continue
        counted.add(root)
        layers = graph.families.get(own.family, 1) if own.family else 1
        each = tensors.resident(tensor, root) * (layers if reference.endswith(ALL) else 1)
        shared = 1 if own.family == entry.block.family and own.family else entry.executions
        total += each / shared / (entry.block.times if shared == 1 else 1)
    passing = {t.name: t for r, t in _inputs(entry) if tensors.intermediate(tensors.root(r))}
    others = float(kind.reads(entry.node)) - sum(float(t.bytes) for t in passing.values())
    total = min(total, max(others, 0.0))  # it may read but a part: rows of a table, the experts in use
    ends = [r for r in operator.outputs if tensors.root(r) not in tensors.read and tensors.root(r) in tensors.made]
    stays = sum(float(graph.tensors[base_name(r)].bytes) for r in ends)
    if {tensors.root(r) for r in operator.outputs} & tensors.renewed.keys():
        stays += _in_place(entry, tensors)
    return total + stays / entry.block.times


def _in_place(entry: Entry, tensors: _Tensors) -> float:
    """Bytes that one execution writes into memory that no operator of the graph made."""
    outputs = zip(entry.node.operator.outputs, entry.node.outputs, strict=True)
    made = sum(float(t.bytes) for r, t in outputs if tensors.root(r) in tensors.made)
    return max(float(operator_type(entry.type).writes(entry.node)) - made, 0.0)


def _inputs(entry: Entry) -> Iterator[tuple[str, Tensor]]:
    """References and tensors that an operator reads."""
    return zip(entry.node.operator.inputs, entry.node.inputs, strict=True)


def _groups(found: Sequence[Entry], tensors: _Tensors, capacity: float) -> tuple[set[str], list[list[Entry]]]:
    """Products whose bounds add up: no input belongs to two groups; in a group all share one, the hub."""
    eligible = [e for e in found if len(e.works) == 1 and not isinstance(e.works[0], Pass | Rows)]
    eligible.sort(key=lambda e: -e.executions * e.bound(capacity))
    owner: dict[str, int] = {}
    hubs: list[str | None] = []
    groups: list[list[Entry]] = []
    for entry in eligible:
        roots = {tensors.root(r) for r in entry.node.operator.inputs}
        taken = [r for r in roots if r in owner]
        if not taken:
            for r in roots:
                owner[r] = len(groups)
            groups.append([entry])
            hubs.append(None)
            continue
        which = owner[taken[0]]
        same = entry.executions == groups[which][0].executions and isinstance(entry.works[0], Matmul)
        if (
            len(taken) == 1
            and same
            and hubs[which] in (None, taken[0])
            and isinstance(groups[which][0].works[0], Matmul)
        ):
            hubs[which] = taken[0]
            groups[which].append(entry)
            for r in roots:
                owner[r] = which
    return set(owner), groups


def _together(group: Sequence[Entry], capacity: float) -> float:
    """The bound of products that share one operand: that of all their columns."""
    if len(group) == 1:
        return group[0].works[0].bound(capacity) if not isinstance(group[0].works[0], Convolution) else (
            group[0].works[0].least(capacity)
        )  # fmt: skip
    works = [e.works[0] for e in group]
    products = [w for w in works if isinstance(w, Matmul)]
    count = sum(float(w.batch) * w.m * w.n * w.k for w in products)
    widths = [min(getattr(w, name) for w in products) for name in "abc"]
    return float(matmul_traffic(count, capacity, widths[0], widths[1], widths[2]))


def _passing(group: Sequence[Entry], tensors: _Tensors) -> float:
    """Bytes of intermediates that the group's operators read or make, each once."""
    seen: dict[str, float] = {}
    for entry in group:
        for reference, tensor in dict(_inputs(entry)).items():
            root = tensors.root(reference)
            own = tensors.graph.tensors.get(root)
            if tensors.intermediate(root) or own is None or own.role not in RESIDENT_ROLES:
                seen[tensor.name] = float(tensor.bytes)  # parts of one tensor each count
            elif own.role == "kv_cache":
                seen[tensor.name] = float(tensor.bytes) - tensors.resident(tensor, root)
        for reference, tensor in zip(entry.node.operator.outputs, entry.node.outputs, strict=True):
            if tensors.root(reference) in tensors.read:
                seen[f"made {reference}"] = float(tensor.bytes)
    return sum(seen.values())


@dataclass(frozen=True)
class Kept:
    """A plan: bytes moved in the step, and the tensors that stay on the chip from their maker to their last reader."""

    traffic: float
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Scheduled:
    """The scheduler's plan for whole tensors: bytes moved, and what no plan of whole tensors avoids."""

    traffic: float
    bound: float


def scheduled(graph: Graph, capacity: float, seconds: float) -> Scheduled | None:
    """The best plan found in so many seconds that brings whole tensors in and out (`peakline.solvers.schedule`).

    None where an operator's tensors do not fit together, or nothing was found in time.
    """
    from peakline.scheduling import problem_of
    from peakline.solvers.schedule import Infeasible, NotFound, schedule

    try:
        plan = schedule(problem_of(graph), int(capacity), time_limit=seconds)
    except (Infeasible, NotFound):
        return None
    moved = plan.traffic.load + plan.traffic.store
    return Scheduled(float(moved), float(plan.traffic.compulsory + plan.certificate.lower_bound))


@dataclass
class _Candidate:
    name: str
    bytes: float
    first: int
    last: int
    touches: Mapping[int, float]  # bytes saved, by place


_SHARES = 16  # sizes of the memory that tiles are found for, so that few are searched


def keep(graph: Graph, capacity: float, found: Sequence[Entry] | None = None) -> Kept | None:
    """The plan of the module's docstring; None where an operator fits in no tiling."""
    found = entries(graph) if found is None else found
    tensors = _Tensors(graph, found)
    room = [0.0] * len(found)
    saved = [0.0] * len(found)
    cost = [_cost(e, capacity, 0.0, 0.0) for e in found]
    if any(c is None for c in cost):
        return None
    names = []
    for one in sorted(
        _candidates(found, tensors), key=lambda c: -sum(c.touches.values()) / c.bytes / (c.last - c.first + 1)
    ):
        span = range(one.first, one.last + 1)
        if any(room[i] + one.bytes > capacity * (_SHARES - 1) / _SHARES for i in span):
            continue
        after = {i: _cost(found[i], capacity, room[i] + one.bytes, saved[i] + one.touches.get(i, 0.0)) for i in span}
        if any(c is None for c in after.values()):
            continue
        gain = sum(found[i].executions * ((cost[i] or 0.0) - (after[i] or 0.0)) for i in span)
        if gain > 0:
            names.append(one.name)
            for i in span:
                room[i] += one.bytes
                cost[i] = after[i]
                saved[i] += one.touches.get(i, 0.0)
    plan = Kept(sum(e.executions * (c or 0.0) for e, c in zip(found, cost, strict=True)), tuple(names))
    if sum(map(tensors.whole, graph.tensors.values())) > capacity:
        return plan
    return min(plan, _everything(found, tensors), key=lambda kept: kept.traffic)


def _everything(found: Sequence[Entry], tensors: _Tensors) -> Kept:
    """The plan where all tensors fit at once: what is there comes in once, what stays goes out once.

    What operators write beside results of their own lands in weights, states and caches, at most all of them.
    """
    known = [t for t in tensors.graph.tensors.values() if t.storage is None and t.name not in tensors.carried]
    own = [t for t in known if t.name in tensors.made]
    there = [t for t in known if t.name not in tensors.made and t.role in RESIDENT_ROLES]
    renewed = sum(entry.executions * _in_place(entry, tensors) for entry in found)
    size = sum(map(tensors.whole, there))
    stays = sum(tensors.whole(t) for t in own if t.name not in tensors.read)
    moved = size + min(renewed, size) + stays
    return Kept(moved, tuple(t.name for t in own if t.name in tensors.read))


def _cost(entry: Entry, capacity: float, taken: float, saved: float) -> float | None:
    """Bytes of one execution beside `taken` bytes of kept tensors, `saved` of which are its own operands."""
    share = capacity / _SHARES
    left = capacity - share * -(-taken // share)
    best = entry.best(left)
    return None if best is None else max(best[0] - saved, entry.moved - saved, 0.0)


def _candidates(found: Sequence[Entry], tensors: _Tensors) -> Iterator[_Candidate]:
    """Tensors made by an operator of a block and touched only by later ones of the same block and layer."""
    places = {e.operator: i for i, e in enumerate(found)}
    outside = {
        root for block in tensors.graph.blocks for c in block.carries.values() for root in (c.initial, c.following)
    }
    outside = {tensors.root(name) for name in outside}
    home: dict[str, Block] = {}
    touches: dict[str, dict[int, float]] = {}
    for block, operator in tensors.graph.operators():
        place = places.get(operator.name)
        if place is None:
            continue
        for side in (operator.inputs, operator.outputs):
            seen: dict[str, float] = {}  # a part of a tensor is worth its own bytes, all parts at most the whole
            for reference in dict.fromkeys(side):
                name = base_name(reference)
                root = tensors.root(reference)
                if side is operator.outputs and name == root and root not in home:
                    home[root] = block
                elif home.get(root) is not block or reference.endswith(ALL):
                    outside.add(root)
                seen[root] = seen.get(root, 0.0) + float(tensors.graph.tensors[name].bytes)
            for root, size in seen.items():
                own = tensors.graph.tensors.get(root)
                known = touches.setdefault(root, {})
                known[place] = known.get(place, 0.0) + (size if own is None else min(size, float(own.bytes)))
    for name in home:
        size = float(tensors.graph.tensors[name].bytes)
        if name not in outside and len(touches[name]) > 1 and size:
            yield _Candidate(name, size, min(touches[name]), max(touches[name]), touches[name])
