"""Convolutions fused over rows: sizes, traffic and bounds against loops written out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.io_complexity.convolutions import ConvolutionChain, Layer, fused_tilings

layers = st.lists(
    st.builds(Layer, st.integers(1, 24), st.sampled_from([(2, 2), (3, 3), (5, 5)]), st.integers(1, 2)),
    min_size=2,
    max_size=4,
)
chains = st.builds(
    ConvolutionChain,
    st.integers(1, 3),
    st.integers(1, 16),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    layers.map(tuple),
    st.sampled_from([1, 2]),
)


@settings(max_examples=80, deadline=None)
@given(chains)
def test_no_way_to_fuse_a_chain_beats_its_bound(work):
    for found in fused_tilings(work):
        assert found.traffic >= work.bound(found.footprint) * (1 - 1e-12)


@settings(max_examples=12, deadline=None)
@given(chains, st.floats(50, 1e6))
def test_the_best_way_fits_and_is_no_worse_than_fusing_or_not(work, capacity):
    best, fused, apart = work.best(capacity), work.fused(capacity), work.unfused(capacity)
    if best is not None:
        assert best.footprint <= capacity
        assert best.traffic == min(t.traffic for t in (fused, apart) if t is not None)
        assert best.traffic >= work.bound(capacity) * (1 - 1e-12)


def needed_rows(work: ConvolutionChain, first: int, last: int) -> list[set[int]]:
    """Rows of every map, input first, that rows [first, last) of the last one are formed from, one by one."""
    found = [set(range(first, last))]
    for layer in reversed(work.layers):
        found.append({row * layer.stride + tap for row in found[-1] for tap in range(layer.taps[0])})
    return found[::-1]


@settings(max_examples=60, deadline=None)
@given(chains, st.integers(1, 14))
def test_a_tile_takes_the_rows_that_its_windows_reach(work, tile):
    rows = [max(s) - min(s) + 1 for s in needed_rows(work, 0, tile)]
    assert list(work.rows(tile)) == rows


@settings(max_examples=60, deadline=None)
@given(chains, st.data())
def test_tiles_by_themselves_read_their_halos_again(work, data):
    """Input rows of every tile, listed; weights once for each tile of each image."""
    found = [t for t in fused_tilings(work) if t.strategy == "fused, tiles by themselves, weights pass"]
    one = data.draw(st.sampled_from(found))
    tile, (_, columns, channels) = one.tile["rows"], work.maps[0]
    starts = range(0, work.space[0], tile)
    ends = [min(start + tile, work.space[0]) for start in starts]
    spans = [needed_rows(work, start, end)[0] for start, end in zip(starts, ends, strict=True)]
    read = sum(max(s) - min(s) + 1 for s in spans) * columns * channels
    written = work.space[0] * work.space[1] * work.layers[-1].filters
    weights = sum(work.weights) * len(starts) * work.batch
    assert one.traffic == work.batch * (read + written) * work.element + weights


def test_where_maps_are_large_and_weights_small_fusing_reaches_compulsory_traffic():
    """The first layers of a network: two lines of a map are kept, and nothing crosses twice (Alwani et al.)."""
    work = ConvolutionChain(1, 3, (220, 220), (Layer(16), Layer(16)))
    found = work.best(128 * 1024)
    assert found is not None
    assert found.traffic == work.compulsory == work.bound(128 * 1024)
    assert work.unfused(128 * 1024).traffic > 2.5 * found.traffic


def test_a_chain_of_one_convolution_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        ConvolutionChain(1, 3, (8, 8), (Layer(4),))


def test_a_stride_that_leaves_values_unread_is_refused():
    with pytest.raises(ValueError, match="stride beyond its taps"):
        ConvolutionChain(1, 3, (8, 8), (Layer(4), Layer(4, (1, 1), 2)))
