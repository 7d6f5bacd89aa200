"""What all GPU kernels share: starting a kernel, the reach of L2, and the few physical constants of the GPU model.

One set of constants serves every generation; a device enters through its public figures alone (units, clock, peaks,
bandwidth, L2 and shared memory sizes, TDP, compute capability). The values marked *fitted* were chosen on the bf16 rows
of the A100-SXM and H100-SXM tables of aiconfigurator 0.12 (Apache-2.0), attention's on their attention tables. Other
GPUs gave no value; which mechanisms are needed (clusters, L2 reach, power) was also judged on them. See `docs/cost.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from peakline.cost.machine import Machine
from peakline.cost.numeric import Ops, Real

__all__ = [
    "GPU", "GpuConstants", "Tiled", "async_copy", "l1_bytes", "l2_rate", "launch_seconds", "main_rate", "miss_fraction",
    "resident_threads",
]  # fmt: skip


class Tiled(NamedTuple):
    """What a tiled kernel takes: seconds (launch included), its launch, bytes and seconds per resource."""

    seconds: Real
    launch: Real
    traffic: dict[str, Real]
    limits: dict[str, Real]


@dataclass(frozen=True)
class GpuConstants:
    """Constants of mechanism, the same for every GPU.

    Attributes:
        launch_fixed, launch_cycles: seconds and SM cycles between dependent kernels in a CUDA graph (front-end
            fetch, block scheduling, drain). *Fitted*; NVIDIA reports about 1.5 µs plus the kernel ("Constant-time
            launch for straight-line CUDA graphs", 2024).
        load_cycles: cycles from asking for a tile until it lies in shared memory. *Fitted*; pointer chasing
            finds 470-660 cycles to DRAM and 200-280 to L2 (Luo et al., arXiv:2402.13499, H100, A100), to which the
            asynchronous copy and its barrier add.
        fill_cycles: cycles from the start of a thread block until its first product. *Fitted*, about one DRAM load.
        drain_cycles: cycles from the last product until the block's result is stored. *Fitted*.
        main_share: attainable share of the peak bandwidth of main memory. *Fitted*; DRAM refresh and read-write
            turnaround leave 0.91-0.94 (BabelStream; Luo et al.).
        l2_bytes_per_cycle: attainable bytes per cycle and SM out of L2. *Fitted*, of a port 64 wide.
        port_bytes_per_cycle: the SM's port to L2, and
        shared_bytes_per_cycle: shared memory's width: 32 banks of 4 B (CUDA C++ Programming Guide).
        exposed_async, exposed_sync: share of the shorter of compute and memory time that does not hide behind the
            longer, with and without asynchronous copies and products (TMA, wgmma, tcgen05). *Fitted*.
        reuse_distance: between two uses of an operand, this many times the operator's bytes pass through L2.
            Five in the measured replays (five rotating copies of the weights; aiconfigurator's collector).
        resident: share of L2 that the operands of one kernel can hold on to.
        stages: most tiles in flight per thread block; CUTLASS pipelines 3-8 deep.
        max_splits: most slices of the k loop; *fitted*. cuBLAS stops at 16-32.
        split_steps: fewest k steps worth a slice.
        stream_share: attainable share of main memory's peak in kernels that read and write at once; 0.83-0.90 in the
            NeuSight elementwise rows (A100, V100) and in BabelStream on A100 and H200.
        reduce_loads: load latencies that joining one pass over a row takes: partial results go through shared memory,
            two barriers, and the result back to all threads (`blockReduce`, aten/src/ATen/native/cuda/SoftMax.cu).
            Two, from rows of softmax on A100 that fill neither bandwidth nor a whole number of steps.
        exp_per_cycle: exponentials per cycle and SM: 16 in every generation (CUDA C++ Programming Guide, throughput of
            native arithmetic instructions).
        softmax_ops: scalar operations per score beside the exponential: scale, running maximum, subtraction, sum,
            rescaling, conversion (FlashAttention-2, arXiv:2307.08691, algorithm 1).
        attention_share: share of the matrix peak that the two small products of a tile reach. *Fitted*.
        chain_loads: load latencies in a row per thread block of attention: lengths, block table, Q, K, V, result, with
            a barrier each. *Fitted*.
        step_loads: least load latencies per step, in a pipeline of depth 1/step_loads.
        packed_rows: most query rows of a group of heads that share one tile (TensorRT-LLM's XQA kernels: 32).
        latent_dim: heads wider than this hold a shared latent vector (DeepSeek's MLA: 576), for which kernels pack
            every head of the group (FlashMLA: tiles of 64 heads).
        single_row_blocks: blocks per SM of the kernel for one query row, which keeps no tiles in shared memory.
            *Fitted*.
        key_tile: keys per step of a fused attention kernel.
        scan_channels, scan_chunk, scan_blocks: channels per block, steps per chunk and blocks per SM of a scan.
    """

    launch_fixed: float = 1.15e-6
    launch_cycles: float = 1950.0
    load_cycles: float = 800.0
    fill_cycles: float = 600.0
    drain_cycles: float = 250.0
    main_share: float = 0.95
    l2_bytes_per_cycle: float = 40.0
    port_bytes_per_cycle: float = 64.0
    shared_bytes_per_cycle: float = 128.0
    exposed_async: float = 0.28
    exposed_sync: float = 0.40
    reuse_distance: float = 5.0
    resident: float = 0.6
    stages: float = 8.0
    max_splits: float = 16.0
    split_steps: float = 2.0
    stream_share: float = 0.87
    reduce_loads: float = 2.0
    exp_per_cycle: float = 16.0
    softmax_ops: float = 8.0
    attention_share: float = 0.82
    chain_loads: float = 9.0
    packed_rows: float = 32.0
    latent_dim: float = 256.0
    single_row_blocks: float = 3.0
    key_tile: float = 128.0
    step_loads: float = 1.0
    scan_channels: float = 1.0
    scan_chunk: float = 2048.0
    scan_blocks: float = 8.0


GPU = GpuConstants()


def launch_seconds(machine: Machine, const: GpuConstants = GPU) -> float:
    """Seconds that starting one kernel adds: `launch_fixed` + `launch_cycles`/clock."""
    return const.launch_fixed + const.launch_cycles / machine.clock


def resident_threads(machine: Machine) -> float:
    """Most threads that live on one SM at once (CUDA C++ Programming Guide, technical specifications by capability)."""
    return {(7, 5): 1024.0, (8, 6): 1536.0, (8, 7): 1536.0, (8, 9): 1536.0, (12, 0): 1536.0}.get(
        machine.capability, 2048.0
    )


def l1_bytes(machine: Machine) -> float:
    """Bytes of L1 per SM: shared memory's array serves as L1 from Volta on (V100 whitepaper); 0 elsewhere."""
    return machine.shared if machine.capability >= (7, 0) else 0.0


def async_copy(machine: Machine) -> bool:
    """Whether tiles are copied and multiplied by asynchronous engines (TMA with wgmma or tcgen05).

    Compute capability 9.x and 10.x. Consumer Blackwell (12.x) multiplies with warp-synchronous `mma`, as Ampere does.
    """
    return machine.capability[0] in (9, 10)


def main_rate(machine: Machine, const: GpuConstants = GPU) -> float:
    """Attainable bytes/s of main memory; a calibrated device's own share where there is one."""
    return machine.bandwidth * machine.attainable.get("hbm", const.main_share)


def l2_rate(machine: Machine, const: GpuConstants = GPU) -> float:
    """Attainable bytes/s from L2 to all SMs: the fitted width per SM, at most the published bandwidth."""
    width = const.l2_bytes_per_cycle * machine.units * machine.clock
    cache = machine.cache
    return width if cache is None or cache.bandwidth is None else min(width, cache.bandwidth)


def l2_reach(machine: Machine) -> float:
    """Bytes of distinct data that L2 can serve to every SM.

    The big datacentre dies have two L2 partitions, each caching what its own half of the SMs reads (A100
    whitepaper, "L2 cache"; H100 and B200 alike), so data read by all SMs is held twice.
    """
    cache = machine.cache
    size = (cache.capacity or 0.0) if cache else 0.0
    return size / 2.0 if machine.capability in ((8, 0), (9, 0), (10, 0), (10, 3)) else size


def miss_fraction(ops: Ops, footprint: Real, machine: Machine, reuse: float) -> Real:
    """Share of an operator's bytes that main memory must supply when it runs again and again.

    Nothing misses while `reuse`·footprint stays within L2's reach; replacement that is not quite LRU lets the hits
    fade out over the next quarter instead of at once.
    """
    over = ops.maximum(reuse * footprint / max(l2_reach(machine), 1.0), 1e-9)
    return ops.minimum(ops.maximum((1.0 - 1.0 / over) / 0.2, 0.0), 1.0)
