"""Matrix products on a GPU as a good library runs them: tiles, waves, split-K, pipelines, L2 reuse.

A thread block computes one rows × columns tile of C, walking k in steps of 128 bytes. A step takes the longest of

    multiply   2·rows·cols·step / (peak·sustained/units), or the shared-memory traffic that feeds it;
    fetch      the step's operands through L2, shared by all SMs, and through the SM's own port;
    latency    one load's latency over the tiles in flight,

and an SM works through ⌈blocks/units⌉ blocks, whose results it writes out between the products or beside them. Main
memory works beside it on compulsory bytes plus what L2 cannot hold between waves. The library's choice of tile and of
split-K is the fastest of a menu; the power limit stretches what would draw more on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from peakline.cost.gpu import (
    GPU,
    GpuConstants,
    Tiled,
    async_copy,
    l2_rate,
    launch_seconds,
    main_rate,
    miss_fraction,
    powered,
)
from peakline.cost.machine import Machine
from peakline.cost.numeric import Ops, Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["TILES", "TILES_ASYNC", "gemm_tiled"]

TILES = ((64, 16), (64, 64), (128, 64), (64, 128), (128, 128), (128, 256))
"""Block tiles (rows, columns) in every library's menu: CUTLASS's default profiler set and cuBLAS kernel names
(`..._64x64_...`, `..._128x256_...`); 64×16 stands for the thin kernels of decoding."""

TILES_ASYNC = (
    (64, 16), (64, 32), (64, 64), (128, 32), (128, 64), (128, 96), (128, 128), (128, 160), (128, 192), (128, 224),
    (128, 256), (256, 128),
)  # fmt: skip
"""Where one instruction multiplies 64 or 128 rows by any multiple of 8 columns up to 256 (wgmma, tcgen05), libraries
come with tiles in between, so that fewer products leave a wave half empty (cuBLAS 12 names `nvjet_..._128x160_...`)."""

STEP_BYTES = 128
"""Bytes of one row of an operand tile per k step: the 128-byte swizzle of TMA and of `ldmatrix` layouts."""


class Tile(NamedTuple):
    """One entry of the menu on one machine and for one set of formats. Times in seconds, sizes in bytes."""

    rows: float
    cols: float
    resident: float
    multiply: float
    latency: float
    row_bytes: float
    col_bytes: float
    epilogue: float
    block_rows: float
    block_cols: float


@lru_cache(maxsize=512)
def _tiles(machine: Machine, a: DType, b: DType, c: DType, const: GpuConstants) -> tuple[float, tuple[Tile, ...]]:
    """Elements of k in a step, and the menu's costs on this machine."""
    peak, _, matrix = machine.rate(a if a.bits >= b.bits else b)
    # the matrix engine's accumulators are rearranged in shared memory; other kernels store theirs as they lie
    store = const.store_bytes_per_cycle if matrix else const.port_bytes_per_cycle
    wide = max(a.bits, b.bits) / 8.0
    step = STEP_BYTES / wide
    rate = peak * const.tensor_share / machine.units
    menu = TILES_ASYNC if async_copy(machine) else TILES
    return step, tuple(_tile(machine, rows, cols, step, rate, store, a, b, c, const) for rows, cols in menu)


def _tile(
    machine: Machine,
    rows: int,
    cols: int,
    step: float,
    rate: float,
    store: float,
    a: DType,
    b: DType,
    c: DType,
    const: GpuConstants,
) -> Tile:
    row_bytes, col_bytes = rows * step * a.bits / 8.0, cols * step * b.bits / 8.0
    paired = machine.capability[0] == 10 and rows >= 128  # two SMs hold half of B each
    stage = row_bytes + (col_bytes / 2.0 if paired else col_bytes)
    depth = max(machine.shared, 64 * 1024.0) / stage
    resident = min(max(depth // 4, 1.0), 4.0)
    stages = max(min(depth // resident, const.stages), 1.0)
    fed_rows, fed_cols = _fed(machine, rows, cols)
    shared_bytes = stage + (rows / fed_rows) * col_bytes + (cols / fed_cols) * row_bytes
    busy = machine.clock * const.shared_bytes_per_cycle
    blocks = machine.units * resident
    across = (blocks * cols / rows) ** 0.5
    return Tile(
        float(rows),
        float(cols),
        resident,
        max(2.0 * rows * cols * step / rate, shared_bytes / busy),
        const.load_cycles / machine.clock / stages,
        row_bytes,
        col_bytes,
        rows * cols * c.bits / 8.0 / (store * machine.clock),
        across,
        blocks,
    )


def _fed(machine: Machine, rows: int, cols: int) -> tuple[float, float]:
    """Rows and columns of C that one read of shared memory serves: the shape of the MMA instruction or warp tile.

    wgmma multiplies 64 rows by up to 256 columns straight from shared memory; tcgen05 pairs two SMs for 256 rows, each
    reading its own half; earlier cores load a warp's tile into registers, 64×64 in the large kernels.
    """
    if machine.capability[0] == 9:
        return 64.0, float(min(cols, 256))
    if machine.capability[0] == 10:
        return 2.0 * min(rows, 128), float(cols)
    side = min(64.0, (rows * cols / 4.0) ** 0.5)
    return side, side


def _fetched(ops: Ops, machine: Machine, tile: Tile, down: Real, across: Real) -> Real:
    """Bytes that one block's k step draws from L2, after multicast within a cluster of 2 × 2 blocks.

    Thread block clusters (capability 9.0 on) fetch an operand once for all their blocks (CUDA Programming Guide,
    "Thread block clusters"; CUTLASS's sm90 and sm100 kernels with 2×1, 1×2 and 2×2 clusters): B for the blocks below
    each other, A for those side by side.
    """
    if not async_copy(machine):
        return tile.row_bytes + tile.col_bytes
    cols = ops.where(down >= 2, tile.col_bytes / 2.0, tile.col_bytes)
    return cols + ops.where(across >= 2, tile.row_bytes / 2.0, tile.row_bytes)


def _grid(ops: Ops, tile: Tile, batch: Real, m: Real, n: Real) -> tuple[Real, Real, Real]:
    """Tiles of C down and across, and in all."""
    down, across = ops.maximum(ops.ceil(m / tile.rows), 1.0), ops.maximum(ops.ceil(n / tile.cols), 1.0)
    return down, across, batch * down * across


def _at_least(
    ops: Ops, tile: Tile, tiles: Real, steps: Real, units: float, streaming: Real, const: GpuConstants
) -> Real:
    """Seconds below which a tile of the menu cannot stay, split or not: whole waves of its products, and `streaming`.

    Spares working a tile out whose products alone take longer than another's all; a hair below what rounding may do.
    """
    waves = ops.where(tiles + tiles > units, ops.ceil(tiles / units), tiles / units)
    working = waves * steps * (tile.multiply * (1.0 - 1e-12))
    return ops.maximum(working, streaming) + const.exposed * ops.minimum(working, streaming)


def gemm_tiled(
    machine: Machine,
    batch: Real,
    m: Real,
    n: Real,
    k: Real,
    formats: tuple[DType, DType, DType],
    reads: Real,
    writes: Real,
    *,
    unrolled: Real = 1.0,
    copies: Real | None = None,
    const: GpuConstants = GPU,
) -> Tiled:
    """Seconds and traffic of `batch` products C[m,n] = A[m,k]·B[k,n].

    Args:
        formats: of A, B and C in memory.
        reads, writes: compulsory bytes of the operator.
        unrolled: how often an input stands in A (taps of an implicit GEMM), 1 for a plain product.
        copies: the product runs again and again, with this many matrices B in turn; None: it is part of a program.

    Returns:
        Seconds with launch, launch seconds, bytes by level (`machine.main`, `l2`), seconds by resource.
    """
    ops = ops_for(batch, m, n, k, reads, writes)
    a, b, c = formats
    step, menu = _tiles(machine, a, b, c, const)
    launch = launch_seconds(machine, const)
    memory, l2 = main_rate(machine, const), l2_rate(machine, const)
    asynchronous = async_copy(machine)
    units, port = float(machine.units), const.port_bytes_per_cycle * machine.clock
    fill, drain = const.fill_cycles / machine.clock, const.drain_cycles / machine.clock
    cache = machine.cache
    holds = const.resident * ((cache.capacity or 0.0) if cache else 0.0)

    steps = ops.maximum(ops.ceil(k / step), 1.0)
    a_bytes, b_bytes = batch * m * k * (a.bits / 8.0) / unrolled, batch * n * k * (b.bits / 8.0)
    spills = a_bytes + b_bytes > holds
    compulsory = reads + writes
    if copies is None:
        cold = miss_fraction(ops, const.reuse_distance * compulsory, machine)
        missed, stored = compulsory * cold, writes * cold / memory
    else:
        cold = miss_fraction(ops, compulsory, machine)
        weights = miss_fraction(ops, compulsory + (copies - 1.0) * b_bytes, machine)
        missed = ops.maximum(compulsory - b_bytes, 0.0) * cold + b_bytes * weights
        stored = writes * cold / memory
    partial_sums = 8.0 * batch * m * n / l2  # written and read again, 4 bytes each, per slice

    def runs(tile: Tile, down: Real, across: Real, tiles: Real) -> Iterator[tuple[Real, Real, Real]]:
        """Seconds, bytes of main memory and bytes through L2: without and, where it can pay, with a split of k."""
        fetched = _fetched(ops, machine, tile, down, across)
        # a wave of blocks covers `rows_at_once` × `cols_at_once` tiles of C and reads each operand once
        cols_at_once = ops.minimum(across, tile.block_cols / ops.minimum(down, tile.block_rows))
        rows_at_once = ops.minimum(down, tile.block_cols / cols_at_once)
        again = a_bytes * (across / cols_at_once - 1.0) + b_bytes * (down / rows_at_once - 1.0)
        moved = missed + ops.where(spills, ops.maximum(again, 0.0), 0.0)
        streaming = moved / memory
        slices = ops.minimum(ops.floor(units / tiles), ops.floor(steps / const.split_steps))
        slices = ops.minimum(ops.maximum(slices, 1.0), const.max_splits)
        for split in (1.0, slices) if ops.any(slices > 1.0) else (1.0,):
            blocks = tiles * split
            mine = ops.ceil(blocks / units)
            together = ops.minimum(mine, tile.resident)
            active = ops.minimum(blocks, units * tile.resident)
            fetch = fetched * ops.maximum(active / l2, together / port)
            slice_steps = ops.ceil(steps / split)
            beat = ops.maximum(ops.maximum(tile.multiply * together, tile.latency), fetch)
            loop = slice_steps * beat
            if asynchronous:  # stores overlap the next tile's products
                working = mine / together * ops.maximum(loop, tile.epilogue * together) + fill
                working = working + (ops.minimum(tile.epilogue * together, loop) + drain)
            else:
                waves = ops.ceil(mine / tile.resident)
                working = mine / together * loop + fill
                working = working + ((tile.epilogue * together + drain) * waves + stored / together)
            total = ops.maximum(working, streaming) + const.exposed * ops.minimum(working, streaming)
            if split is slices:
                total = total + ops.where(split > 1.0, split * partial_sums + launch, 0.0)
            yield total, moved, blocks * slice_steps * fetched

    grids = [_grid(ops, tile, batch, m, n) for tile in menu]
    least = [_at_least(ops, tile, grid[2], steps, units, missed / memory, const) for tile, grid in zip(menu, grids)]
    first = min(range(len(menu)), key=lambda i: ops.total(least[i]))
    tried = list(runs(menu[first], *grids[first]))
    reached = tried[0][0]
    best: Real = float("inf")
    main_bytes: Real = 0.0
    l2_bytes: Real = 0.0
    for i, (tile, grid) in enumerate(zip(menu, grids)):
        if i != first and not ops.any(least[i] <= reached):
            continue
        for total, moved, crossed in tried if i == first else runs(tile, *grid):
            better = total < best
            main_bytes = ops.where(better, moved, main_bytes)
            l2_bytes = ops.where(better, crossed, l2_bytes)
            best = ops.where(better, total, best)
        reached = ops.minimum(reached, best)

    # without those engines, a product with one vector is left to kernels in which every warp walks its own row
    vector = ops.minimum(m, n) <= 1.0
    if not asynchronous and ops.any(vector):
        direct = ops.maximum(missed / memory, (a_bytes + b_bytes) / l2) + 2.0 * const.load_cycles / machine.clock
        better = vector & (direct < best)
        main_bytes = ops.where(better, missed, main_bytes)
        l2_bytes = ops.where(better, a_bytes + b_bytes, l2_bytes)
        best = ops.where(better, direct, best)

    peak, _, matrix = machine.rate(a if a.bits >= b.bits else b)
    sustained = (const.sustained or machine.sustained) if matrix else 1.0
    at_peak = 2.0 * batch * m * n * k / peak
    best = powered(ops, best, at_peak, sustained)
    limits = {
        "compute": at_peak / sustained,
        machine.main.name: main_bytes / memory,
        "l2": l2_bytes / l2,
    }
    return Tiled(best + launch, launch, {machine.main.name: main_bytes, "l2": l2_bytes}, limits)
