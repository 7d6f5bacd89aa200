"""Attention, MLPs and chains with their intermediate on chip: formulas against simulations, tilings against bounds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import Element, replay

from peakline.io_complexity.cascade import Cascade, best_cascade, room, tiled
from peakline.io_complexity.fused import Attention, MatmulChain, Mlp, backward_tilings
from peakline.io_complexity.mask import Mask
from peakline.models.operators.attention import masked_pairs

ROLES = {"L": "loaded", "R": "loaded", "V": "loaded", "O": "stored", "stats": "stored", "scores": "scratch"}
KEEPS = list(product((True, False), repeat=2))


def blocks(size: int, step: int) -> list[range]:
    return [range(i, min(i + step, size)) for i in range(0, size, step)]


def walk(work: Cascade, rows: int, columns: int, keep: tuple[bool, bool], outside: str) -> Iterator[set[Element]]:
    """The loops of one cascade, written out: each step's elements, what stays included."""
    over_rows, over_columns = blocks(work.mask.queries, rows), blocks(work.mask.keys, columns)
    tiles = (
        product(over_rows, over_columns) if outside == "rows" else ((i, j) for j, i in product(over_columns, over_rows))
    )
    for block, across in tiles:
        always: set[Element] = {("stats", i, n) for i in block for n in range(work.stats)}
        if outside == "rows":
            always |= {("L", i, x) for i in block for x in range(work.inner) if keep[0]}
            always |= {("O", i, x) for i in block for x in range(work.outer) if keep[1]}
        else:
            always |= {("R", j, x, g) for j in across for x in range(work.inner) for g in range(work.gates) if keep[0]}
            always |= {("V", j, x) for j in across for x in range(work.outer) if keep[1]}
        scores: set[Element] = {("scores", i, j) for i in block for j in across}
        partial: set[Element] = {("scores", i, j, g) for i in block for j in across for g in range(1, work.gates)}
        for x in range(work.inner):
            slices: set[Element] = {("L", i, x) for i in block}
            yield always | scores | partial | slices | {("R", j, x, g) for j in across for g in range(work.gates)}
        for x in range(work.outer):
            yield always | scores | {("V", j, x) for j in across} | {("O", i, x) for i in block}


def fetched(work: Cascade, rows: int, columns: int, keep: tuple[bool, bool], outside: str, policy: str) -> float:
    sizes = {"L": work.l, "R": work.r, "V": work.v, "O": work.o, "stats": work.score, "scores": work.score}
    capacity = room(work, (rows, 1), columns, keep, outside)
    moved = replay(walk(work, rows, columns, keep, outside), capacity, policy, ROLES, sizes)
    return moved - work.mask.queries * work.stats * work.score  # the last figures need not be stored


@pytest.mark.parametrize("policy", ["lru", "belady"])
@pytest.mark.parametrize("outside", ["rows", "columns"])
@pytest.mark.parametrize("keep", KEEPS)
def test_lru_and_belady_fetch_what_the_formula_says_of_attention(policy, outside, keep):
    """FlashAttention-2 keeps Q and O while keys pass, FlashAttention K and V while queries pass, and all between."""
    work = Cascade(Mask(6, 8), 5, 5, stats=2, l=1, r=1, v=1, o=1, score=1)
    for rows, columns in ((1, 1), (2, 2), (3, 4), (2, 1), (1, 2)):
        said = tiled(work, (rows, 1), columns, keep, outside).traffic
        assert fetched(work, rows, columns, keep, outside, policy) == said


@pytest.mark.parametrize("outside", ["rows", "columns"])
@pytest.mark.parametrize("keep", KEEPS)
def test_lru_fetches_what_the_formula_says_of_a_gated_mlp_and_belady_little_less(outside, keep):
    """The second phase holds one gate less, and optimal replacement puts that room to use."""
    work = Cascade(Mask(6, 8), 4, 4, gates=2, l=1, r=1, v=1, o=1, score=1)
    for rows, columns in ((2, 2), (3, 4), (2, 1)):
        said = tiled(work, (rows, 1), columns, keep, outside)
        assert fetched(work, rows, columns, keep, outside, "lru") == said.traffic
        assert 0.7 * said.traffic <= fetched(work, rows, columns, keep, outside, "belady") <= said.traffic


@pytest.mark.parametrize("policy", ["lru", "belady"])
@pytest.mark.parametrize("keep", KEEPS)
def test_lru_and_belady_fetch_what_the_formula_says_of_two_products(policy, keep):
    work = Cascade(Mask(6, 4), 7, 7, l=2, r=2, v=2, o=2, score=2)
    for rows, columns in ((1, 1), (2, 2), (3, 4), (6, 1)):
        said = tiled(work, (rows, 1), columns, keep, "rows").traffic
        assert fetched(work, rows, columns, keep, "rows", policy) == said


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_ragged_blocks_are_counted_exactly_too(data):
    sizes = [data.draw(st.integers(1, 6)) for _ in range(4)]
    work = Cascade(Mask(*sizes[:2]), *sizes[2:], stats=data.draw(st.integers(0, 2)), gates=data.draw(st.integers(1, 2)))
    rows, columns = data.draw(st.integers(1, sizes[0])), data.draw(st.integers(1, sizes[1]))
    keep, outside = data.draw(st.sampled_from(KEEPS)), data.draw(st.sampled_from(["rows", "columns"]))
    said = tiled(work, (rows, 1), columns, keep, outside)
    assert fetched(work, rows, columns, keep, outside, "belady") <= said.traffic


cascades = st.builds(
    Cascade,
    st.builds(Mask, st.integers(1, 60), st.just(60), st.booleans()),
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 3),
    st.sampled_from([1, 4]),
    st.integers(1, 2),
    st.sampled_from([0, 2]),
    l=st.sampled_from([1, 2]),
    r=st.sampled_from([1, 2]),
)


@settings(max_examples=300, deadline=None)
@given(cascades, st.data())
def test_no_tiling_of_a_cascade_beats_the_bound(work, data):
    rows = (data.draw(st.integers(1, work.mask.queries)), data.draw(st.sampled_from([1, work.group])))
    columns = data.draw(st.integers(1, work.mask.keys))
    keep, outside = data.draw(st.sampled_from(KEEPS)), data.draw(st.sampled_from(["rows", "columns"]))
    found = tiled(work, rows, columns, keep, outside)
    assert found.traffic >= work.bound(found.footprint)


@settings(max_examples=100, deadline=None)
@given(cascades, st.floats(10, 20_000), st.integers(1, 3))
def test_the_best_tiling_fits_and_nothing_beats_the_bound_at_any_capacity(work, capacity, passes):
    found = best_cascade(work, capacity, passes)
    if found is not None:
        assert found.footprint <= capacity
        assert found.traffic >= work.bound(capacity) * (1 - 1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.integers(1, 6), st.integers(8, 200))
def test_the_tiling_found_is_the_best_of_all_there_are(queries, keys, inner, outer, elements):
    work = Cascade(Mask(queries, keys), inner, outer, stats=2, l=1, r=1, v=1, o=1, score=1)
    every = [
        tiled(work, (rows, 1), columns, keep, outside)
        for rows in range(1, queries + 1)
        for columns in range(1, keys + 1)
        for keep in KEEPS
        for outside in ("rows", "columns")
    ]
    fitting = [t.traffic for t in every if t.footprint <= elements]
    found = best_cascade(work, float(elements))
    assert (found is None) == (not fitting)
    if found is not None:
        assert found.traffic <= 1.05 * min(fitting)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.booleans(), st.one_of(st.none(), st.integers(1, 60)), st.data())
def test_masks_are_counted_as_row_by_row(queries, more, causal, window, data):
    keys = queries + more
    mask = Mask(queries, keys, causal, window if causal else None)
    seen = [
        [j for j in range(keys) if not causal or (j <= i + more and (not window or j > i + more - window))]
        for i in range(queries)
    ]
    assert mask.pairs == sum(map(len, seen)) == masked_pairs(queries, keys, causal, mask.window)
    rows, columns = data.draw(st.integers(1, queries)), data.draw(st.integers(1, keys))
    by_rows = [len(set().union(*seen[i : i + rows])) for i in range(0, queries, rows)]
    assert mask.seen(rows).total() == sum(by_rows)
    seeing = [{i for i in range(queries) if j in seen[i]} for j in range(keys)]
    by_columns = [len(set().union(*seeing[j : j + columns])) for j in range(0, keys, columns)]
    assert mask.seeing(columns).total() == sum(by_columns)


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_attention_comes_within_a_fifth_of_its_bound_where_memory_is_a_few_times_d_squared(dim):
    work = Attention(1 << 19, 1 << 19, dim, element=1)
    for capacity in (8 * dim**2, 32 * dim**2, 128 * dim**2):
        found = work.best(capacity)
        assert found is not None
        assert 1 <= found.traffic / work.bound(capacity) < 1.4
    assert found.traffic / work.bound(capacity) < 1.2


@pytest.mark.parametrize("dim", [32, 64, 128])
def test_attention_is_within_two_and_a_half_of_its_bound_at_every_capacity(dim):
    work = Attention(4096, 4096, dim)
    for power in range(10, 25):
        found = work.best(2.0**power)
        assert found is not None
        assert found.traffic <= 2.5 * work.bound(2.0**power)


def test_flash_tiles_are_what_is_found_for_attention():
    """Dao's analysis: with S = rows·2d, K and V come in once for each block of rows, 2·N·d·(N/rows)."""
    found = Attention(8192, 8192, 128, passes=1).best(192 * 1024)
    assert found is not None
    assert found.strategy == "Q and O kept, blocks of rows outside"
    rows = found.tile["rows"]
    assert rows == pytest.approx(192 * 1024 / 2 / 256, rel=0.05)
    assert found.traffic == 2 * (2 * 8192 * 128 + -(-8192 // rows) * 2 * 8192 * 128)


def test_one_pass_moves_least_where_a_row_of_scores_is_longer_than_q_and_o():
    for capacity in (64 * 1024, 256 * 1024, 1 << 20):
        one, two, three = (Attention(16384, 16384, 128, passes=p).best(capacity) for p in (1, 2, 3))
        assert one.traffic < two.traffic < three.traffic


def test_more_passes_move_less_where_a_row_of_scores_is_shorter_than_a_row_of_q_and_o():
    """Short memories, wide heads: holding a row of scores is cheaper than holding Q and O."""
    short = [Attention(65536, 64, 512, passes=p).best(64 * 1024) for p in (1, 2, 3)]
    assert short[1].traffic == short[2].traffic <= short[0].traffic
    assert "whole rows of scores" in short[1].strategy


def test_the_footprint_of_one_pass_does_not_grow_with_the_keys():
    short, long = (Attention(1024, keys, 64) for keys in (1024, 65536))
    assert short.footprint(128, 1) == long.footprint(128, 1)
    assert long.footprint(128, 2) > 30 * short.footprint(128, 1)


def test_where_everything_fits_every_number_of_passes_moves_compulsory_bytes():
    for passes in (1, 2, 3):
        work = Attention(512, 512, 64, passes=passes)
        assert work.best(1 << 24).traffic == work.compulsory == work.bound(1 << 24)


def test_a_fourth_pass_is_refused():
    with pytest.raises(ValueError, match="passes: 1, 2 or 3, got 4"):
        Attention(8, 8, 8).with_passes(1e6, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.sampled_from([8, 32]), st.booleans(),
    st.sampled_from([(1, 1), (8, 2)]), st.floats(300, 200_000),
)  # fmt: skip
def test_no_backward_tiling_beats_its_bound(queries, more, dim, causal, heads, capacity):
    work = Attention(queries, queries + more, dim, heads=heads[0], kv_heads=heads[1], causal=causal, backward=True)
    found = work.best(capacity)
    if found is not None:
        assert found.footprint <= capacity
        assert found.traffic >= work.bound(capacity)


def backward_steps(work: Cascade, rows: int, columns: int) -> tuple[list[set[Element]], list[set[Element]]]:
    """The two kernels of the split backward pass, written out: one keeps columns and walks rows, one the other way."""
    n, m, d = work.mask.queries, work.mask.keys, work.inner

    def row(name: str, i: int) -> set[Element]:
        return {(name, i, x) for x in range(d)}

    def rows_of(names: str, some: range) -> set[Element]:
        return set().union(*(row(name, i) for name in names.split() for i in some))

    figures = {i: {("lse", i), ("delta", i)} for i in range(n)}
    of_columns = [
        rows_of("K V dK dV", block)
        | row("Q", i)
        | row("dO", i)
        | figures[i]
        | {("S", i, j, g) for j in block for g in "pd"}
        for block in blocks(m, columns)
        for i in range(n)
    ]
    of_rows = [
        rows_of("Q dO dQ", block) | set().union(*(figures[i] for i in block)) | row("K", j) | row("V", j)
        | {("S", i, j, g) for i in block for g in "pd"}
        for block in blocks(n, rows)
        for j in range(m)
    ]  # fmt: skip
    return of_columns, of_rows


@pytest.mark.parametrize("policy", ["lru", "belady"])
def test_lru_and_belady_fetch_what_the_formula_says_of_attentions_gradients(policy):
    """Each kernel in a memory of its own size; before them one pass over O and dO leaves a figure for each row."""
    work = Attention(6, 8, 4, element=1, backward=True)
    cascade, columns, rows = work.cascade, 4, 3
    size = max(columns * (4 * 4 + 2) + 2 * 4 + 8, rows * (3 * 4 + 2 + 8) + 2 * 4)
    (found,) = [t for t in backward_tilings(work, float(size)) if t.strategy.startswith("two kernels")]
    assert found.tile == {"columns": columns, "rows": rows}
    roles = dict.fromkeys(("Q", "K", "V", "dO", "lse", "delta"), "loaded") | {"S": "scratch"}
    roles |= dict.fromkeys(("dQ", "dK", "dV"), "stored")
    sizes = {name: 4.0 if name in ("lse", "delta") else 1.0 for name in roles}
    moved = 0.0
    for kernel in backward_steps(cascade, rows, columns):
        room_needed = max(sum(sizes[str(e[0])] for e in step) for step in kernel)
        moved += replay(kernel, room_needed, policy, roles, sizes)
    sums = 6 * (2 * 4 + 4)  # O and dO in, a float32 figure out
    assert moved + sums == found.traffic


def test_an_mlp_is_fused_where_its_block_of_rows_is_worth_the_weights_it_reads_again():
    """Fusing saves the hidden values and reads weights once for each block of rows: it wins from about width² on."""
    work = Mlp(65536, 1024, 4096)
    small, large = 256 * 1024, 16 << 20
    assert work.unfused(small).traffic < work.fused(small).traffic
    assert work.fused(large).traffic < work.unfused(large).traffic
    assert work.best(large).traffic < 2.2 * work.bound(large)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 100), st.integers(1, 200), st.booleans(), st.floats(200, 1e6),
    st.sampled_from([1, 2]),
)  # fmt: skip
def test_no_mlp_beats_its_bound(rows, width, hidden, gated, capacity, weight):
    work = Mlp(rows, width, hidden, gated, weight=weight)
    found = work.best(capacity)
    if found is not None:
        assert found.footprint <= capacity
        assert found.traffic >= work.bound(capacity) * (1 - 1e-12)


def chain_steps(rows: int, block: int, widths: tuple[int, ...]) -> Iterator[set[Element]]:
    """Three or more products over blocks of rows: the ends pass in slices, what lies between is held whole."""
    last = len(widths) - 1
    for some in blocks(rows, block):
        for product_ in range(1, last + 1):
            source: set[Element] = {("T", product_ - 1, i, x) for i in some for x in range(widths[product_ - 1])}
            target: set[Element] = {("T", product_, i, x) for i in some for x in range(widths[product_])}
            if product_ == 1:
                for x in range(widths[0]):
                    yield target | {("A", i, x) for i in some} | {("B", 1, x, y) for y in range(widths[1])}
            else:
                for y in range(widths[product_]):
                    column: set[Element] = {("B", product_, x, y) for x in range(widths[product_ - 1])}
                    done: set[Element] = {("O", i, y) for i in some} if product_ == last else target
                    yield source | column | done


def test_lru_fetches_what_the_formula_says_of_a_chain_of_four_products():
    widths = (5, 4, 4, 4, 5)
    work = MatmulChain(6, widths, element=1)
    found = work.fused(3 * (4 + 4) + 4.0)
    assert found is not None
    assert found.tile == {"rows": 3}
    roles = {"A": "loaded", "B": "loaded", "T": "scratch", "O": "stored"}
    moved = replay(chain_steps(6, 3, widths), found.footprint, "lru", roles, dict.fromkeys(roles, 1.0))
    assert moved == found.traffic


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 300), st.lists(st.integers(1, 80), min_size=3, max_size=6), st.floats(100, 200_000))
def test_no_chain_beats_its_bound(rows, widths, capacity):
    work = MatmulChain(rows, tuple(widths))
    for found in (work.best(capacity), work.fused(capacity), work.unfused(capacity)):
        if found is not None:
            assert found.footprint <= capacity
            assert found.traffic >= work.bound(capacity) * (1 - 1e-12)


def test_a_chain_is_cut_where_fusing_further_costs_more():
    narrow = MatmulChain(65536, (64, 64, 64, 64))
    assert narrow.best(1 << 20).traffic == narrow.fused(1 << 20).traffic < narrow.unfused(1 << 20).traffic
    assert narrow.best(1 << 20).traffic < 1.1 * narrow.compulsory


def test_a_chain_of_one_product_is_refused():
    with pytest.raises(ValueError, match="at least two products"):
        MatmulChain(8, (8, 8))
