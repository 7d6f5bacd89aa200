"""Graphs as JSON and back (`peakline.graph/1`), unchanged; and what is said of a file that is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from programs import training_steps

import peakline as pk
from peakline.memory.lifetimes import unroll
from peakline.memory.live import live_peak, occupancy
from peakline.models.dims import is_array
from peakline.models.graph import Graph, GraphError


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(training_steps())
def test_a_random_step_comes_back_unchanged(graph: Graph) -> None:
    assert Graph.from_json(graph.to_json()) == graph


@pytest.mark.parametrize("recompute", ["none", "full", "selective"])
def test_a_real_step_comes_back_unchanged(recompute: str) -> None:
    graph = pk.training_step("gpt2", batch=2, seq=64, recompute=recompute, accumulation=2, overrides={"layers": 2})
    back = Graph.from_json(graph.to_json())
    assert back == graph
    assert back.to_json() == graph.to_json()


@pytest.mark.parametrize("model", ["mixtral-8x7b", "gemma-2-2b", "deepseek-v3", "t5-small", "mamba-130m", "resnet-18"])
def test_every_family_s_graph_comes_back_unchanged(model: str) -> None:
    graph = pk.inference(model, **({} if model == "resnet-18" else {"seq": 64}))
    assert Graph.from_json(graph.to_json()) == graph


def test_a_sweep_comes_back_with_its_arrays() -> None:
    graph = pk.prefill("llama-3.2-1b", batch=np.arange(1, 5)[:, None], seq=np.array([64, 128]), overrides={"layers": 2})
    back = Graph.from_json(graph.to_json())
    for name, tensor in graph.tensors.items():
        for mine, theirs in zip(tensor.shape, back.tensors[name].shape):
            assert is_array(mine) == is_array(theirs)
            assert np.array_equal(mine, theirs)
    peaks = [live_peak(occupancy(unroll(g))).bytes for g in (graph, back)]
    assert np.array_equal(*peaks)
    assert np.array_equal(back.workload["batch"], graph.workload["batch"])


def small() -> dict[str, Any]:
    """A valid document to spoil."""
    return {
        "schema": "peakline.graph/1",
        "name": "tiny",
        "tensors": [
            {"name": "x", "shape": [2, 3], "dtype": "fp32", "role": "input"},
            {"name": "y", "shape": [2, 3], "dtype": "fp32", "role": "activation"},
        ],
        "blocks": [{"name": "main", "operators": [{"name": "a", "type": "relu", "inputs": ["x"], "outputs": ["y"]}]}],
    }


def test_a_graph_written_by_hand_needs_little() -> None:
    graph = Graph.from_json(json.dumps(small()))
    assert graph.tensors["y"].bytes == 24
    assert graph.blocks[0].operators[0].phase == "forward"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(schema="peakline.graph/2"), "field 'schema' is 'peakline.graph/2'; accepted"),
        (lambda d: d.pop("name"), "field 'name' is missing"),
        (lambda d: d["tensors"][0].pop("shape"), "field 'shape' of 'x' is missing"),
        (lambda d: d["tensors"][0].update(shape=[2.5]), "a dimension must be an integer or .*, not 2.5"),
        (lambda d: d["tensors"][0].update(shape=[True]), "a dimension must be an integer"),
        (lambda d: d["tensors"][0].update(shape=[{"sizes": [1.5]}]), "integer"),
        (lambda d: d["tensors"][0].update(shape=7), "shape"),
        (lambda d: d["tensors"][0].update(dtype="fp17"), "dtype 'fp17' is unknown"),
        (lambda d: d["tensors"].append(d["tensors"][0]), "tensor 'x' appears twice"),
        (lambda d: d.update(tensors={"x": 1}), "tensors"),
        (lambda d: d.update(blocks=None), "blocks"),
        (lambda d: d["blocks"][0].update(carries={"p": ["x"]}), "carr"),
        (lambda d: d["blocks"][0].update(repeat="many"), "repeat"),
        (lambda d: d["blocks"][0]["operators"][0].update(inputs="x"), "inputs"),
        (lambda d: d["blocks"][0]["operators"][0].update(inputs=["nothing"]), "reads 'nothing', which does not exist"),
        (lambda d: d["blocks"][0]["operators"][0].update(type="frobnicate"), "operator type 'frobnicate' is unknown"),
    ],
)
def test_a_fault_is_named_with_its_field(spoil: Any, said: str) -> None:
    data = small()
    spoil(data)
    with pytest.raises(GraphError, match=said):
        Graph.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[1, 2]", '"graph"'])
def test_what_is_no_graph_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match=r"not JSON|schema"):
        Graph.from_json(text)
