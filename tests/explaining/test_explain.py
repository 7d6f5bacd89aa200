"""An explanation adds up to the peak, and every change it names saves what running the estimate again says."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import peakline as pk
from peakline.models.graph import Graph

STEP: dict[str, Any] = {"batch": 4, "seq": 512, "dtype": "fp32", "optimizer": "adamw"}


@pytest.fixture(scope="module")
def step() -> Graph:
    return pk.training_step("gpt2", **STEP)


@pytest.fixture(scope="module")
def found(step: Graph) -> pk.Explanation:
    return pk.explain(step, "a100-80gb")


def test_modules_and_roles_add_up_to_the_live_peak(step: Graph, found: pk.Explanation) -> None:
    live = pk.estimate(step, "a100-80gb").memory.live
    assert sum(m.bytes for m in found.modules) == live
    assert all(sum(m.by_role.values()) == m.bytes for m in found.modules)


def test_layers_stand_together_under_one_path(found: pk.Explanation) -> None:
    paths = [m.module for m in found.modules]
    assert "transformer.h.*.mlp" in paths
    assert not any(part.isdigit() for path in paths for part in path.split("."))
    assert len(paths) == len(set(paths))


def test_the_largest_tensors_come_largest_first_with_their_layers_counted(found: pk.Explanation) -> None:
    sizes = [t.bytes for t in found.tensors]
    assert len(sizes) == 10
    assert sizes == sorted(sizes, reverse=True)
    per_layer = next(t for t in found.tensors if t.tensor == "transformer.h.*.mlp.c_fc.linear.out")
    assert per_layer.count == 12
    assert per_layer.bytes == 12 * 4 * 512 * 3072 * 4
    assert per_layer.operator == "linear"


@pytest.mark.parametrize(
    "options", [{"recompute": "full"}, {"loss": "fused"}, {"autocast": "bf16"}, {"batch": 2, "accumulation": 2}]
)
def test_a_change_saves_what_building_and_estimating_again_says(found: pk.Explanation, options: dict[str, Any]) -> None:
    before = pk.estimate(pk.training_step("gpt2", **STEP), "a100-80gb")
    after = pk.estimate(pk.training_step("gpt2", **{**STEP, **options}), "a100-80gb")
    effect = next(e for e in found.effects if dict(e.change.options) == options)
    assert effect.live == before.memory.live - after.memory.live
    assert effect.device == before.peak - after.peak
    assert effect.time == after.time


def test_what_saves_most_comes_first(found: pk.Explanation) -> None:
    saved = [e.device for e in found.effects]
    assert saved == sorted(saved, reverse=True)
    assert min(e.live for e in found.effects) > 0


def test_a_plan_of_single_tensors_beats_recomputing_whole_layers(found: pk.Explanation) -> None:
    planned = next(e for e in found.effects if "pk.plan" in e.change.how)
    whole = next(e for e in found.effects if dict(e.change.options) == {"recompute": "full"})
    assert planned.time < whole.time
    assert planned.live > 0


def test_decoding_is_told_to_shrink_its_cache() -> None:
    found = pk.explain(pk.decode("llama-3.1-8b", batch=64, context=8192), "a100-80gb")
    cache = next(e for e in found.effects if dict(e.change.options) == {"kv_dtype": "fp8_e4m3"})
    assert cache.live == pytest.approx(32 * 2**30, rel=1e-3)  # half of 64 GiB


def test_a_graph_read_back_has_no_changes_to_try_and_says_so(step: Graph) -> None:
    found = pk.explain(Graph.from_json(step.to_json()), "a100-80gb")
    assert found.modules
    assert not found.effects
    assert "not on one read back" in found.notes[0]


def test_a_sweep_is_refused() -> None:
    sweep = pk.training_step("gpt2", batch=np.array([1, 2]), seq=128)
    with pytest.raises(ValueError, match="one configuration"):
        pk.explain(sweep, "a100-80gb")


def test_the_text_and_the_json_say_the_same(found: pk.Explanation) -> None:
    told = json.loads(found.to_json())
    assert told["schema"] == "peakline.explanation/1"
    assert [c["change"] for c in told["changes"]] == [e.change.words for e in found.effects]
    assert all(e.change.words in str(found) for e in found.effects)
