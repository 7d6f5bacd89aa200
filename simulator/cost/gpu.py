"""What all GPU kernels share: starting a kernel, the reach of L2, and the few physical constants of the GPU model.

A device enters through its public figures (units, clock, peaks, bandwidth, L2 and shared memory sizes, TDP, compute
capability). Constants of mechanism, marked *fitted*, are medians over the GPUs of the same build (`build_of`) measured
in aiconfigurator 0.12's tables (Apache-2.0; `peakline.cost.gpu_shared`). A device that carries a calibration replaces
them with its own. How well the shared ones serve a GPU that took no part is in `docs/calibration.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import NamedTuple

from peakline.cost.gpu_shared import SHARED
from peakline.cost.machine import Machine
from peakline.cost.numeric import Ops, Real

__all__ = [
    "GPU", "KINDS", "GpuConstants", "Tiled", "async_copy", "build_of", "constants", "l1_bytes", "l2_rate",
    "launch_seconds", "main_rate", "miss_fraction", "powered", "resident_threads",
]  # fmt: skip

KINDS = ("gemm", "prefill", "decode", "stream")
"""Kinds of kernel that have constants of their own: matrix products (grouped ones and convolutions too), attention of
many queries and of one, and kernels that pass over memory."""


class Tiled(NamedTuple):
    """What a tiled kernel takes: seconds (launch included), its launch, bytes and seconds per resource."""

    seconds: Real
    launch: Real
    traffic: dict[str, Real]
    limits: dict[str, Real]


@dataclass(frozen=True)
class GpuConstants:
    """Constants of mechanism.

    Attributes:
        launch_fixed, launch_cycles: seconds and SM cycles between dependent kernels in a CUDA graph (front-end
            fetch, block scheduling, drain). *Fitted*; NVIDIA reports about 1.5 µs plus the kernel ("Constant-time
            launch for straight-line CUDA graphs", 2024).
        issue: seconds between kernels that a host starts one by one; 0: the device file's `software.launch`.
        load_cycles: cycles from asking for a tile until it lies in shared memory. *Fitted*; pointer chasing
            finds 470-660 cycles to DRAM and 200-280 to L2 (Luo et al., arXiv:2402.13499, H100, A100), to which the
            asynchronous copy and its barrier add.
        fill_cycles: cycles from the start of a thread block until its first product. *Fitted*: about one DRAM load
            where threads copy, a fraction of it where the next block's loads start before this one ends.
        drain_cycles: cycles from the last product until the block's result is stored. *Fitted*.
        main_share: attainable share of the peak bandwidth of main memory. *Fitted*; DRAM refresh and read-write
            turnaround leave 0.91-0.94 (BabelStream; Luo et al.).
        l2_bytes_per_cycle: attainable bytes per cycle and SM out of L2. *Fitted*, of a port 64 wide.
        port_bytes_per_cycle: the SM's port to L2, and
        shared_bytes_per_cycle: shared memory's width: 32 banks of 4 B (CUDA C++ Programming Guide).
        store_bytes_per_cycle: bytes of results that an SM writes out per cycle: from accumulators through shared
            memory to L2. *Fitted*.
        tensor_share: share of the matrix peak that a tile's products reach at full clock. *Fitted*.
        sustained: share of it that the power limit leaves at full use; 0: by `sustained_fraction`.
        exposed: share of the shorter of compute and memory time that does not hide behind the longer. *Fitted*.
        reuse_distance: between two uses of an operand in a program, this many times the operator's bytes pass through
            L2: a convention between results, read at once, and weights, read a step later.
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
        join_loads: load latencies that joining the parts of split keys takes: counters, partial sums, result. *Fitted*.
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
    issue: float = 0.0
    launch_cycles: float = 1950.0
    load_cycles: float = 800.0
    fill_cycles: float = 800.0
    drain_cycles: float = 150.0
    main_share: float = 0.95
    l2_bytes_per_cycle: float = 40.0
    port_bytes_per_cycle: float = 64.0
    shared_bytes_per_cycle: float = 128.0
    store_bytes_per_cycle: float = 9.0
    tensor_share: float = 0.95
    sustained: float = 0.0
    exposed: float = 0.30
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
    join_loads: float = 4.0
    packed_rows: float = 32.0
    latent_dim: float = 256.0
    single_row_blocks: float = 3.0
    key_tile: float = 128.0
    step_loads: float = 1.0
    scan_channels: float = 1.0
    scan_chunk: float = 2048.0
    scan_blocks: float = 8.0


GPU = GpuConstants()


@lru_cache(maxsize=256)
def constants(machine: Machine, kind: str) -> GpuConstants:
    """The constants for one kind of kernel on a machine: the shared ones, or the device's own where it is calibrated.

    Raises:
        ValueError: if the device's calibration names a kind or a constant that does not exist.
    """
    found = replace(GPU, **SHARED.get((kind, build_of(machine)), {}))
    own: dict[str, float] = {}
    for name, value in machine.attainable.items():
        of, _, constant = name.rpartition(".")
        if not of:
            continue  # a share that other kinds of device use
        if of not in KINDS or constant not in _NAMES:
            raise ValueError(
                f"{machine.name}: calibration of {name!r} is unknown; accepted: {', '.join(KINDS)}, a dot, "
                f"and one of {', '.join(_NAMES)}"
            )
        if of == kind:
            own[constant] = value
    if "launch_fixed" in own:
        own.setdefault("launch_cycles", 0.0)
    return replace(found, **own) if own else found


def build_of(machine: Machine) -> str:
    """Which GPUs share constants: `hopper`, `blackwell`, and without asynchronous engines `wide` or `narrow`, by L2.

    `narrow` are the dies for workstations and servers without high-bandwidth memory (compute capability x.5, x.6, x.9,
    12.x), whose L2 feeds an SM fewer bytes per cycle.
    """
    if async_copy(machine):
        return "hopper" if machine.capability[0] == 9 else "blackwell"
    return "wide" if machine.capability[0] < 7 or machine.capability in _TWO_PARTITIONS else "narrow"


_NAMES = tuple(field.name for field in fields(GpuConstants))
_TWO_PARTITIONS = ((7, 0), (8, 0), (9, 0), (10, 0), (10, 3))


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
    """Attainable bytes/s of main memory."""
    return machine.bandwidth * const.main_share


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
    return size / 2.0 if machine.capability in _TWO_PARTITIONS[1:] else size


def miss_fraction(ops: Ops, distance: Real, machine: Machine) -> Real:
    """Share of an operand's bytes that main memory must supply when `distance` bytes pass between two of its uses.

    Nothing misses while they stay within L2's reach. Replacement is close to LRU, under which a cyclic walk over more
    than the cache holds misses everywhere: warm weights in the tables of L40S and RTX PRO 6000 turn cold between 1.00
    and 1.07 times L2.
    """
    over = distance / max(l2_reach(machine), 1.0)
    return ops.minimum(ops.maximum((over - 1.0) / L2_EDGE, 0.0), 1.0)


L2_EDGE = 0.06
"""Width of that edge, in shares of L2's reach."""


def powered(ops: Ops, seconds: Real, at_peak: Real, sustained: float) -> Real:
    """Seconds under the power limit of work that takes `seconds` at full clock, `at_peak` of them multiplying.

    The limit binds on average power. Keeping the matrix engine busy all the time needs sustained⁻³ of the limit, being
    busy for a share u of the time u·sustained⁻³; where that exceeds 1 the clock falls, whose cube power follows, and
    the time grows by u^(1/3)/sustained (`peakline.cost.machine.sustained_fraction`).
    """
    if sustained >= 1.0:
        return seconds
    busy = ops.minimum(ops.maximum(at_peak / ops.maximum(seconds, 1e-12), 0.01), 1.0)
    root = ops.sqrt(ops.sqrt(busy))
    for _ in range(4):  # Newton's iteration for the cube root: elementary operations, so that arrays equal scalars
        root = (2.0 * root + busy / (root * root)) / 3.0
    return seconds * ops.maximum(root / sustained, 1.0)
