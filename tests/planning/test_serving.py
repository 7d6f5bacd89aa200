"""Serving from less memory than the model has: the linear program against its replay, and against what must hold."""

import random

import pytest

from peakline.planning.serving import NoPlace, place, replay

GIB = 2**30


def test_a_model_that_fits_stays_on_the_device():
    found = place("llama-3.1-8b", "h100-sxm", prompt=512, generate=64, batch=(1, 8), batches=(1,))
    assert found.weights["device"] == pytest.approx(1.0)
    assert found.cache["device"] == pytest.approx(1.0)
    assert found.bound_by == "compute"


@pytest.mark.parametrize(
    ("model", "device", "options"),
    [
        ("llama-3.1-70b", "rtx-4090", {"host": 256 * GIB}),
        ("opt-30b", "t4", {"host": 200 * GIB, "ssd": 1500 * 10**9, "dtype": "fp16"}),
        ("llama-2-7b", "rtx-3060-12gb", {"host": 64 * GIB}),
    ],
)
def test_the_replay_takes_the_promised_time_and_keeps_within_the_device(model, device, options):
    found = place(model, device, prompt=512, generate=32, batches=(1, 4), batch=(8, 32), **options)
    assert found.step_seconds == pytest.approx(found.shares.step, rel=0.01)
    assert found.seconds == pytest.approx(found.shares.seconds, rel=0.01)
    done = replay(found, steps=3, prompts=True)
    assert done.makespan == pytest.approx(found.prompt_seconds + 3 * found.step_seconds, rel=0.02)
    assert done.peak("device") <= found.device_bytes + 1 <= found.device.main.capacity
    for tier in found.around.tiers:
        assert done.peak(tier.name) <= tier.capacity


def test_no_placement_is_faster_than_its_bound():
    found = place("llama-2-7b", "rtx-3060-12gb", prompt=512, generate=32, host=64 * GIB, objective="latency")
    assert 0.0 <= found.gap < 0.02
    assert 1.0 / found.lower_bound >= found.throughput


def test_what_comes_from_a_drive_passes_the_link_to_the_host():
    """Two tiers have one link between them: beside 25 GB/s, a drive of 14 GB/s adds room and no speed."""
    options = {"prompt": 128, "generate": 16, "batch": (1,), "objective": "latency"}
    both = place("llama-3.1-70b", "rtx-4090", host=64 * GIB, ssd=10**12, **options)
    away = (1 - both.weights["device"]) * both.sizes.weights * both.sizes.layers
    assert both.weights["host"] > 0.1 < both.weights["ssd"]
    assert both.step_seconds >= away / both.around.links["host in"].bandwidth * (1 - 1e-6)
    assert both.step_seconds == pytest.approx(both.shares.step, rel=0.01)


def test_batches_of_prompts_that_wait_keep_their_hidden_states_somewhere():
    """Llama-3.1-70B hands 8,192 numbers of two bytes from layer to layer."""
    found = place("llama-3.1-70b", "rtx-4090", prompt=512, generate=8, batch=(16,), batches=(4,), host=256 * GIB)
    assert found.problem.hidden == 4 * 16 * 512 * 8192 * 2
    assert sum(found.shares.states.values()) == pytest.approx(1.0)
    assert place("llama-3.1-70b", "rtx-4090", prompt=512, generate=8, batch=(16,), batches=(1,)).problem.hidden == 0


def test_the_floor_is_where_placing_begins():
    options = {"prompt": 64, "generate": 8, "host": 64 * GIB, "batch": (1,), "batches": (1,)}
    with pytest.raises(NoPlace, match="The least of the device is") as refused:
        place("llama-2-7b", "rtx-3060-12gb", budget=GIB // 2, **options)
    floor = refused.value.floor_bytes
    assert place("llama-2-7b", "rtx-3060-12gb", budget=floor + 1024, **options).device_bytes <= floor + 1024
    with pytest.raises(NoPlace):
        place("llama-2-7b", "rtx-3060-12gb", budget=floor - 2**20, **options)


def test_a_host_that_is_too_small_is_told_how_large_it_must_be():
    options = {"prompt": 64, "generate": 8, "batch": (1,), "batches": (1,)}
    with pytest.raises(NoPlace, match="host=") as refused:
        place("llama-2-7b", "rtx-3060-12gb", budget="4 GiB", host="1 GiB", **options)
    enough = str(refused.value).partition("host=")[2].partition(" (")[0]
    assert place("llama-2-7b", "rtx-3060-12gb", budget="4 GiB", host=enough.replace(" ", ""), **options).weights["host"]


def test_chunks_of_prompts_read_the_cache_of_those_before_them():
    options = {"prompt": 16_384, "generate": 4, "batch": (1,), "batches": (1,), "resident_heads": 0}
    found = place("llama-3-8b", "a100-80gb", prompt_chunk=2048, **options)
    chunks = [way for way in found.problem.passes if not way.decodes]
    assert sum(way.times for way in chunks) == 8
    read = sum(way.times * way.cached for way in chunks)
    assert read == pytest.approx(sum(range(8)) * 2048 * found.sizes.appended)
    assert found.prompt_seconds == pytest.approx(found.shares.prompts, rel=0.01)


def test_a_step_reads_the_cache_that_is_there_on_average():
    """FlexGen, arXiv:2303.06865, appendix A.3: the prompt and half of what is generated."""
    found = place("llama-2-7b", "a100-80gb", prompt=64, generate=128, batch=(4,), batches=(1,), resident_heads=0)
    keys_and_values = 2 * 4096 * 2  # bytes of a token in one layer
    assert found.problem.passes[-1].cached == 4 * (64 + 128 / 2) * keys_and_values
    assert found.sizes.cache == (64 + 128) * keys_and_values  # all of it needs room


def test_a_state_is_written_whole_and_a_window_holds_no_more():
    state = place("mamba-2.8b", "a100-80gb", prompt=64, generate=128, batch=(1,), batches=(1,)).sizes
    assert state.appended == state.cache == state.held(1) == state.held(1000)
    assert state.filled == 1.0


def test_what_a_model_was_not_made_for_is_noted():
    found = place("gpt2", "a100-80gb", prompt=4096, generate=8, batch=(1,), batches=(1,))
    assert "note: 4104 tokens pass the 1024 positions that gpt2 was made for" in found.explain()
    assert found.to_dict()["notes"][-1].startswith("4104 tokens")


def test_larger_blocks_share_the_weights_that_come_in():
    alone, together = (
        place("llama-3.1-70b", "rtx-4090", prompt=128, generate=32, batch=(16,), batches=(n,), host=512 * GIB)
        for n in (1, 8)
    )
    assert together.throughput > 4 * alone.throughput


def test_a_single_sequence_waits_for_the_weights_that_do_not_stay():
    found = place("llama-3.1-70b", "rtx-4090", prompt=128, generate=32, batch=(1,), host=256 * GIB, objective="latency")
    away = 1 - found.weights["device"]
    bytes_ = away * found.sizes.weights * found.sizes.layers
    assert found.step_seconds >= bytes_ / found.around.common[1]


def test_nothing_fits_without_a_place_for_it():
    with pytest.raises(ValueError, match="give more host memory or a drive"):
        place("llama-3.1-70b", "rtx-4090", prompt=128, generate=32, host=8 * GIB)


def test_an_unknown_objective_is_named():
    with pytest.raises(ValueError, match="accepted: throughput, latency"):
        place("llama-3.1-8b", "h100-sxm", prompt=128, generate=32, objective="price")


def test_the_placement_in_words_and_as_json_says_the_same():
    found = place("llama-3.1-8b", "rtx-3060-12gb", prompt=128, generate=16, batch=(1,), batches=(1,))
    data = found.to_dict()
    assert data["weights"] == found.weights
    assert f"{data['tokens_per_second']:,.1f} tokens/s" in found.explain()


def test_a_million_tokens_come_in_head_by_head():
    """HeadInfer, arXiv:2502.12574, table 2: Llama-3-8B in 17 GB, of which 1 GB is cache."""
    options = {
        "prompt": 1 << 20,
        "generate": 2,
        "batch": (1,),
        "batches": (1,),
        "host": 512 * GIB,
        "prompt_chunk": 10_240,
    }
    heads = place("llama-3-8b", "a100-80gb", cache_unit="head", resident_heads=0, **options)
    layers = place("llama-3-8b", "a100-80gb", cache_unit="layer", resident_heads=0, **options)
    assert heads.sizes.units == heads.sizes.heads == 8
    cache = heads.sizes.cache * heads.sizes.layers
    assert heads.device_bytes / GIB == pytest.approx(17, rel=0.05)
    assert layers.device_bytes - heads.device_bytes == pytest.approx(2 * cache / 32 * 7 / 8, rel=0.01)


@pytest.mark.parametrize("kept", [0, 4, 8])
def test_heads_that_stay_are_not_brought_in(kept):
    found = place(
        "llama-3-8b", "a100-80gb", prompt=100_000, generate=8, batch=(1,), batches=(1,), cache_unit="head",
        resident_heads=kept, prompt_chunk=4096,
    )  # fmt: skip
    assert found.cache["device"] == pytest.approx(kept / 8)
    done = replay(found, steps=2)
    assert done.makespan / 2 == pytest.approx(found.step_seconds, rel=0.05)
    assert done.moved["host in"] == pytest.approx(2 * (1 - kept / 8) * found.sizes.cache * 32, rel=0.01)


def test_stretches_of_tokens_need_less_room_than_layers():
    options = {
        "prompt": 65_536,
        "generate": 8,
        "batch": (1,),
        "batches": (1,),
        "prompt_chunk": 4096,
        "resident_heads": 0,
    }
    tokens = place("llama-3-8b", "a100-80gb", cache_unit="tokens", **options)
    layer = place("llama-3-8b", "a100-80gb", **options)
    assert tokens.device_bytes < layer.device_bytes
    latency = tokens.around.links["host in"].latency
    more = (tokens.sizes.units - 1) * tokens.sizes.layers * latency  # every copy waits for its first byte
    assert tokens.step_seconds - layer.step_seconds == pytest.approx(more, rel=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_unit": "page"}, "cache_unit: 'page' is unknown; accepted: layer, head, tokens"),
        ({"resident_heads": 9}, "resident_heads: 9 of 8 key-value heads; accepted: 0 to 8"),
        ({"prompt_chunk": 0}, "prompt_chunk: 0 is not a number of at least 1 token"),
    ],
)
def test_units_and_heads_that_there_are_not_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        place("llama-3-8b", "a100-80gb", prompt=128, generate=8, **options)


# ---- mixtures of experts --------------------------------------------------------------------------------------------
def mixture(**options):
    asked = {"prompt": 64, "generate": 16, "batch": (1,), "batches": (1,), "host": 256 * GIB} | options
    return place("mixtral-8x7b", "rtx-4090", **asked)


def test_tokens_touch_as_many_experts_as_drawing_them_does():
    sizes = mixture().sizes
    assert (sizes.expert_count, sizes.chosen) == (8, 2)
    draw = random.Random(0)
    for tokens in (1, 3, 16):
        hit = [len({e for _ in range(tokens) for e in draw.sample(range(8), 2)}) / 8 for _ in range(4000)]
        assert sizes.touched(tokens) == pytest.approx(sum(hit) / len(hit), abs=0.01)


def test_one_token_reads_two_of_eight_experts_and_many_read_all():
    sizes = mixture().sizes
    assert sizes.read(1) == pytest.approx(sizes.weights - 0.75 * sizes.experts)
    assert sizes.read(1000) == pytest.approx(sizes.weights)


@pytest.mark.parametrize("prefetch", [0.0, 0.8, 1.0])
def test_experts_that_are_guessed_come_while_the_layer_before_computes(prefetch):
    found = mixture(expert_prefetch=prefetch)
    assert found.step_seconds <= mixture().step_seconds * (1 + 1e-6)  # copies are of whole bytes
    away = 1 - found.weights["device"]
    assert found.step_seconds >= away * found.sizes.read(1) * found.sizes.layers / found.around.common[1] * (1 - 1e-9)
    done = replay(found, steps=2)
    assert done.makespan / 2 == pytest.approx(found.step_seconds, rel=0.05)


def test_prompts_bring_experts_in_parts():
    sizes = mixture().sizes
    pieces = sizes.pieces_of(64)
    assert [piece.cached for piece in pieces] == [True] + 8 * [False]
    assert sum(piece.weights for piece in pieces) == pytest.approx(1.0)
    assert pieces[1].weights * sizes.read(64) == pytest.approx(sizes.experts / 8, rel=1e-6)


def test_guesses_of_experts_that_there_are_not_are_refused():
    with pytest.raises(
        ValueError, match=r"expert_prefetch: 0\.5 says nothing of llama-2-7b, which has no routed experts"
    ):
        place("llama-2-7b", "a100-80gb", prompt=64, generate=8, expert_prefetch=0.5)


def test_a_share_that_is_none_is_named():
    with pytest.raises(ValueError, match="expert_prefetch: 2 is not a share between 0 and 1"):
        mixture(expert_prefetch=2)
