"""A row of a sweep is the estimate of its configuration, to the last bit, however the sweep was cut and joined."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.memory.footprint import footprint
from peakline.memory.lifetimes import unroll
from peakline.sweeping.axes import plan_of
from peakline.sweeping.evaluate import evaluate
from peakline.sweeping.table import ROLES, Table

BUILD = {"training": pk.training_step, "prefill": pk.prefill, "decode": pk.decode, "inference": pk.inference}


def _estimate(row: dict[str, Any], options: dict[str, Any]) -> pk.Estimate:
    """The row's configuration by itself, from what stands in the row."""
    chosen = {name: row[name] for name in options if isinstance(row.get(name), str | int | bool | np.bool_)}
    sizes = {name: int(row[name]) for name in ("batch", "seq", "context", "image") if not pd.isna(row[name])}
    estimate_options = {name: chosen.pop(name) for name in ("allocator", "cuda_graph") if name in chosen}
    chosen = {k: v.item() if isinstance(v, np.generic) else v for k, v in chosen.items()}
    graph = BUILD[row["phase"]](row["model"], **{"dtype": row["dtype"]} | chosen, **sizes)
    device = row["device"] if pd.isna(row["device_json"]) else pk.Device.from_json(row["device_json"])
    return pk.estimate(graph, device, **estimate_options)


def _assert_equal(row: dict[str, Any], est: pk.Estimate) -> None:
    cost, memory = est.cost, est.memory
    assert row["live_bytes"] == memory.live
    for role in ROLES:
        assert row[f"live_{role}_bytes"] == memory.by_role.get(role, 0)
    if row["replayed"]:
        assert row["fits"] == memory.fits
        assert row["allocated_bytes"] == memory.allocated
        assert row["reserved_bytes"] == memory.reserved
        assert row["device_bytes"] == memory.device
        assert row["allocator_retries"] == memory.retries
    else:
        alone = footprint(unroll(est.graph), est.device, replay=False)
        assert row["fits"] == alone.fits
        assert pd.isna(row["device_bytes"])
    assert row["capacity_bytes"] == memory.capacity
    assert (row["time_s"], row["time_io_s"], row["time_bound_s"]) == (cost.tiled, cost.io, cost.bound)
    assert (row["flops"], row["vector_operations"]) == (float(cost.flops), float(cost.vector_work))
    assert row["main_traffic_bytes"] == cost.traffic[row["main_memory"]]
    assert row["main_least_bytes"] == cost.io_lower_bound[row["main_memory"]]
    if isinstance(row["cache"], str):
        assert row["cache_traffic_bytes"] == cost.traffic.get(row["cache"], 0.0)
    shares = est.shares
    assert row["bound_share"] == max(shares.values()) == shares[row["bound_by"]]
    assert math.isnan(row["energy_j"]) if est.energy_joules is None else row["energy_j"] == est.energy_joules


def _rows(df: pd.DataFrame) -> list[dict[str, Any]]:
    return df.astype(object).to_dict("records")


AXES: dict[str, dict[str, list[Any]]] = {
    "decode": {"kv_dtype": ["bf16", "fp8"], "weight_dtype": ["int8", "int4-g128"], "kernels": ["eager", "fused"]},
    "prefill": {"attention": ["auto", "eager"], "dtype": ["bf16", "fp32"], "cuda_graph": [True, False]},
    "training": {
        "optimizer": ["adamw", "sgd", "none"],
        "recompute": ["none", "full"],
        "accumulation": [1, 2],
        "allocator": ["max_split_size_mb:64", "expandable_segments:True"],
    },
}
MODELS = ["gpt2", "llama-3.2-1b", "qwen3-0.6b", "olmoe-1b-7b", "mamba-130m"]
DEVICES = ["h100-sxm", "a30", "tpu-v4", "a100-40gb", "h100-sxm[memory.hbm.capacity=1 GiB]", "epyc-9654"]


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments of a small sweep, and its options."""
    phase = draw(st.sampled_from(sorted(AXES)))
    known = [name for name in MODELS if name in pk.model_names()]
    length = "context" if phase == "decode" else "seq"
    options = {
        name: draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True))
        for name, values in AXES[phase].items()
        if draw(st.booleans())
    }
    size = st.integers(1, 700)
    axes = {
        "batch": draw(st.lists(st.integers(1, 24), min_size=1, max_size=3)),
        length: draw(st.lists(size, min_size=1, max_size=3)),
    }
    if draw(st.booleans()):
        count = min(len(axes["batch"]), len(axes[length]))
        axes = {name: values[:count] for name, values in axes.items()} | {"zip": [("batch", length)]}
    devices = draw(st.lists(st.sampled_from(DEVICES), min_size=1, max_size=2, unique=True))
    arguments = {"model": draw(st.sampled_from(known)), "phase": phase, "device": devices}
    return arguments | axes | options | {"replay": draw(st.booleans())}, options


@settings(max_examples=18, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(sweeps())
def test_rows_of_random_sweeps_are_the_estimates_one_by_one(case: tuple[dict[str, Any], dict[str, Any]]) -> None:
    arguments, options = case
    rows = _rows(pk.sweep(**arguments))
    lengths = [len(v) for k, v in arguments.items() if isinstance(v, list) and k != "zip"]
    if "zip" in arguments:
        lengths.remove(len(arguments["batch"]))
    assert len(rows) == math.prod(lengths)
    for row in rows[:: max(len(rows) // 3, 1)]:
        if isinstance(row["error"], str):
            with pytest.raises(ValueError, match=f"^{re.escape(row['error'])}$"):
                _estimate(row, options)
        else:
            _assert_equal(row, _estimate(row, options))


@pytest.mark.parametrize(
    ("model", "device", "phase", "axes"),
    [
        (
            "resnet-18",
            "a100-80gb",
            "training",
            {"batch": [1, 32], "image": [64, 224], "autocast": ["bf16"], "dtype": "fp32"},
        ),
        ("mcunet-in0", "stm32f746", "inference", {"dtype": "int8", "image": [48, 80]}),
        ("bert-base-uncased", "epyc-9654", "inference", {"batch": [1, 4], "seq": [16, 128], "dtype": "fp32"}),
    ],
)
def test_vision_and_small_devices_too(model: str, device: str, phase: str, axes: dict[str, Any]) -> None:
    if model not in pk.model_names() or device not in pk.devices():
        pytest.skip(f"{model} or {device} is not catalogued")
    options = {name: value for name, value in axes.items() if name not in ("batch", "seq", "image", "dtype")}
    rows = _rows(pk.sweep(model, device=device, phase=phase, **axes))
    for row in rows:
        assert not isinstance(row["error"], str), row["error"]
        _assert_equal(row, _estimate(row, options))


LARGE: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-3.2-1b", "training", {"batch": range(1, 61), "seq": range(64, 64 * 41, 64), "optimizer": "adamw"}),
    ("gpt2", "training", {"batch": range(1, 41), "seq": range(1, 401, 7), "attention": ["eager"]}),
    ("gpt2", "decode", {"batch": range(1, 41), "context": range(1, 400, 7), "kv_dtype": ["fp8"]}),
    ("qwen3-30b-a3b", "prefill", {"batch": range(1, 33), "seq": range(1, 400, 9)}),
    ("resnet-18", "training", {"batch": range(1, 129), "image": range(32, 289, 16)}),
]


@pytest.mark.parametrize(("model", "phase", "axes"), LARGE)
@pytest.mark.parametrize("device", ["h100-sxm", "a30", "tpu-v4"])
def test_rows_of_large_blocks_are_the_estimates_one_by_one(
    model: str, phase: str, axes: dict[str, Any], device: str
) -> None:
    options = [name for name in axes if name not in ("batch", "seq", "context", "image")]
    df = pk.sweep(model, device=device, phase=phase, replay=False, **axes)
    assert len(df) > 1024
    assert df["error"].isna().all()
    drawn = np.random.default_rng(0).integers(0, len(df), 4)
    for row in _rows(df.iloc[[0, len(df) - 1, *drawn]]):
        _assert_equal(row, _estimate(row, dict.fromkeys(options)))


def test_pairs_of_sizes_in_any_order_are_the_same_rows() -> None:
    rng = np.random.default_rng(1)
    batch, seq = rng.integers(1, 50, 3000), rng.integers(1, 300, 3000)
    zipped = {"batch": batch, "seq": seq, "zip": ("batch", "seq"), "phase": "training", "replay": False}
    df = pk.sweep("gpt2", device="h100-sxm", **zipped)
    for row in _rows(df.iloc[::600]):
        _assert_equal(row, _estimate(row, {}))


def test_sizes_on_both_sides_of_a_sliding_window_are_two_programs_in_one_sweep() -> None:
    sizes: dict[str, Any] = {"batch": [1, 2], "seq": [100, 4096, 4000]}
    rows = _rows(pk.sweep("mistral-7b", device="h100-sxm", phase="training", optimizer="sgd", replay=False, **sizes))
    assert [row["seq"] for row in rows] == [100, 4096, 4000] * 2
    for row in rows[1:3]:
        _assert_equal(row, _estimate(row, {"optimizer": "sgd"}))
    with pytest.raises(ValueError, match="sliding window of 4096 tokens"):
        pk.training_step("mistral-7b", batch=1, seq=np.array([100, 4096]))


def test_cutting_a_sweep_into_other_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> pd.DataFrame:
        plan = plan_of(
            ["gpt2", "llama-3.2-1b"], device=["h100-sxm", "a30"], phase="prefill", batch=range(1, 8), seq=[8, 16, 24],
            replay=False,
        )  # fmt: skip
        return Table.frame([evaluate(plan.part(i)) for i in range(plan.parts)])

    whole = rows()
    monkeypatch.setattr("peakline.sweeping.plan.PART_ROWS", 5)
    monkeypatch.setattr("peakline.sweeping.evaluate.BLOCK", 4)
    pd.testing.assert_frame_equal(rows(), whole, check_categorical=False)


def test_a_replay_is_shared_between_devices_only_where_it_is_the_same() -> None:
    small = [f"h100-sxm[memory.hbm.capacity={gib} GiB]" for gib in (3, 4, 5, 6, 8, 80)]
    df = pk.sweep("gpt2", device=small, phase="training", batch=[4, 8], seq=512)
    assert df["fits"].nunique() == 2
    for row in _rows(df):
        _assert_equal(row, _estimate(row, {}))


def test_a_graph_of_arrays_is_swept_over_devices() -> None:
    graph = pk.decode("gpt2", batch=np.array([1, 4, 9]), context=np.array([[64], [128]]))
    df = pk.sweep(graph, device=["h100-sxm", "a100-80gb"])
    assert len(df) == 12
    est = pk.estimate(graph, "a100-80gb")
    there = df[df["device"] == "a100-80gb"]
    assert there["time_s"].tolist() == est.time.reshape(-1).tolist()
    assert there["device_bytes"].tolist() == est.memory.device.reshape(-1).tolist()
    assert there["batch"].tolist() == [1, 4, 9, 1, 4, 9]
