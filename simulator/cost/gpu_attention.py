"""Fused attention on a GPU (flash and its decoding form): tiles of queries against streams of keys.

A thread block owns one tile of queries of one head and walks the keys that the mask leaves it, a tile at a time. A step
is the two matrix products of the tile and its softmax, which share the SM: cores with asynchronous products overlap the
two partly, others run them in turn. Decoding has too few query tiles to fill the SMs, so the keys are split
between blocks and a second small kernel joins the parts.
"""

from __future__ import annotations

from peakline.cost.gpu import GPU, GpuConstants, Tiled, async_copy, l2_rate, launch_seconds, main_rate, miss_fraction
from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

__all__ = ["attention_tiled"]

STAGED_BYTES = 10.0
"""16-bit bytes through shared memory per score of the backward pass: P written and read once, dS written and read
twice (arXiv:2307.08691, algorithm 2)."""


def attention_tiled(
    machine: Machine,
    batch: Real,
    heads: Real,
    kv_heads: Real,
    queries: Real,
    keys: Real,
    pairs: Real,
    qk_dim: Real,
    v_dim: Real,
    kind: DType,
    kv_kind: DType,
    reads: Real,
    writes: Real,
    *,
    backward: bool = False,
    repeated: bool = False,
    const: GpuConstants = GPU,
) -> Tiled:
    """Seconds and traffic of softmax(QKᵀ)V without stored scores.

    Args:
        pairs: (query, key) pairs per head that the mask leaves.
        kind, kv_kind: formats of the products and of the stored keys and values.
        reads, writes: compulsory bytes of the operator.
        backward: the gradients: five products instead of two, which run in turn with the elementwise part, because
            the last three wait for dS, and dS for S and dP; the tiles of P and dS go through shared memory to
            become operands, and every step adds its part of dQ into a float32 buffer (arXiv:2307.08691,
            algorithm 2). Kernels before and after it sum dO·O and convert dQ.
        repeated: the same operands again and again, so that L2 may still hold them.
    """
    ops = ops_for(batch, heads, kv_heads, queries, keys, pairs, reads, writes)
    launch = launch_seconds(machine, const)
    flops_per_pair = 2.0 * (3.0 * qk_dim + 2.0 * v_dim) if backward else 2.0 * (qk_dim + v_dim)
    clock, units = machine.clock, float(machine.units)
    latency = const.load_cycles / clock
    peak, _, matrix = machine.rate(kind)
    peak = peak * ((const.sustained or machine.sustained) if matrix else 1.0)
    memory, l2 = main_rate(machine, const), l2_rate(machine, const)

    tile_keys = const.key_tile
    # the few query rows of the heads that share a key head are packed into one tile, if the library's tile takes them
    group = ops.maximum(heads / kv_heads, 1.0)
    most = ops.where(qk_dim > const.latent_dim, 2.0 * tile_keys, const.packed_rows)
    packed = queries * group <= most
    rows = ops.where(packed, queries * group, queries)
    resident = ops.where(rows <= 1.0, const.single_row_blocks, 1.0)
    tile_rows = ops.where(rows <= 64.0, ops.where(rows <= 16.0, 16.0, 64.0), 128.0)
    tiles_per_head = ops.ceil(rows / tile_rows)
    blocks = ops.maximum(batch * ops.where(packed, kv_heads, heads) * tiles_per_head, 1.0)

    # a masked tile still multiplies whole tiles along its edge: half a tile more on average
    mean_keys = pairs / ops.maximum(queries, 1.0)
    edge = ops.where(pairs < queries * keys, ops.minimum(tile_keys, tile_rows) / 2.0, 0.0)
    steps = ops.maximum(ops.ceil((mean_keys + edge) / tile_keys * 4.0) / 4.0, 0.5)
    longest = ops.maximum(ops.ceil(keys / tile_keys), 1.0)
    longest = ops.maximum(ops.where(pairs < queries * keys, ops.minimum(longest, 2.0 * steps), longest), steps)

    scores = tile_rows * tile_keys
    multiply = scores * flops_per_pair * units / (peak * const.attention_share)
    lanes = machine.vector_rate("fp32") / (2.0 * units * clock)
    staged = STAGED_BYTES * kind.bits / 16.0 / const.shared_bytes_per_cycle if backward else 0.0
    softmax = scores * (1.0 / const.exp_per_cycle + const.softmax_ops / (2.0 * lanes) + staged) / clock
    # without asynchronous products a warp issues its products and its softmax in turn (arXiv:2407.08608, §3.1)
    exposed = const.exposed if async_copy(machine) and not backward else 1.0
    beat = ops.maximum(multiply, softmax) + exposed * ops.minimum(multiply, softmax)

    splits = ops.minimum(ops.maximum(ops.floor(units / blocks), 1.0), ops.ceil(longest / 2.0))
    kv_step = tile_keys * (qk_dim + v_dim) * (kv_kind.bits / 8.0)
    fetched = blocks * steps * kv_step
    if backward:
        fetched = fetched + blocks * steps * tile_rows * qk_dim * 4.0
    chain = const.chain_loads * latency
    beat = ops.maximum(beat, latency * const.step_loads)
    per_block = chain + ops.maximum(steps / splits, 0.5) * beat
    rounds = ops.maximum(ops.ceil(blocks * splits / (units * resident)), 1.0)
    working = ops.maximum(rounds * per_block, chain + longest / splits * beat)
    reuse = 1.0 if repeated else const.reuse_distance
    missed = (reads + writes) * miss_fraction(ops, reuse * (reads + writes), machine)
    streaming = ops.maximum(missed / memory, fetched / l2)
    total = ops.maximum(working, streaming) + const.exposed * ops.minimum(working, streaming)
    joined = ops.where(
        splits > 1.0,
        launch + const.join_loads * latency + 4.0 * splits * batch * heads * queries * v_dim * 2.0 / l2,
        0.0,
    )
    if backward:  # the kernels around it: dO·O, and dQ from float32
        around = batch * heads * queries * (2.0 * v_dim * kind.bits / 8.0 + qk_dim * (8.0 + kind.bits / 8.0))
        missed = missed + around * miss_fraction(ops, around, machine)
        joined = joined + ops.maximum(around / l2, around * miss_fraction(ops, around, machine) / memory)
        launch = 3.0 * launch
    flops = flops_per_pair * batch * heads * pairs
    limits = {"compute": flops / peak, machine.main.name: missed / memory, "l2": fetched / l2}
    return Tiled(launch + total + joined, launch, {machine.main.name: missed, "l2": fetched}, limits)
