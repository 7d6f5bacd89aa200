"""Elementwise, reduction, copy and scan kernels on a GPU: limited by the bytes they pass over."""

from __future__ import annotations

from peakline.cost.gpu import GPU, GpuConstants, Tiled, l2_rate, launch_seconds, miss_fraction
from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["scan_tiled", "stream_tiled"]


def stream_tiled(
    machine: Machine,
    work: Real,
    kind: DType,
    launches: Real,
    reads: Real,
    writes: Real,
    *,
    const: GpuConstants = GPU,
) -> Tiled:
    """Seconds and traffic of `launches` kernels that pass `reads` + `writes` bytes and do `work` scalar operations.

        T = launches·(launch + fill) + max(missed / main rate, bytes / L2 rate, work / vector peak)

    Fill is two loads' latency: the first line in, the last result out. Main memory attains `stream_share` of its peak,
    less than in a GEMM because reads and writes interleave.
    """
    ops = ops_for(work, launches, reads, writes)
    launch = launch_seconds(machine, const) * launches
    moved = reads + writes
    missed = moved * miss_fraction(ops, moved, machine, const.reuse_distance)
    memory = machine.bandwidth * machine.attainable.get("stream", const.stream_share)
    l2 = l2_rate(machine, const)
    limits = {"compute": work / machine.vector_rate(kind), machine.main.name: missed / memory, "l2": moved / l2}
    streaming = ops.maximum(ops.maximum(limits["compute"], limits[machine.main.name]), limits["l2"])
    fill = launches * (2.0 * const.load_cycles / machine.clock)
    return Tiled(streaming + fill + launch, launch, {machine.main.name: missed, "l2": moved}, limits)


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
