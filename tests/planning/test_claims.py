"""Claims of the literature: those that follow from sizes alone follow exactly; MEMO's α is a restriction of ours."""

import pytest

from peakline.planning.claim import Claim, largest, row
from peakline.planning.claims import CASES, table
from peakline.planning.memo import Layer, Tensor, alpha, per_tensor, tied
from peakline.solvers.offload.problem import Tier

UNIT = 2**20 * 4096 * 2  # b·s·h of a million tokens in half precision
LAYER = Layer(
    8.0,
    17.0,
    (
        Tensor("input", UNIT, 0.0, always=True),
        Tensor("attention", UNIT, 0.0, always=True),
        Tensor("norms", 2 * UNIT, 0.01),
        Tensor("act", 4 * UNIT, 0.01),
        Tensor("rest", 8 * UNIT, 1.0),
    ),
)


def test_two_terabytes_of_host_memory_leave_memo_the_fraction_of_its_paper():
    share, cause = alpha(LAYER, 32, 1e15, 2 << 40)
    assert cause == "host memory"
    assert share == pytest.approx(0.467, abs=0.001)


def test_a_slow_link_bounds_the_fraction_instead():
    assert alpha(LAYER, 32, 5e9, None)[1] == "bandwidth"
    with pytest.raises(ValueError, match="bandwidth: too small"):
        alpha(LAYER, 32, 1e9, None)


def test_every_tensor_for_itself_is_never_slower_than_one_fraction_for_all():
    layers, host, rate = 8, 6 * (LAYER.always + LAYER.others) // 2, 200e9
    share, _ = alpha(LAYER, layers, rate, host)
    decisions, lowest = per_tensor(
        LAYER, layers, 3 * (LAYER.always + LAYER.others), (Tier("host", rate, rate, host),), (rate, rate)
    )
    one = layers * (LAYER.forward + LAYER.backward) + tied(LAYER, layers, share)
    assert lowest <= decisions.seconds <= one


def test_head_infers_cache_on_the_device_is_two_heads_of_it():
    claims = {claim.what: claim for claim in CASES["head-infer"]()}
    assert claims["Llama-3-8B, 1M tokens: cache"].difference == 0.0
    assert claims["cache on the device, head by head"].difference == 0.0
    assert abs(claims["in all with it"].difference) < 0.05


@pytest.mark.parametrize(
    ("case", "near"), [("mezo", 0.05), ("galore", 0.1), ("activations", 0.01), ("qlora", 0.01), ("megatron", 0.05)]
)
def test_what_follows_from_sizes_is_near_and_what_is_claimed_to_fit_fits(case, near):
    for claim in CASES[case]():
        if claim.within:
            assert claim.ours <= claim.claimed
        else:
            assert abs(claim.difference) < near


def test_moms_measured_peaks_and_where_its_standard_prompts_end_come_out():
    """72 and 35 GiB, four ratios of peaks, and the 155,000 tokens after which PyTorch's allocator finds no room."""
    found = [claim for claim in CASES["mom"]() if claim.claimed != 455.0]
    assert len(found) == 7
    for claim in found:
        assert abs(claim.difference) < 0.02


def test_a_matrix_at_a_time_leaves_lomo_weights_and_recomputed_activations():
    told = {claim.what: claim for claim in CASES["lomo"]()}
    for optimizer in ("AdamW", "SGD", "LOMO"):
        assert abs(told[f"LLaMA-7B, {optimizer}, layers recomputed"].difference) < 0.05


def test_a_claim_of_fitting_is_told_by_whether_it_does():
    told = {ours: row(Claim("x", "y", 24.0, ours, "GB held", "", within=True)) for ours in (20.0, 25.0)}
    assert "| ≤ 24 | 20 | GB held | fits |" in told[20.0]
    assert "does not fit" in told[25.0]


@pytest.mark.parametrize("limit", [0, 1, 7, 40, 99])
def test_the_largest_that_fits_is_found_by_halving(limit):
    assert largest(lambda n: n <= limit, 1, 50) == (min(limit, 50) if limit else 0)
    assert largest(lambda n: n <= limit, 10, 50, 10) == min(limit // 10 * 10, 50) * (limit >= 10)


def test_a_claim_without_a_figure_has_no_difference():
    assert Claim("x", "y", None, 1.0, "%", "").difference is None


def test_an_unknown_case_is_named():
    with pytest.raises(ValueError, match="accepted: zero-offload, mezo"):
        list(table(["magic"]))
