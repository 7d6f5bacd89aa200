"""Traffic of flash attention: tiles of queries walk the keys, scores never leave the chip.

Forward (T. Dao, arXiv:2307.08691, algorithm 1):

    for each head, each tile of QUERIES queries      load its rows of Q
        for each tile of KEYS keys it can see        load its rows of K and of V
        store its rows of O and their log-sum-exp

so Q and O move once and K and V once for every tile of queries, as far as the mask lets it see. A causal tile walks
whole tiles of keys up to its last query's own key; its lanes past the last key are masked.

Backward, with the deterministic split into two kernels instead of algorithm 2's atomic dQ: one kernel per tile of keys
walks the queries for dK and dV; one per tile of queries walks the keys for dQ; each forms the scores again. Before
them one pass sums dO·O.

`peakline.cost.gpu_attention` prices the fetches of K and V alone, those being what recurs, with a mean number of key
tiles for a causal mask, and takes algorithm 2 for the backward pass, as the libraries do. Without a mask and on
whole tiles its L2 traffic is the K and V of `attention` below, and a test says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peakline.cost.tiled.traffic import Traffic, ceil_div, power_of_two

__all__ = ["attention", "attention_backward", "attention_backward_footprint", "attention_footprint", "keys_walked",
           "queries_walked"]  # fmt: skip


def keys_walked(queries: int, keys: int, tile_queries: int, tile_keys: int, causal: bool) -> int:
    """Rows of K that all tiles of queries of one head load together.

    Tile i ends before query e = min((i + 1)·tile, …); with a causal mask its last query sees keys below
    e + keys - queries (the last query sees them all), and whole tiles of keys are walked.
    """
    tiles = ceil_div(queries, tile_queries)
    if not causal:
        return tiles * keys
    ends = ((i + 1) * tile_queries + keys - queries for i in range(tiles))
    return sum(min(keys, tile_keys * ceil_div(min(keys, end), tile_keys)) for end in ends)


def queries_walked(queries: int, keys: int, tile_queries: int, tile_keys: int, causal: bool) -> int:
    """Rows of Q that all tiles of keys of one head load together, in the backward pass.

    With a causal mask the tile from key j on starts at the first query that sees it, j - (keys - queries), rounded
    down to a tile of queries.
    """
    tiles = ceil_div(keys, tile_keys)
    if not causal:
        return tiles * queries
    firsts = (max(0, j * tile_keys - (keys - queries)) // tile_queries * tile_queries for j in range(tiles))
    return sum(max(0, queries - first) for first in firsts)


def _sequences(batch: int, queries: int, keys: int, lengths: Sequence[int] | None) -> Iterator[tuple[int, int]]:
    if lengths is None:
        yield from ((queries, keys) for _ in range(batch))
    else:
        yield from ((min(queries, length), min(keys, length)) for length in lengths)


def attention(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    dim: int,
    *,
    tile_queries: int,
    tile_keys: int,
    element: int,
    v_dim: int | None = None,
    causal: bool = False,
    lengths: Sequence[int] | None = None,
) -> Traffic:
    """Bytes of O = softmax(Q·Kᵀ·scale)·V and of each row's log-sum-exp (float32).

    Args:
        batch, heads, kv_heads, queries, keys: sizes; query heads that share a key head load it each for itself.
        dim, v_dim: elements of a query and key, and of a value (`dim` unless said otherwise).
        tile_queries, tile_keys: the tiles.
        element: bytes of one element of Q, K, V and O.
        causal: query i sees keys up to i + keys - queries.
        lengths: tokens of each sequence of the batch where they differ; those after them are neither read nor
            written, and every program reads its own length (4 bytes).
    """
    width = dim if v_dim is None else v_dim
    rows = read = 0
    for some_queries, some_keys in _sequences(batch, queries, keys, lengths):
        rows += heads * some_queries
        read += heads * keys_walked(some_queries, some_keys, tile_queries, tile_keys, causal)
    programs = batch * heads * ceil_div(queries, tile_queries)
    loads = {
        "q": element * rows * dim,
        "k": element * read * dim,
        "v": element * read * width,
        "lengths": 0 if lengths is None else 4 * programs,
    }
    return Traffic(loads, {"o": element * rows * width, "lse": 4 * rows})


def attention_backward(
    batch: int,
    heads: int,
    kv_heads: int,
    queries: int,
    keys: int,
    dim: int,
    *,
    tile_queries: int,
    tile_keys: int,
    element: int,
    v_dim: int | None = None,
    causal: bool = False,
    lengths: Sequence[int] | None = None,
) -> Traffic:
    """Bytes of dQ, dK and dV from dO, with the scores formed again from Q, K and the log-sum-exp.

    Three kernels: delta = Σ dO·O, a row each; dK and dV, where a tile of keys walks the queries of every head of its
    group, so that shared key heads are summed on the chip and stored once; dQ, which walks the keys as the forward
    pass. Arguments as for `attention`.
    """
    width = dim if v_dim is None else v_dim
    rows = own_keys = walked = read = 0
    for some_queries, some_keys in _sequences(batch, queries, keys, lengths):
        rows += heads * some_queries
        own_keys += kv_heads * some_keys
        walked += heads * queries_walked(some_queries, some_keys, tile_queries, tile_keys, causal)
        read += heads * keys_walked(some_queries, some_keys, tile_queries, tile_keys, causal)
    query_programs = batch * heads * ceil_div(queries, tile_queries)
    key_programs = batch * kv_heads * ceil_div(keys, tile_keys)
    sums = Traffic(
        {"o": element * rows * width, "do": element * rows * width},
        {"delta": 4 * rows},
    )
    of_keys = Traffic(
        {
            "k": element * own_keys * dim,
            "v": element * own_keys * width,
            "q": element * walked * dim,
            "do": element * walked * width,
            "lse": 4 * walked,
            "delta": 4 * walked,
        },
        {"dk": element * own_keys * dim, "dv": element * own_keys * width},
    )
    of_queries = Traffic(
        {
            "q": element * rows * dim,
            "do": element * rows * width,
            "lse": 4 * rows,
            "delta": 4 * rows,
            "k": element * read * dim,
            "v": element * read * width,
        },
        {"dq": element * rows * dim},
    )
    own_length = 0 if lengths is None else 4 * (2 * query_programs + key_programs)
    return sums + of_keys + of_queries + Traffic({"lengths": own_length})


def attention_footprint(tile_queries: int, tile_keys: int, dim: int, *, element: int, v_dim: int | None = None) -> int:
    """Bytes that one forward program holds: tiles of Q, K and V, float32 scores and outputs, a row's maximum and sum.

    Rows are held as blocks of a power of two, at least 16 (the least that `tl.dot` takes).
    """
    block, width = power_of_two(dim, 16), power_of_two(dim if v_dim is None else v_dim, 16)
    tiles = element * (tile_queries * block + tile_keys * (block + width))
    return tiles + 4 * (tile_queries * tile_keys + tile_queries * width + 2 * tile_queries)


def attention_backward_footprint(
    tile_queries: int, tile_keys: int, dim: int, *, element: int, v_dim: int | None = None
) -> int:
    """Bytes that the larger of the backward kernels holds: that of dK and dV.

    Tiles of Q, dO, K and V, float32 scores and their gradients, float32 dK and dV, log-sum-exp and delta of a tile.
    """
    block, width = power_of_two(dim, 16), power_of_two(dim if v_dim is None else v_dim, 16)
    tiles = element * (tile_queries + tile_keys) * (block + width)
    return tiles + 4 * (2 * tile_queries * tile_keys + tile_keys * (block + width) + 2 * tile_queries)
