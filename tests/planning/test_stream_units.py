"""Weights that come in operator by operator: what they need on the device, and that the timeline agrees."""

from dataclasses import replace

import pytest

from peakline.planning.serving import place, replay
from peakline.planning.serving_sizes import Piece

GIB = 2**30


def served(unit, model="llama-2-7b", device="rtx-3060-12gb", **options):
    asked = {"batch": (1,), "batches": (1,), "objective": "latency", "host": 64 * GIB, "budget": 6 * GIB} | options
    return place(model, device, prompt=512, generate=32, stream_unit=unit, **asked)


def in_pieces(problem, pieces):
    """The same with layers that come in otherwise."""
    return replace(problem, passes=tuple(replace(way, pieces=pieces) for way in problem.passes))


def test_the_pieces_are_the_layer():
    pieces = served("operator").sizes.pieces
    assert sum(piece.weights for piece in pieces) == pytest.approx(1.0)
    assert sum(piece.computing for piece in pieces) == pytest.approx(1.0)
    assert [piece.name.rpartition("self_attn.")[2] for piece in pieces if piece.cached] == ["attention"]
    names = [piece.name.split(".")[-2] for piece in pieces if piece.weights > 0.01]
    assert names == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_the_largest_piece_is_the_largest_matrix():
    """Llama-2-7B: 4 matrices of 4096² and 3 of 4096 × 11008 in a layer, and two vectors of 4096."""
    largest = max(piece.weights for piece in served("operator").sizes.pieces)
    assert largest == pytest.approx(11008 / (4 * 4096 + 3 * 11008 + 2))


def test_two_matrices_need_less_room_than_two_layers_and_more_stays():
    layer, operator = served("layer"), served("operator")
    assert operator.weights["device"] > layer.weights["device"]
    assert operator.step_seconds < layer.step_seconds
    by_layers = replace(operator, problem=in_pieces(operator.problem, layer.sizes.pieces))
    largest = max(piece.weights for piece in operator.sizes.pieces)
    saved = 2 * operator.weights["host"] * operator.sizes.weights * (1 - largest)
    assert by_layers.device_bytes - operator.device_bytes == pytest.approx(saved)


@pytest.mark.parametrize("unit", ["layer", "operator"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"objective": "throughput", "batch": (8,), "batches": (4,)},
        {"resident_heads": 0},
    ],
)
def test_the_replay_takes_the_promised_time_within_the_budget(unit, options):
    found = served(unit, **options)
    assert found.step_seconds == pytest.approx(found.shares.step, rel=0.01)
    done = replay(found, steps=3)
    assert done.makespan / 3 == pytest.approx(found.step_seconds, rel=0.02)
    assert done.peak("device") <= 6 * GIB


def test_every_byte_comes_in_whatever_the_unit():
    operator = served("operator")
    layer = replace(operator, problem=in_pieces(operator.problem, (Piece("", 1.0, 1.0, True),)))
    moved = [replay(found, steps=2).moved["host in"] for found in (layer, operator)]
    assert moved[0] == pytest.approx(moved[1], rel=1e-6)


@pytest.mark.parametrize("copies_cost", [0.3, 1.0, 3.0])
def test_a_buffer_of_bytes_stalls_as_a_walk_through_the_pieces_says(copies_cost):
    """One copy at a time, each waiting until what was used before leaves room; each use waits for its copy."""
    operator = served("operator")
    sizes, rate = operator.sizes, operator.around.common[1]
    away = operator.weights["host"]
    bytes_ = [piece.weights * sizes.weights * away for _ in range(sizes.layers) for piece in sizes.pieces]
    seconds = sizes.weights * away / rate / copies_cost
    shares = replace(operator.shares, cache={"device": 1.0, "host": 0.0}, cached=False)
    step = replace(operator.problem.passes[-1], seconds=seconds)
    found = replace(operator, shares=shares, problem=replace(operator.problem, passes=(step,)))
    room, link, clock, arrived, left = 2 * max(bytes_), 0.0, 0.0, 0.0, []
    for size, piece in zip(bytes_, sizes.pieces * sizes.layers):
        arrived += size
        start = next((end for end, gone in left if arrived - gone <= room * (1 + 1e-9)), 0.0) if arrived > room else 0.0
        link = max(link, start) + (operator.around.links["host in"].latency + size / rate if round(size) else 0.0)
        clock = max(clock, link) + piece.computing * seconds
        left.append((clock, (left[-1][1] if left else 0.0) + size))
    assert replay(found, steps=1).makespan == pytest.approx(clock, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": "page"}, "stream_unit: 'page' is unknown; accepted: layer, operator"),
        ({"unit": "operator", "active_share": 0.1}, "does not go with active_share"),
        ({"unit": "operator", "model": "mixtral-8x7b"}, "experts of a mixture come in as they are chosen"),
    ],
)
def test_units_that_will_not_do_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        served(**options)
