"""Neurons that come in as tokens activate them: the formulas against neurons that are drawn, and what a drive gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.cost.storage import drive_of
from peakline.models.workloads import decode
from peakline.planning.serving import place, replay
from peakline.planning.windows import Activity, feed_forward, read_rate, windowed

GIB = 2**30
DRIVE = "samsung-990-pro-2tb"


def drawn(activity, sequences, neurons=20_000, tokens=60):
    """Shares held and read per token, of neurons that are switched on and off at random and remembered one by one."""
    dice = np.random.default_rng(1)
    s, r = activity.share, activity.reuse or activity.share
    active = dice.random((sequences, neurons)) < s
    last_used = np.where(active.any(axis=0), 0, -1000)
    held, read = [], []
    for token in range(1, tokens):
        chance = np.where(active, r, s * (1 - r) / (1 - s))
        active = dice.random((sequences, neurons)) < chance
        used = active.any(axis=0)
        in_window = last_used >= token - activity.window
        read.append((used & ~in_window).mean())
        last_used[used] = token
        held.append((last_used > token - activity.window).mean())
    settled = slice(activity.window + 1, None)
    return np.mean(held[settled]), np.mean(read[settled])


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize(
    "activity",
    [Activity(0.03, 5), Activity(0.1, 1), Activity(0.1, 4, reuse=0.7), Activity(0.3, 0), Activity(0.2, 8, 0.4)],
)
def test_a_window_holds_and_reads_what_drawing_neurons_does(activity, sequences):
    held, read = drawn(activity, sequences)
    assert activity.resident(sequences) == pytest.approx(held, abs=0.004)
    assert activity.loaded(sequences) == pytest.approx(read, rel=0.04)


def test_independent_tokens_leave_idle_what_none_of_them_draws():
    assert Activity(0.1).aggregated(5) == pytest.approx(1 - 0.9**5)
    assert Activity(0.1, reuse=0.1).aggregated(5) == pytest.approx(1 - 0.9**5)


@given(st.floats(0.01, 0.99), st.floats(0, 1), st.integers(0, 30))
def test_nothing_reads_more_than_independent_tokens_and_longer_windows_read_less(share, more, window):
    reuse = share + more * (1 - share)
    found = Activity(share, window, reuse)
    assert found.resident() <= Activity(share, window).resident() + 1e-12
    assert found.loaded() >= -1e-12
    assert Activity(share, window + 1, reuse).loaded() <= found.loaded() + 1e-12


def test_a_neuron_is_a_column_and_a_row_and_a_gated_one_three_rows():
    two = feed_forward(decode("opt-6.7b", context=64), 32)
    three = feed_forward(decode("llama-3-8b", context=64), 32)
    assert (two.row, two.neuron) == (4096 * 2, 2 * 4096 * 2)
    assert (three.row, three.neuron) == (4096 * 2, 3 * 4096 * 2)
    assert three.bytes == 3 * 4096 * 14336 * 2


def test_bundles_are_read_faster_but_by_less_than_they_are_longer():
    drive = drive_of(DRIVE)
    alone, bundled = read_rate(drive, 8192), read_rate(drive, 16384)
    assert alone < bundled < 2 * alone
    assert bundled < drive.reading.bandwidth


def test_less_than_a_page_costs_a_page():
    drive = drive_of(DRIVE)
    assert read_rate(drive, 1024) == pytest.approx(read_rate(drive, 4096) / 4)


def test_a_token_takes_its_bytes_over_the_rate():
    part = feed_forward(decode("opt-6.7b", context=64), 32)
    found = windowed(part, Activity(0.1, 4), rate=1e9)
    assert found.seconds == pytest.approx(part.bytes * 0.9**4 * 0.1 / 1e9)
    assert found.resident == pytest.approx(part.bytes * (1 - 0.9**4))


# ---- placed ---------------------------------------------------------------------------------------------------------
def half(**options):
    """OPT-6.7B in a little more than half of its bytes, the rest in flash."""
    asked = {"active_share": 0.1, "batch": (1,), "batches": (1,), "objective": "latency", "budget": 8 * GIB} | options
    return place(
        "opt-6.7b",
        "rtx-3060-12gb",
        prompt=128,
        generate=64,
        host=0,
        ssd=10**12,
        ssd_device=DRIVE,
        dtype="fp16",
        **asked,
    )


def test_fewer_neurons_make_tokens_faster():
    whole = half(active_share=None)
    assert whole.neurons is None
    assert half().step_seconds < half(active_share=0.3).step_seconds < whole.step_seconds


def test_attention_stays_and_neurons_go():
    found = half()
    assert found.streamed["device"] > 0.9  # the rest comes in while something computes, which is free
    assert found.neurons["ssd"] > 0.5


def test_a_neuron_that_is_bundled_comes_sooner():
    assert half().step_seconds < half(bundle=False).step_seconds


def test_every_neuron_active_is_no_faster_than_the_layers():
    assert half(active_share=1.0, window=0).step_seconds >= half(active_share=None).step_seconds


@pytest.mark.parametrize("options", [{}, {"reuse_share": 0.6}, {"window": 0}, {"bundle": False}])
def test_the_replay_takes_the_promised_time_within_the_budget(options):
    found = half(**options)
    assert found.step_seconds == pytest.approx(found.shares.step, rel=0.01)
    done = replay(found, steps=3)
    assert done.makespan / 3 == pytest.approx(found.step_seconds, rel=0.02)
    assert done.peak("device") <= 8 * GIB
    assert found.device_bytes <= 8 * GIB * (1 + 1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"active_share": 0.0}, "active_share: 0.0 is not a share above 0 and at most 1"),
        ({"window": -1}, "window: -1 is not a number of at least 0 tokens"),
        ({"reuse_share": 0.05}, "reuse_share: 0.05 is not between active_share"),
        ({"active_share": None, "reuse_share": 0.5}, "says nothing without active_share"),
        ({"ssd_device": "ufs-4"}, "storage.random_read is unknown"),
    ],
)
def test_shares_windows_and_drives_that_will_not_do_are_named(options, message):
    asked = {"ssd_device": DRIVE, "active_share": 0.1} | options
    with pytest.raises(ValueError, match=message):
        place("gpt2", "rtx-3060-12gb", prompt=8, generate=8, batch=(1,), batches=(1,), ssd=10**12, **asked)


def test_experts_are_chosen_whole():
    with pytest.raises(ValueError, match="accepted: models without experts"):
        place("mixtral-8x7b", "rtx-4090", prompt=8, generate=8, batch=(1,), batches=(1,), active_share=0.1)
