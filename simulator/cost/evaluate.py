"""One kernel's three times on one machine, in plain float64: the arithmetic behind `price`.

Each kind of kernel says three things: its products and compute rate (for `bound`), the least traffic at each level (for
`io`), and its tiled model. `evaluate` puts them together so that bound ≤ io ≤ tiled by construction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from peakline.cost import mcu
from peakline.cost.generic import Products, generic_tiled, micro_tiled
from peakline.cost.gpu import GPU, Tiled, constants
from peakline.cost.gpu_attention import attention_tiled
from peakline.cost.gpu_gemm import gemm_tiled
from peakline.cost.gpu_stream import RowWalk, scan_tiled, stream_tiled
from peakline.cost.io_bounds import (
    attention_backward_traffic,
    attention_traffic,
    both_products_traffic,
    convolution_traffic,
    fused_attention_traffic,
    matmul_traffic,
)
from peakline.cost.machine import Machine
from peakline.cost.numeric import Ops, Real, ops_for
from peakline.models.dtypes import DType, dtype
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Scan, Stream

__all__ = ["Evaluation", "evaluate"]

_TF32 = dtype("tf32")

CLUSTER = 16
"""Most thread blocks that may share one fetch from L2 by multicast (CUDA Programming Guide: 8 portable, 16 on H100)."""

FEW_QUERIES = 8
"""Most queries of a sequence that decoding kernels take at once (speculative decoding verifies a few)."""

Values = tuple[Any, ...]
Traffic = Callable[[float, int], Real]
"""(fast memory in bytes, number of such memories) → least bytes into them."""


class Evaluation(NamedTuple):
    """The fields of `KernelCost`, in order."""

    bound: Real
    io: Real
    tiled: Real
    launch: Real
    traffic: dict[str, Real]
    io_lower_bound: dict[str, Real]
    limits: dict[str, Real]


class Plan(NamedTuple):
    """What a kind of kernel says of itself: seconds of arithmetic at peak, least traffic, and its tiled cost.

    `issue` is the calibrated time between kernels that the host starts one by one, 0 where there is none.
    """

    arithmetic: Real
    traffic: Traffic | None
    tiled: Tiled
    issue: float = 0.0


def evaluate(
    kind: type[Any],
    values: tuple[Any, ...],
    formats: tuple[Any, ...],
    machine: Machine,
    cuda_graph: bool,
    copies: Real | None = None,
) -> Evaluation:
    """All costs of one kernel. `values` are its sizes in declaration order, then reads and writes, as float64."""
    plan = _PLANS[kind](values, formats, machine, copies)
    reads, writes = values[-2], values[-1]
    ops = ops_for(*values)
    compulsory = reads + writes
    least = _least_traffic(ops, compulsory, plan.traffic, machine)
    supplied = compulsory
    if copies is not None:  # caches may still hold their capacity of the run before
        supplied = ops.maximum(compulsory - machine.onchip_bytes, 0.0)
        name = machine.main.name
        least[name] = ops.maximum(least[name] - machine.onchip_bytes, supplied)
    bound = ops.maximum(plan.arithmetic, supplied / machine.supply)
    io = ops.maximum(bound, least[machine.main.name] / machine.supply)
    for level in machine.levels[:-1]:
        if level.name in least and level.bandwidth:
            io = ops.maximum(io, least[level.name] / level.bandwidth)
    tiled = ops.maximum(plan.tiled.seconds, io)
    if not cuda_graph and (issue := plan.issue or machine.launch):
        launches = values[1] if kind is Stream else 1.0
        tiled = ops.maximum(tiled, launches * issue)
    traffic = {name: ops.maximum(moved, least[name]) for name, moved in plan.tiled.traffic.items() if name in least}
    busiest: Real = 0.0
    for seconds in plan.tiled.limits.values():
        busiest = ops.maximum(busiest, seconds)
    rest = ops.maximum(tiled - plan.tiled.launch - busiest, 0.0)
    limits = {**plan.tiled.limits, "launch": plan.tiled.launch, "latency": rest}
    return Evaluation(bound, io, tiled, plan.tiled.launch, traffic, least, limits)


def _least_traffic(ops: Ops, compulsory: Real, traffic: Traffic | None, machine: Machine) -> dict[str, Real]:
    """Least bytes out of main memory and out of the shared cache nearest to the units, by level name.

    Main memory feeds all on-chip memory together; the cache feeds private memories, of which a cluster of units may
    share one fetch.
    """
    name = machine.main.name
    if traffic is None:
        least = {name: compulsory}
        if machine.cache is not None:
            least[machine.cache.name] = compulsory
        return least
    least = {name: ops.maximum(compulsory, traffic(machine.onchip_bytes, 1))}
    if machine.cache is not None:
        shared = CLUSTER if machine.capability[0] >= 9 else 1
        copies = max(machine.units // shared, 1)
        own = machine.private_bytes * machine.units / copies
        least[machine.cache.name] = ops.maximum(compulsory, traffic(own, copies))
    return least


def _gemm(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    batch, m, n, k, reads, writes = values
    return _products(batch, m, n, k, 2.0 * batch * m * n * k, formats, reads, writes, machine, copies)


def _grouped(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    """Groups of equal size: the mean; skewed routing makes the fullest expert wait longer than this says."""
    groups, rows, n, k, reads, writes = values
    ops = ops_for(*values)
    groups = ops.maximum(groups, 1.0)
    m = ops.ceil(rows / groups)
    return _products(groups, m, n, k, 2.0 * rows * n * k, formats, reads, writes, machine, copies)


def _products(
    batch: Real,
    m: Real,
    n: Real,
    k: Real,
    flops: Real,
    formats: tuple[Any, ...],
    reads: Real,
    writes: Real,
    machine: Machine,
    copies: Real | None,
) -> Plan:
    a, b, c = formats
    wide = a if a.bits >= b.bits else b
    issue = 0.0
    if machine.kind == "gpu":
        const = constants(machine, "gemm")
        issue = const.issue
        tiled = gemm_tiled(machine, batch, m, n, k, (a, b, c), reads, writes, copies=copies, const=const)
    elif machine.micro is not None:
        tiled = micro_tiled(machine, mcu.products(machine.micro, batch, m, n, k, wide, b), reads + writes)
    else:
        widths = (a.bits / 8.0, b.bits / 8.0, c.bits / 8.0)
        tiled = generic_tiled(machine, ((batch, m, n, k),), 0.0, wide, 1.0, reads, writes, widths)

    def traffic(capacity: float, copies: int) -> Real:
        return matmul_traffic(flops / 2.0, capacity, a.bits / 8.0, b.bits / 8.0, c.bits / 8.0, copies)

    return Plan(flops / machine.rate(wide)[0], traffic, tiled, issue)


def _convolution(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    """Implicit GEMM per group, or on a GPU the direct kernel where groups are too narrow for tiles (depthwise).

    float32 convolutions multiply in TF32 where a GPU has it: PyTorch's default, unlike for matrix products
    (`torch.backends.cudnn.allow_tf32`; "Numerical accuracy", PyTorch documentation). Operands whose channels lie apart
    are first converted for the matrix engine, and the result back: a copy of each (`nchwToNhwcKernel`).
    """
    batch, in_channels, out_channels, groups, taps, in_space, space, reads, writes = values
    ops = ops_for(*values)
    a, b, c, transposed, channels_last = formats
    wide = a if a.bits >= b.bits else b
    if wide.name == "fp32" and "tf32" in machine.matrix and machine.kind == "gpu":
        a = b = wide = _TF32
    narrow_in, narrow_out = in_channels / groups, out_channels / groups
    unrolled: Real
    if transposed:  # every input position is scattered to `taps` outputs
        m, n, k, unrolled = batch * in_space, taps * narrow_out, narrow_in, 1.0
    else:  # every output position gathers `taps` inputs
        m, n, k, unrolled = batch * space, narrow_out, taps * narrow_in, ops.maximum(taps, 1.0)
    flops = 2.0 * groups * m * n * k
    if machine.kind == "gpu":
        const, passing = constants(machine, "gemm"), constants(machine, "stream")
        shape = (groups, m, n, k)
        implicit = gemm_tiled(machine, *shape, (a, b, c), reads, writes, unrolled=unrolled, copies=copies, const=const)
        direct = stream_tiled(machine, flops, wide, 1.0, reads, writes, const=passing)
        if not channels_last and machine.rate(wide)[2]:
            conversions = stream_tiled(machine, 0.0, wide, 3.0, reads + writes, reads + writes, const=passing)
            implicit = _in_turn(implicit, conversions)
        tiled = _faster(ops, implicit, direct)
    elif machine.micro is not None and not transposed:
        window = mcu.Window(batch, out_channels, narrow_in, taps, in_space, space)
        tiled = micro_tiled(machine, mcu.convolution(machine.micro, window, groups, wide, b), reads + writes)
    else:
        shared = (a.bits / 8.0 / unrolled, b.bits / 8.0, c.bits / 8.0)
        tiled = generic_tiled(machine, ((groups, m, n, k),), 0.0, wide, 1.0, reads, writes, shared)

    def traffic(capacity: float, copies: int) -> Real:
        widths = (a.bits / 8.0, b.bits / 8.0, c.bits / 8.0)
        return convolution_traffic(flops / 2.0, ops.maximum(taps, 1.0), capacity, *widths, copies)

    return Plan(flops / machine.rate(wide)[0], traffic, tiled)


def _in_turn(first: Tiled, second: Tiled) -> Tiled:
    """One after the other: everything adds up."""

    def add(a: dict[str, Real], b: dict[str, Real]) -> dict[str, Real]:
        return {name: a[name] + b[name] for name in a}

    return Tiled(
        first.seconds + second.seconds,
        first.launch + second.launch,
        add(first.traffic, second.traffic),
        add(first.limits, second.limits),
    )


def _faster(ops: Ops, first: Tiled, second: Tiled) -> Tiled:
    return _where(ops, first.seconds <= second.seconds, first, second)


def _where(ops: Ops, wins: Any, first: Tiled, second: Tiled) -> Tiled:
    def choose(a: dict[str, Real], b: dict[str, Real]) -> dict[str, Real]:
        return {name: ops.where(wins, a[name], b[name]) for name in a}

    return Tiled(
        ops.where(wins, first.seconds, second.seconds),
        ops.where(wins, first.launch, second.launch),
        choose(first.traffic, second.traffic),
        choose(first.limits, second.limits),
    )


def _attention(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    batch, heads, kv_heads, queries, keys, pairs, qk_dim, v_dim, reads, writes = values
    kind, kv_kind, backward = formats
    ops = ops_for(*values)
    issue = 0.0
    per_pair = 3.0 * qk_dim + 2.0 * v_dim if backward else qk_dim + v_dim
    flops = 2.0 * batch * heads * pairs * per_pair
    if machine.kind == "gpu":
        shape = (batch, heads, kv_heads, queries, keys, pairs, qk_dim, v_dim, kind, kv_kind, reads, writes)

        def priced(of: str) -> Tiled:
            const, again = constants(machine, of), copies is not None
            if backward:  # the kernels before and after it are streams
                begun = constants(machine, "stream")
                const = replace(const, launch_fixed=begun.launch_fixed, launch_cycles=begun.launch_cycles)
            return attention_tiled(machine, *shape, backward=backward, repeated=again, const=const)

        issue = constants(machine, "decode").issue
        # every head of a latent fills whole tiles, which kernels for many queries multiply
        few = (queries <= FEW_QUERIES) & (qk_dim <= GPU.latent_dim)
        if backward or not ops.any(few):
            tiled = priced("prefill")
        elif not isinstance(few, bool) and not few.all():
            tiled = _where(ops, few, priced("decode"), priced("prefill"))
        else:
            tiled = priced("decode")
    else:
        seen = pairs / ops.maximum(queries, 1.0)
        products: tuple[Products, ...] = (
            (batch * heads, queries, seen, per_pair - v_dim),
            (batch * heads, queries, v_dim, seen),
        )
        softmax = 10.0 * batch * heads * pairs
        tiled = generic_tiled(machine, products, softmax, kind, 1.0, reads, writes)

    q, k = kind.bits / 8.0, kv_kind.bits / 8.0
    everything = batch * (heads * queries * qk_dim * q + kv_heads * keys * (qk_dim + v_dim) * k)
    latent = ops.where(reads < everything, 2.0, 1.0)  # V is a part of K, as in a latent cache

    def traffic(capacity: float, copies: int) -> Real:
        """The largest of the bounds that hold: from the scores alone, from both products, from the gradients'."""
        each = batch * heads * pairs
        least = ops.maximum(
            attention_traffic(each, qk_dim, capacity, q, k, copies),
            fused_attention_traffic(each, qk_dim, v_dim, capacity, q, k, k, q, copies, latent=latent),
        )
        counted = both_products_traffic(each, qk_dim, v_dim, capacity, q, k, k, q, min(q, k), copies, latent=latent)
        least = ops.maximum(least, counted)
        if not backward:
            return least
        return ops.maximum(least, attention_backward_traffic(each, qk_dim, v_dim, capacity, q, k, k, q, copies))

    return Plan(flops / machine.rate(kind)[0], traffic, tiled, issue)


def _stream(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    work, launches, rows, passes, threads, steps, again, reads, writes = values
    (kind,) = formats
    if machine.kind == "gpu":
        walk = RowWalk(rows, passes, threads, steps)
        passing, warm = constants(machine, "stream"), copies is not None
        tiled = stream_tiled(
            machine, work, kind, launches, reads, writes, again=again, walk=walk, repeated=warm, const=passing
        )
    elif machine.micro is not None:
        tiled = micro_tiled(machine, mcu.stream(machine.micro, reads, writes, kind), reads + writes)
    else:
        tiled = generic_tiled(machine, (), work, kind, launches, reads, writes)
    return Plan(work / _scalar_peak(machine, kind), None, tiled)


def _scan(values: Values, formats: tuple[Any, ...], machine: Machine, copies: Real | None) -> Plan:
    batch, steps, width, state, per_state, reads, writes = values
    (kind,) = formats
    flops = per_state * batch * steps * width * state
    if machine.kind == "gpu":
        const = constants(machine, "stream")
        tiled = scan_tiled(machine, batch, steps, width, flops, kind, reads, writes, const=const)
    else:
        tiled = generic_tiled(machine, (), flops, kind, 1.0, reads, writes)
    return Plan(flops / _scalar_peak(machine, kind), None, tiled)


def _scalar_peak(machine: Machine, kind: DType) -> float:
    """The best rate that scalar work in `kind` could run at: its own if listed (packed 16-bit), or the widened one."""
    return max(machine.vector_rate(kind), machine.vector.get(kind.name, 0.0))


_PLANS: dict[type[Any], Callable[[Values, tuple[Any, ...], Machine, Real | None], Plan]] = {
    Gemm: _gemm,
    GroupedGemm: _grouped,
    Convolution: _convolution,
    Attention: _attention,
    Stream: _stream,
    Scan: _scan,
}
