"""Solver and replay of a placement say the same, whatever is placed where: random layers, links and memories."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from peakline.planning.execute import Route
from peakline.planning.serving_linear import bound
from peakline.planning.serving_passes import decoding, prompts
from peakline.planning.serving_problem import Block
from peakline.planning.serving_replay import measured, replayed
from peakline.planning.serving_search import Option, fastest
from peakline.planning.serving_sizes import Chunk, Piece, Sizes
from peakline.planning.tiers import Surroundings
from peakline.solvers.offload.problem import Tier
from peakline.streams import Link
from peakline.streams import Tier as StreamTier

MB = 10**6


def surroundings(host_rate, memory_rate, read, host, ssd, latency):
    """A host, and a drive behind it if `ssd` is not None."""
    links = [Link(name, host_rate, latency) for name in ("host out", "host in")] + [Link("host memory", memory_rate)]
    tiers = [Tier("host", host_rate, host_rate, host)]
    routes = [Route(StreamTier("host"), ("host out", "host memory"), ("host in", "host memory"))]
    if ssd is not None:
        links += [Link("ssd read", read), Link("ssd write", read / 2)]
        tiers.append(Tier("ssd", read / 2, read, ssd))
        ways = ("host out", "host memory", "ssd write"), ("host in", "host memory", "ssd read")
        routes.append(Route(StreamTier("ssd"), *ways))
    named = {link.name: link for link in links}
    return Surroundings(tuple(tiers), tuple(routes), named, (host_rate, host_rate), memory_rate, ())


def layers(draw):
    """One piece, or three matrices around an attention."""
    if draw(st.booleans()):
        return (Piece("", 1.0, 1.0, True),)
    cut = draw(st.lists(st.floats(0.1, 1.0), min_size=3, max_size=3))
    total = sum(cut)
    a, b, c = (part / total for part in cut)
    attention = draw(st.floats(0.05, 0.5))
    return tuple(
        Piece(name, share, took, name == "attention", took)
        for name, share, took in (
            ("in", a, a * (1 - attention)),
            ("attention", 0.0, attention),
            ("up", b, b * (1 - attention)),
            ("down", c, c * (1 - attention)),
        )
    )


@st.composite
def blocks(draw):
    """Something to place, in memories that hold it."""
    count, units = draw(st.sampled_from([1, 2, 3, 8])), draw(st.sampled_from([1, 1, 4]))
    weights, rate = draw(st.integers(20, 400)) * MB, draw(st.sampled_from([12e9, 25e9, 300e9]))
    cache = draw(st.integers(1, 200)) * MB
    seconds = draw(st.floats(0.05, 3.0)) * weights / rate / count
    mixture = draw(st.booleans())
    pieces = (Piece("", 1.0, 1.0, True),) if mixture else layers(draw)
    prompt = draw(st.floats(0.5, 30.0)) * seconds
    sizes = Sizes(
        draw(st.integers(12, 30)), weights, cache, cache / 100, 50 * MB, seconds, prompt, 4, units,
        *((0.7 * weights, 8, 2) if mixture else (0.0, 0, 0)), None, pieces, (Chunk(1.0, 90, 0.0, prompt),),
        draw(st.sampled_from([0.0, 1e4, 1e6])),
    )  # fmt: skip
    around = surroundings(
        rate, draw(st.sampled_from([100e9, 250e9])), draw(st.sampled_from([3e9, 14e9])),
        round(sizes.layers * (weights + count * cache) * draw(st.floats(0.2, 1.2))),
        draw(st.sampled_from([None, 10**13])), draw(st.sampled_from([0.0, 6.5e-6])),
    )  # fmt: skip
    passes = (*prompts(sizes, 1, count), decoding(sizes, 1, count, draw(st.sampled_from([0.0, 0.5, 1.0])), 20))
    room = 50 * MB + 2 * (weights + cache) * 1.1 + sizes.layers * weights * draw(st.floats(0.0, 0.9))
    kept = draw(st.sampled_from([None, None, 0.0, 0.5]))
    hidden = max(way.states * way.slots for way in passes)
    return Block(sizes, passes, around, room, 0.0, count, cache / units, kept, hidden)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(blocks())
def test_solver_and_replay_differ_by_less_than_a_percent_and_nothing_exceeds_its_memory(block):
    least = bound(block)
    found = fastest([Option(least / (block.sequences * 21), 1, block.sequences, block)] if least is not None else [])
    if found is None or found.shares is None:
        assert least is None
        return
    total, _, step = measured(block, found.shares)
    assert step == pytest.approx(found.shares.step, rel=0.01)
    assert total == pytest.approx(found.shares.seconds, rel=0.01)
    assert total >= least * (1 - 1e-6)
    done = replayed(block, found.shares, 2).timeline
    assert done.peak("device") <= block.room + 1
    for tier in block.around.tiers:
        assert done.peak(tier.name) <= tier.capacity + 1
