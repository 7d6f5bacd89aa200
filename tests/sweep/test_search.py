"""Pareto fronts, the largest that fits, samples, silicon, and the best hardware under a budget."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.sweeping.area import NODES, area, arithmetic_area, same_area, sram_area

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=40)


@settings(deadline=None)
@given(POINTS)
def test_the_front_is_what_no_other_row_beats(points: list[tuple[int, int, int]]) -> None:
    df = pd.DataFrame(points, columns=["time_s", "live_bytes", "gain"])
    front = pk.pareto(df, ["time_s", "live_bytes"], maximise="gain")
    costs = [(t, m, -g) for t, m, g in points]

    def beaten(i: int) -> bool:
        return any(c != costs[i] and all(x <= y for x, y in zip(c, costs[i])) for c in costs)

    assert front.index.tolist() == [i for i in range(len(points)) if not beaten(i)]


def test_a_front_leaves_out_what_does_not_fit_or_has_no_figure() -> None:
    df = pk.sweep(
        "llama-3.1-8b",
        device=["a30[memory.hbm.capacity=8 GiB]", "h100-sxm"],
        phase="decode",
        batch=[1, 8],
        context=256,
        replay=False,
    )
    front = pk.pareto(df, ["time_s", "energy_at_tdp_j"])
    assert set(front["device"]) == {"h100-sxm"}
    with pytest.raises(ValueError, match="there is no column 'time'; did you mean 'time_s'"):
        pk.pareto(df, "time")


@pytest.mark.parametrize(
    ("axis", "phase", "options"),
    [("batch", "training", {"seq": 512, "optimizer": "adamw"}), ("context", "decode", {"batch": 16})],
)
def test_the_largest_fits_and_the_next_does_not(axis: str, phase: str, options: dict[str, Any]) -> None:
    card = "a30[memory.hbm.capacity=4 GiB]"
    found = pk.largest(axis, "gpt2", device=card, phase=phase, step=4, upto=4096, **options)
    build = {"training": pk.training_step, "decode": pk.decode}[phase]
    if found.next is None:
        assert found.value == 4096
        found = pk.largest(axis, "gpt2", device="a30[memory.hbm.capacity=1 GiB]", phase=phase, upto=4096, **options)
    assert found.estimate is not None
    assert found.next is not None
    again = pk.estimate(build("gpt2", **options, **{axis: found.value}), found.estimate.device)
    more = pk.estimate(build("gpt2", **options, **{axis: found.value + found.step}), found.estimate.device)
    assert again.fits
    assert not more.fits
    assert found.evaluated[found.value] is True
    assert found.checked >= min(found.value // found.step, 64)


def test_nothing_fits_is_zero_and_everything_fits_has_no_next() -> None:
    assert int(pk.largest("batch", "llama-3.1-8b", device="t4", phase="prefill", seq=128, dtype="fp16")) == 0
    all_fit = pk.largest("batch", "gpt2", device="h100-sxm", phase="prefill", seq=8, upto=4)
    assert (all_fit.value, all_fit.next) == (4, None)
    with pytest.raises(ValueError, match="axis: 'bach' is not one of"):
        pk.largest("bach", "gpt2", device="t4", phase="prefill")


def test_every_slice_of_a_latin_hypercube_holds_one_point() -> None:
    points = pk.sample({"batch": (1, 100), "share": (0.0, 1.0), "kv_dtype": ["bf16", "fp8"]}, 20, seed=3)
    assert sorted((b - 1) // 5 for b in points["batch"]) == list(range(20))
    assert sorted(int(s * 20) for s in points["share"]) == list(range(20))
    assert sorted(points["kv_dtype"]) == ["bf16"] * 10 + ["fp8"] * 10
    assert points == pk.sample({"batch": (1, 100), "share": (0.0, 1.0), "kv_dtype": ["bf16", "fp8"]}, 20, seed=3)


def test_a_sample_is_swept_point_by_point() -> None:
    points = pk.sample(
        {"batch": (1, 64, "log"), "context": (16, 512), "kv_dtype": ["bf16", "fp8"]}, 12, method="random"
    )
    df = pk.sweep("gpt2", device="h100-sxm", phase="decode", replay=False, **points)
    drawn = sorted(zip(points["batch"], points["context"], points["kv_dtype"]))
    assert sorted(zip(df["batch"], df["context"], df["kv_dtype"])) == drawn
    with pytest.raises(ValueError, match=r"batch: .* is no range"):
        pk.sample({"batch": (8, 2)}, 3)


@pytest.mark.parametrize("node", NODES)
def test_memory_and_arithmetic_take_more_area_the_more_there_is(node: str) -> None:
    assert sram_area(2 << 20, node) == 2 * sram_area(1 << 20, node) > 0
    assert arithmetic_area(10, "fp32", node) > arithmetic_area(10, "bf16", node) > arithmetic_area(10, "int8", node)


def test_the_chip_the_areas_come_from_is_given_back() -> None:
    assert sram_area(24 << 20, "28nm") == pytest.approx(0.29 * 331)
    assert arithmetic_area(65_536, "int8", "28nm") == pytest.approx(0.24 * 331)


def test_more_memory_for_the_same_area_costs_units() -> None:
    base = pk.device("h100-sxm")
    larger = same_area(base, {"memory.l2.capacity": "100 MiB"})
    assert larger.units is not None
    assert base.units is not None
    assert larger.units < base.units
    budget = area(base)["total_mm2"]
    one_more = pk.device(base, **{"memory.l2.capacity": "100 MiB", "compute.units": larger.units + 1})
    assert area(larger)["total_mm2"] <= budget < area(one_more)["total_mm2"]
    assert same_area(base, {}).units == base.units
    df = pk.sweep(
        "gpt2", phase="prefill", batch=8, seq=1024, replay=False,
        device={"base": "h100-sxm", "memory.l2.capacity": ["50 MiB", "100 MiB"], "same_area": "compute.units"},
    )  # fmt: skip
    assert df["compute.units"].tolist() == [base.units, larger.units]
    with pytest.raises(ValueError, match="cannot pay for silicon"):
        same_area(base, {}, pay_with="memory.hbm.capacity")


def test_the_best_hardware_keeps_its_budget_and_beats_random_points() -> None:
    pytest.importorskip("scipy", reason="the optimiser is scipy's")
    over = {"compute.units": (40, 160), "memory.l2.capacity": ("10 MiB", "200 MiB")}
    budget = area(pk.device("h100-sxm"))["total_mm2"]
    work: dict[str, Any] = {"phase": "prefill", "batch": 4, "seq": 512, "replay": False}
    best = pk.optimise(
        "gpt2", device="h100-sxm", over=over, budget=f"area_mm2 <= {budget}", generations=6, seed=1, **work
    )
    assert best.within_budget
    assert area(best.device)["total_mm2"] <= budget
    assert best.objective == pk.estimate(pk.prefill("gpt2", batch=4, seq=512), best.device).time
    rng = np.random.default_rng(0)
    for units, cache in zip(rng.integers(40, 161, 12), rng.integers(10, 201, 12)):
        other = pk.device("h100-sxm", **{"compute.units": int(units), "memory.l2.capacity": f"{cache} MiB"})
        if area(other)["total_mm2"] <= budget:
            assert pk.estimate(pk.prefill("gpt2", batch=4, seq=512), other).time >= best.objective * (1 - 1e-3)


def test_the_largest_size_takes_a_configuration_as_a_mapping() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1000,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    }  # fmt: skip
    found = pk.largest("batch", config, device="rtx-4090", phase="decode", context=4096, step=64)
    assert found.estimate.fits
    assert not found.next.fits
