"""What may be asked of a sweep, and how everything else is refused."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import peakline as pk
from peakline.sweeping.axes import plan_of
from peakline.sweeping.expressions import Condition
from peakline.sweeping.plan import blocks
from peakline.sweeping.ranges import from_mapping
from peakline.sweeping.run import TooManyRows

BASE: dict[str, Any] = {"model": "gpt2", "device": "h100-sxm", "phase": "decode", "replay": False}


def test_the_example_of_the_issue_makes_a_row_per_configuration() -> None:
    fast = pk.device("h100-sxm", **{"memory.hbm.bandwidth": "8 TB/s"})
    df = pk.sweep(
        model=["llama-3.2-1b", "gpt2"], device=["a100-80gb", "h100-sxm", fast], phase="decode", batch=[1, 8, 64],
        context=[512, 1024], kv_dtype=["bf16", "fp8"], replay=False,
    )  # fmt: skip
    assert len(df) == 2 * 3 * 3 * 2 * 2
    assert df["memory.hbm.bandwidth_bytes_per_s"].unique().tolist() == [2.039e12, 3.35232e12, 8e12]
    named = ["model", "device", "batch", "context", "kv_dtype"]
    assert not df.duplicated(named).any()
    assert df["batch"].tolist()[:6] == [1, 1, 8, 8, 64, 64]


def test_a_row_names_a_variant_so_that_it_can_be_built_again() -> None:
    odd = pk.device(pk.device("h100-sxm", hbm="96 GiB"), **{"compute.clock": 1.2e9})
    df = pk.sweep(**BASE | {"device": ["h100-sxm[hbm=96 GiB]", odd]}, batch=1, context=64)
    first, second = df.astype(object).to_dict("records")
    assert pk.device(first["device"]).main.capacity == 96 << 30
    assert pk.Device.from_json(second["device_json"]) == odd
    assert second["compute.clock_hz"] == 1.2e9


def test_a_field_of_the_device_may_be_an_axis_and_be_zipped() -> None:
    fields = {"memory.hbm.bandwidth": ["2 TB/s", "4 TB/s"], "compute.units": [66, 132]}
    df = pk.sweep(**BASE, batch=1, context=[64, 128], **fields, zip=("memory.hbm.bandwidth", "compute.units"))
    assert len(df) == 4
    assert df["compute.units"].tolist() == [66, 66, 132, 132]
    assert df["time_s"].is_monotonic_decreasing or df["time_s"].iloc[0] > df["time_s"].iloc[2]


def test_sizes_zipped_with_options_keep_their_pairs() -> None:
    df = pk.sweep(**BASE, batch=[1, 2, 3], kv_dtype=["bf16", "fp8", "bf16"], context=64, zip=("batch", "kv_dtype"))
    pairs = sorted(zip(df["batch"], df["kv_dtype"]))
    assert pairs == [(1, "bf16"), (2, "fp8"), (3, "bf16")]


def test_a_configuration_that_cannot_be_is_a_row_with_its_error() -> None:
    df = pk.sweep("gpt2", device=["h100-sxm", "stm32f746"], phase="prefill", batch=1, seq=[512, 1024, 2048])
    assert len(df) == 6
    failed = df[df["error"].notna()]
    assert set(failed["device"]) >= {"stm32f746"}
    assert failed["time_s"].isna().all()
    assert failed["fits"].isna().all()
    assert df[df["device"] == "h100-sxm"]["time_s"].iloc[0] > 0


def test_a_field_that_a_device_lacks_is_an_error_of_its_rows_alone() -> None:
    df = pk.sweep(
        **BASE | {"device": ["h100-sxm", "epyc-9654"]}, batch=[1, 2], context=64,
        **{"memory.hbm.bandwidth": ["1 TB/s"], "compute.units": [4, 8]},
    )  # fmt: skip
    assert len(df) == 8
    assert df["error"].isna().tolist() == [True] * 4 + [False] * 4
    assert df["error"].iloc[-1].startswith("override 'memory.hbm.bandwidth' is not a field of epyc-9654")


def test_conditions_keep_rows_by_configuration_and_by_result() -> None:
    df = pk.sweep(**BASE, batch=range(1, 20), context=[32, 64], where=["batch * context <= 320", "batch != 3"])
    assert set(zip(df["batch"], df["context"])) == {
        (b, c) for b, c in itertools.product(range(1, 20), (32, 64)) if b * c <= 320 and b != 3
    }
    everything = pk.sweep(**BASE, batch=range(1, 20), context=[32, 64])
    quick = pk.sweep(**BASE, batch=range(1, 20), context=[32, 64], where="time_s < 5e-4 and device in ['h100-sxm']")
    assert quick["time_s"].tolist() == everything["time_s"][everything["time_s"] < 5e-4].tolist()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": []}, "batch: the axis is empty"),
        ({"device": []}, "device: the axis is empty"),
        ({"kv_dtype": []}, "kv_dtype: the axis is empty"),
        ({"contxt": [64]}, "axis 'contxt' is unknown; did you mean 'context'"),
        ({"model": "gtp2"}, "model 'gtp2' is unknown; nearest: gpt2"),
        ({"device": "h100-smx"}, "h100-sxm"),
        ({"phase": "decoding"}, "phase: 'decoding' is unknown"),
        ({"batch": [1, 0]}, "batch: must be at least 1, not 0"),
        ({"batch": [1.5]}, "batch: 1.5 is not a whole number"),
        ({"seq": [64]}, "seq: a decode step makes one token"),
        ({"optimizer": ["adamw"]}, "optimizer: only a training step has one"),
        ({"batch": [1, 2], "context": [1], "zip": ("batch", "context")}, "batch has 2, context has 1"),
        ({"zip": ("batch", "context")}, "zip: 'batch' is no axis here"),
        ({"where": "bach < 2"}, "there is no column 'bach'; did you mean 'batch'"),
        ({"where": "batch <"}, "is not a condition"),
        ({"memory.hbm.bandwith": ["2 TB/s"]}, "did you mean 'memory.hbm.bandwidth'"),
        ({"memory.hbm.bandwidth": ["2 TB"]}, "2 TB"),
        ({"prices": {"h100-sxm": -1}}, "is not an amount per hour"),
        ({"replay": "perhaps"}, "replay: 'perhaps' is not one of"),
    ],
)
def test_bad_input_is_refused_by_name_and_value(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        pk.sweep(**BASE | change)


def test_a_million_million_rows_are_refused_with_their_time_and_bytes() -> None:
    with pytest.raises(TooManyRows, match=r"1,000,000,000,000 rows .* about .* (days|hours|years) .* TB"):
        pk.sweep(**BASE, batch=range(1, 1_000_001), context=range(1, 1_000_001))


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "batch.__class__", "[x for x in (1,)]", "lambda: 1", "batch if 1 else 2",
     "f'{batch}'", "batch := 2", "open('x')", "(batch)[0]", "max(batch, key=1)", "9**9**9**9 < batch < {}"],
)  # fmt: skip
def test_a_condition_can_run_nothing(text: str) -> None:
    with pytest.raises(ValueError, match="where"):
        Condition.parse(text, ["batch"])


def test_a_condition_over_huge_numbers_ends_at_once() -> None:
    held = Condition.parse("9**9**9**9 > batch * 9e18", ["batch"]).holds({"batch": np.array([1, 2])}, 2)
    assert held.tolist() == [True, True]


@given(st.data())
def test_conditions_mean_what_python_means_by_them(data: st.DataObject) -> None:
    operators = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    arithmetic = st.sampled_from(["a + b", "a - 2 * b", "a / b", "a * b", "a % b", "max(a, b)", "-a"])
    parts = data.draw(st.lists(st.tuples(arithmetic, operators, st.integers(-20, 20)), min_size=1, max_size=3))
    joins = data.draw(st.lists(st.sampled_from([" and ", " or "]), min_size=2, max_size=2))
    text = "".join(f"{j}{'not ' if n % 2 else ''}({e} {o} {n})" for j, (e, o, n) in zip(["", *joins], parts))
    a = np.array(data.draw(st.lists(st.integers(-50, 50), min_size=4, max_size=4)))
    b = np.array(data.draw(st.lists(st.integers(1, 50), min_size=4, max_size=4)))
    held = Condition.parse(text, ["a", "b"]).holds({"a": a, "b": b}, 4)
    assert held.tolist() == [bool(eval(text, {"a": int(x), "b": int(y), "max": max})) for x, y in zip(a, b)]


@given(st.lists(st.integers(1, 6), min_size=0, max_size=4), st.data())
def test_rectangles_cover_a_range_of_rows_once_and_in_order(lengths: list[int], data: st.DataObject) -> None:
    total = math.prod(lengths)
    start = data.draw(st.integers(0, total - 1))
    stop = data.draw(st.integers(start + 1, total))
    rows = list(itertools.product(*(range(n) for n in lengths)))[start:stop]
    found = blocks(tuple(lengths), start, stop)
    assert [p for block in found for p in itertools.product(*(range(a, b) for a, b in block))] == rows
    assert len(found) <= 2 * max(len(lengths), 1)


def test_parts_are_the_rows_of_the_whole_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peakline.sweeping.plan.PART_ROWS", 7)
    axes = {"batch": range(1, 4), "context": range(1, 6), "kv_dtype": ["bf16", "fp8"]}
    plan = plan_of(**BASE, **axes)
    assert sum(plan.part(i).rows for i in range(plan.parts)) == plan.rows == 30
    keys = [plan.part(i).key for i in range(plan.parts)]
    assert len(set(keys)) == len(keys)
    assert keys == [plan_of(**BASE, **axes).part(i).key for i in range(plan.parts)]
    assert keys[0] != plan_of(**BASE | {"device": "t4"}, **axes).part(0).key


def test_ranges_are_written_as_steps_doublings_or_counts() -> None:
    assert from_mapping("batch", {"from": 1, "to": 5}) == [1, 2, 3, 4, 5]
    assert from_mapping("batch", {"from": 1, "to": 64, "scale": "log"}) == [1, 2, 4, 8, 16, 32, 64]
    assert from_mapping("seq", {"from": 100, "to": 300, "count": 3}) == [100, 200, 300]
    assert from_mapping("seq", {"from": 8, "to": 8, "count": 4, "scale": "log"}) == [8]
    with pytest.raises(ValueError, match="batch: the axis is empty; its range ends at 1, before 2"):
        from_mapping("batch", {"from": 2, "to": 1})
    with pytest.raises(ValueError, match="batch: a range is written with"):
        from_mapping("batch", {"from": 2, "until": 1})


def test_area_and_power_are_columns_and_can_be_budgets() -> None:
    axes: dict[str, Any] = {"phase": "decode", "batch": 1, "context": 64, "replay": False}
    devices = ["h100-sxm", "a100-80gb", {"base": "h100-sxm", "memory.l2.capacity": ["50 MiB", "200 MiB"]}]
    whole = pk.sweep("gpt2", device=devices, **axes)
    assert (whole["tdp_w"] == [pk.device(name).tdp for name in whole["device"]]).all()
    assert whole["area_mm2"][3] > whole["area_mm2"][2] == whole["area_mm2"][0]
    kept = pk.sweep("gpt2", device=devices, where=["area_mm2 < 500", "tdp_w > 400"], **axes)
    assert kept["device"].tolist() == ["h100-sxm", "h100-sxm[memory.l2.capacity=50 MiB]"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("kv_dtype", "bf61"), ("attention", "falsh"), ("recompute", "som"), ("optimizer", "adm"), ("loss", "fussed")],
)
def test_a_misspelt_value_is_refused_before_a_row_is_evaluated(option: str, value: str) -> None:
    phase = "training" if option in ("recompute", "optimizer", "loss") else "prefill"
    sizes = {"batch": range(1, 10_000), "seq": range(1, 1000)}
    with pytest.raises(ValueError, match=f"{option}.*{value}"):
        pk.sweep("gpt2", device="h100-sxm", phase=phase, **{**sizes, option: [value]})


def test_prices_follow_the_time() -> None:
    df = pk.sweep(**BASE, batch=[4], context=64, prices={"h100-sxm": 3.6})
    row = df.iloc[0]
    assert row["price_per_run"] == pytest.approx(row["time_s"] * 1e-3)
    assert row["price_per_million_tokens"] == pytest.approx(row["price_per_run"] / 4 * 1e6)
