"""Elementwise, reduction, copy and scan kernels on a GPU: limited by the bytes they pass over."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from peakline.cost.gpu import (
    GPU,
    GpuConstants,
    Tiled,
    l1_bytes,
    l2_rate,
    launch_seconds,
    miss_fraction,
    resident_threads,
)
from peakline.cost.machine import Machine
from peakline.cost.numeric import Ops, Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["RowWalk", "row_latency", "row_rereads", "scan_tiled", "stream_tiled"]


class RowWalk(NamedTuple):
    """How a kernel walks its rows; the fields of `Stream` of the same names. `rows` 0: there are none."""

    rows: Real
    passes: Real
    threads: Real
    steps: Real


NO_ROWS = RowWalk(0.0, 1.0, 128.0, 1.0)


def stream_tiled(
    machine: Machine,
    work: Real,
    kind: DType,
    launches: Real,
    reads: Real,
    writes: Real,
    *,
    again: Real = 0.0,
    walk: RowWalk = NO_ROWS,
    repeated: bool = False,
    const: GpuConstants = GPU,
) -> Tiled:
    """Seconds and traffic of `launches` kernels that pass `reads` + `writes` bytes and do `work` scalar operations.

        T = launches·(launch + fill) + max(missed / main rate, bytes / L2 rate, work / vector peak, walk)

    Fill is two loads' latency: the first line in, the last result out. Main memory attains `stream_share` of its peak,
    less than in a GEMM because reads and writes interleave. `again` more bytes are passed over by a later kernel, which
    finds them in L2 if all of them fit; rows are walked as `walk` says (`row_rereads`, `row_latency`).
    """
    ops = ops_for(work, launches, reads, writes, again, *walk)
    launch = launch_seconds(machine, const) * launches
    moved = reads + writes
    reuse = 1.0 if repeated else const.reuse_distance
    missed = moved * miss_fraction(ops, reuse * moved, machine)
    passed = moved
    if isinstance(again, np.ndarray) or again > 0.0:
        passed = passed + again
        missed = missed + again * miss_fraction(ops, ops.maximum(moved, again), machine)
    latency: Real = 0.0
    if isinstance(walk.rows, np.ndarray) or walk.rows > 0.0:
        from_l2, from_main = row_rereads(ops, reads, walk, machine)
        passed, missed = passed + from_l2, missed + from_main
        latency = row_latency(ops, walk, machine, const)
    memory = machine.bandwidth * const.stream_share
    l2 = l2_rate(machine, const)
    main = machine.main.name
    limits = {"compute": work / machine.vector_rate(kind), main: missed / memory, "l2": passed / l2}
    streaming = ops.maximum(ops.maximum(ops.maximum(limits["compute"], limits[main]), limits["l2"]), latency)
    fill = launches * (2.0 * const.load_cycles / machine.clock)
    return Tiled(streaming + fill + launch, launch, {main: missed, "l2": passed}, limits)


def row_blocks(ops: Ops, walk: RowWalk, machine: Machine) -> Real:
    """Rows in flight on one SM: one per group of `threads`, as many as its resident threads allow."""
    return ops.maximum(ops.floor(resident_threads(machine) / walk.threads), 1.0)


def row_rereads(ops: Ops, reads: Real, walk: RowWalk, machine: Machine) -> tuple[Real, Real]:
    """Bytes that the passes after the first fetch from L2, and those of them that L2 must fetch from main memory.

    Between two touches of a line, the rows in flight and their results, D = 2·rows in flight·row bytes on average, go
    through the cache. Rows are at different points of their walk, so the distance varies; with all distances from D/2
    to 3D/2 equally likely, a cache of C bytes that evicts the oldest line misses the share 3/2 − C/D, within 0 and 1.
    L1 sees the rows of its SM and L2 those of all.
    """
    rereads = (walk.passes - 1.0) * reads
    rows = ops.maximum(walk.rows, 1.0)
    per_unit = row_blocks(ops, walk, machine)
    row = reads / rows

    def missing(size: float, in_flight: Real) -> Real:
        distance = ops.maximum(2.0 * in_flight * row, 1.0)
        return ops.minimum(ops.maximum(1.5 - size / distance, 0.0), 1.0)

    cache = machine.cache
    size = (cache.capacity or 0.0) if cache else 0.0
    from_l2 = rereads * missing(l1_bytes(machine), ops.minimum(per_unit, ops.ceil(rows / machine.units)))
    return from_l2, from_l2 * missing(size, ops.minimum(per_unit * machine.units, rows))


def row_latency(ops: Ops, walk: RowWalk, machine: Machine, const: GpuConstants) -> Real:
    """Seconds that rows need when nothing but latency holds them: waves · passes · (steps + joining) · load latency.

    A pass asks for its loads step by step and ends in a reduction across the row's threads; the SMs hold
    `row_blocks` rows each, and further rows wait. Few rows leave SMs idle, and short ones their lanes.
    """
    waves = ops.ceil(walk.rows / (machine.units * row_blocks(ops, walk, machine)))
    return waves * walk.passes * (walk.steps + const.reduce_loads) * (const.load_cycles / machine.clock)


def scan_tiled(
    machine: Machine,
    batch: Real,
    steps: Real,
    width: Real,
    flops: Real,
    kind: DType,
    reads: Real,
    writes: Real,
    *,
    const: GpuConstants = GPU,
) -> Tiled:
    """Seconds and traffic of a selective scan: one kernel, states in registers, blocks over batch × channels.

    Each thread block keeps `scan_channels` channels and walks the steps in chunks of `scan_chunk` (Mamba's
    `selective_scan_fwd`: kNThreads·kNItems steps per chunk, arXiv:2312.00752 §3.3.2), a load latency per chunk that
    other blocks on the SM hide; the SMs therefore need batch·width/units channels each to be full.
    """
    ops = ops_for(batch, steps, width, reads, writes)
    base = stream_tiled(machine, flops, kind, 1.0, reads, writes, const=const)
    blocks = batch * ops.ceil(width / const.scan_channels)
    rounds = ops.ceil(blocks / (machine.units * const.scan_blocks))
    chain = rounds * ops.ceil(steps / const.scan_chunk) * (const.load_cycles / machine.clock)
    uneven = ops.maximum(ops.ceil(blocks / machine.units) * machine.units / ops.maximum(blocks, 1.0), 1.0)
    compute = base.limits["compute"] * uneven
    limits = {**base.limits, "compute": compute}
    seconds = ops.maximum(base.seconds, base.launch + ops.maximum(chain, compute))
    return Tiled(seconds, base.launch, base.traffic, limits)
