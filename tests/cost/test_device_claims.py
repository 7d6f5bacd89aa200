"""Claims of papers on kinds of hardware, run: within what the stated setups allow, and nowhere by construction."""

from __future__ import annotations

import math

import pytest

import peakline as pk
from peakline.cost.machine import machine
from peakline.cost.pim import Banks
from peakline.cost.sparse import bitmap_bytes, expansion_seconds, streaming_seconds
from peakline.device_claims import CASES, lines
from peakline.execution_modes import fabric_of, pruned, sequential, stages_of
from peakline.hybrid import hybrid

SETUP_MISSING = {"pim-gpt", "hbm-pim", "flightllm", "intar"}
"""Cases whose baseline no abstract describes: docs/claims.md says what is missing."""

FOUND = {name: list(case()) for name, case in CASES.items()}


@pytest.mark.parametrize("name", sorted(set(CASES) - SETUP_MISSING))
def test_a_claim_whose_setup_is_stated_comes_out_within_two_fifths(name: str) -> None:
    differences = [c.difference for c in FOUND[name] if c.difference is not None]
    assert differences
    assert all(abs(d) < 0.4 for d in differences)


def test_half_of_the_claims_come_out_within_an_eighth() -> None:
    stated = [abs(c.difference) for name in CASES for c in FOUND[name] if c.difference is not None]
    assert sorted(stated)[len(stated) // 2] < 0.125


@pytest.mark.parametrize("name", sorted(SETUP_MISSING))
def test_where_the_setup_is_missing_the_direction_is_right(name: str) -> None:
    for claim in FOUND[name]:
        assert claim.ours >= 1.0 - 1e-9
        assert len(claim.assumes) > 40


def test_every_row_is_a_line_of_a_table() -> None:
    found = list(lines(["sn40l"]))
    assert len(found) == 2 + len(FOUND["sn40l"])
    assert all(line.count("|") == 8 for line in found)
    with pytest.raises(ValueError, match="unknown; accepted: neupims"):
        next(lines(["nothing"]))


def test_opening_all_banks_waits_for_their_power_supply() -> None:
    # 32 banks a channel, four rows in 30 ns: 240 ns for what streams in 64 ns
    banks = machine(pk.device("neupims")).banks
    assert banks is not None
    assert banks.opening == pytest.approx(32 / 4 * 30 / 64)
    free = Banks(1024, 32, 16.384e12, 1.024e12, 1024)
    assert free.opening == pytest.approx((64 + 28) / 64)


def test_reading_the_matrix_once_for_eight_vectors_is_what_makes_experts_pay() -> None:
    step = pk.decode("mixtral-8x7b", batch=32, context=512, dtype="fp16", kernels="fused")
    eight = hybrid(step, "h100-sxm", "duplex-logic-pim")
    one = hybrid(step, "h100-sxm", pk.device("duplex-logic-pim", **{"pim.vectors": 1}))
    assert eight.host_only / eight.in_turn > 1.5 > one.host_only / one.in_turn


def test_an_fpga_without_a_stated_rate_multiplies_in_its_blocks() -> None:
    assert fabric_of("vhk158").multipliers == 3 * 7392
    assert fabric_of("alveo-u280").multipliers == 2 * 9024


def test_half_of_the_weights_pruned_halves_the_work_and_saves_less_of_the_bytes() -> None:
    stages = stages_of(pk.decode("llama-2-7b", batch=1, context=64, dtype="fp16", weight_dtype="int8"))
    half = pruned(stages, 2, 4, 8)
    products = [(a, b) for a, b in zip(stages, half) if a.weights]
    assert products
    assert all(b.work == a.work / 2 and b.weights == a.weights * 10 / 16 for a, b in products)
    assert [b for a, b in zip(stages, half) if not a.weights] == [a for a in stages if not a.weights]
    assert pruned(stages, 4, 4, 8) == stages
    with pytest.raises(ValueError, match="5 of 4"):
        pruned(stages, 5, 4, 8)


def test_results_that_leave_the_chip_never_make_it_faster() -> None:
    board = fabric_of("zcu102")
    stages = stages_of(pk.inference("mobilenet-v2", dtype="int8"))
    assert sequential(board, stages, spill=True) > sequential(board, stages)


def test_half_of_the_weights_zero_take_sixteen_bits_to_nine() -> None:
    assert bitmap_bytes(16, 0.5, 16) == 2 * 16 * 9 / 16
    assert bitmap_bytes(1e9, 0.0, 16) > 2e9  # the bitmap itself
    assert 16 / (8 * bitmap_bytes(1, 0.5, 16)) == pytest.approx(1.78, abs=0.01)  # Endor, arXiv:2406.11674: 1.78 times
    with pytest.raises(ValueError, match="sparsity"):
        bitmap_bytes(1, 1.5, 16)


def test_expanding_hides_behind_the_memory_of_a_server_but_not_behind_hbm() -> None:
    weights = 8e9
    expanding = expansion_seconds(weights, 56, 2.0e9)
    ddr, hbm = (streaming_seconds(weights, 0.5, 16, rate, expanding) for rate in (307.2e9, 1638e9))
    assert ddr == pytest.approx(bitmap_bytes(weights, 0.5, 16) / 307.2e9)
    assert hbm >= expanding
    assert math.isclose(hbm, max(expanding, bitmap_bytes(weights, 0.5, 16) / 1638e9))
