"""The vocabulary of a graph: references, repeated blocks, faults, views of it."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from networks import SHAPE, WIDTH, feed_forward, stack

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import dtype
from peakline.models.flatten import Resolver, flatten
from peakline.models.graph import Block, Carry, Graph, GraphError, Operator, Tensor
from peakline.models.operators.elementwise import add, unary
from peakline.models.operators.matmul import linear
from peakline.models.select import select, sweep_shape
from peakline.models.transforms.training import train


def chain(layers: int = 3) -> Graph:
    """x → `layers` times y = tanh(W·x) → z = relu."""
    b = GraphBuilder("chain", kind="fp32")
    x = b.input("x", SHAPE, "fp32")
    with b.layers("layers", layers, carry=x) as layer:
        layer.x = unary(b, "tanh", linear(b, layer.x, WIDTH, name="w"), name="act")
    unary(b, "relu", layer.result, name="out")
    return b.graph()


# ---- references ------------------------------------------------------------------------------------------------------
def test_a_name_inside_its_family_means_this_layer_s_tensor() -> None:
    graph = chain()
    body = graph.blocks[0]
    assert Resolver(graph)("layers.act.out", body, 1) == (("layers.act.out", 1),)


def test_a_name_from_outside_means_the_layer_executed_last() -> None:
    graph = chain()
    assert Resolver(graph)("layers.act.out", graph.blocks[1], 0) == (("layers.act.out", 2),)


def test_a_star_means_every_layer() -> None:
    graph = chain()
    assert Resolver(graph)("layers.w.weight[*]", Block("outside", ()), 0) == tuple(
        ("layers.w.weight", i) for i in range(3)
    )


def test_a_carry_is_the_outer_tensor_first_and_then_the_previous_layer_s() -> None:
    graph = chain()
    body, resolve = graph.blocks[0], Resolver(graph)
    assert [resolve("layers.carry", body, i) for i in range(3)] == [
        (("x", 0),),
        (("layers.act.out", 0),),
        (("layers.act.out", 1),),
    ]


def test_a_backward_block_walks_from_the_last_layer_to_the_first() -> None:
    graph = train_graph(layers=3)
    backward = next(b for b in graph.blocks if b.reverse)
    ((port, _),) = backward.carries.items()
    arriving = [Resolver(graph)(port, backward, i) for i in backward.indices()]
    assert [i for ((_, i),) in arriving[1:]] == [2, 1]


def train_graph(layers: int = 3) -> Graph:
    b = GraphBuilder("step", kind="fp32", training=True)
    loss = stack(feed_forward, layers)(b)
    return train(b.graph(), loss.name, optimizer="adamw")


# ---- flattening ------------------------------------------------------------------------------------------------------
def test_unrolled_names_carry_the_layer_as_a_state_dict_does() -> None:
    flat = flatten(chain())
    assert [t for t in flat.tensors if "weight" in t] == [f"layers.{i}.w.weight" for i in range(3)]
    assert [o.inputs[0] for o in flat.blocks[0].operators if o.type == "linear"] == [
        "x",
        "layers.0.act.out",
        "layers.1.act.out",
    ]


def test_flattening_twice_changes_nothing() -> None:
    flat = train_graph().flatten()
    assert flat.flatten() == flat


def test_counts_see_every_layer_and_a_shared_table_once() -> None:
    graph = chain(5)
    assert graph.parameters == 5 * WIDTH * WIDTH == graph.flatten().parameters
    assert graph.total_bytes("parameter") == 4 * graph.parameters
    assert graph.trainable_parameters == graph.parameters


# ---- networkx --------------------------------------------------------------------------------------------------------
def test_operators_are_nodes_and_tensors_edges() -> None:
    view = train_graph(layers=2).to_networkx()
    assert nx.is_directed_acyclic_graph(view)
    edge = view.edges["layers.0.norm.layer_norm", "layers.0.up.linear"]
    assert edge["tensors"] == ["layers.0.norm.layer_norm.out"]
    assert view.nodes["layers.0.up.linear"]["type"] == "linear"
    assert nx.has_path(view, "first.linear", "optimizer.step")


def test_a_saved_tensor_is_an_edge_from_forward_to_backward() -> None:
    view = train_graph(layers=2).to_networkx()
    phases = nx.get_node_attributes(view, "phase")
    crossing = [t for a, b, t in view.edges(data="tensors") if (phases[a], phases[b]) == ("forward", "backward")]
    saved = {name for names in crossing for name in names}
    assert "layers.1.up.linear.out" in saved  # gelu keeps its input
    assert "layers.1.down.linear.out" not in saved  # an addition keeps nothing


# ---- faults ----------------------------------------------------------------------------------------------------------
def test_all_faults_are_reported_at_once() -> None:
    fp32 = dtype("fp32")
    graph = Graph(
        "broken",
        {
            "x": Tensor("x", (2, -3), fp32, "input"),
            "y": Tensor("y", (2,), fp32, storage="nowhere"),
            "z": Tensor("other name", (2,), fp32, role="thing"),  # type: ignore[arg-type]
            "w": Tensor("w", (2,), fp32, family="f"),
        },
        (
            Block("main", (Operator("a", "relu", ("y",), ("x",)), Operator("a", "relu", ("missing",), ("x", "v")))),
            Block("main", (Operator("b", "relu", ("x",), ("y",), phase="sideways"),), repeat=4),  # type: ignore[arg-type]
            Block("c", (), repeat=0, family="f", carries={"p": Carry("gone", "x")}),
        ),
    )
    with pytest.raises(GraphError) as error:
        graph.check()
    text = str(error.value)
    for fault in (
        "negative dimension",
        "shares the storage of 'nowhere'",
        "filed under the name 'z'",
        "has role 'thing'; accepted: input",
        "must have a name that starts with it",
        "operator 'a' appears twice",
        "reads 'y' before any operator makes it",
        "reads 'missing', which does not exist",
        "makes 'v', which is not declared",
        "makes 'x' a second time",
        "has phase 'sideways'",
        "repeats 4 times and so needs a family",
        "must repeat at least once",
        "refers to 'gone', which does not exist",
        "block name 'main' is used twice",
    ):
        assert fault in text


def test_a_loop_of_views_is_a_fault() -> None:
    fp32 = dtype("fp32")
    tensors = {"a": Tensor("a", (2,), fp32, storage="b"), "b": Tensor("b", (2,), fp32, storage="a")}
    with pytest.raises(GraphError, match="storage"):
        Graph("loop", tensors, ()).check()


def test_a_layer_keeps_its_carry_s_shape() -> None:
    b = GraphBuilder("shrinks", kind="fp32")
    x = b.input("x", SHAPE, "fp32")
    with pytest.raises(ValueError, match="it must keep it"), b.layers("layers", 2, carry=x) as layer:
        layer.x = linear(b, layer.x, WIDTH // 2)


def test_blocks_do_not_nest() -> None:
    b = GraphBuilder("nested", kind="fp32")
    x = b.input("x", SHAPE, "fp32")
    with (
        pytest.raises(ValueError, match="do not nest"),
        b.layers("outer", 2, carry=x) as outer,
        b.layers("inner", 2, carry=outer.x),
    ):
        pass


# ---- parts of a sweep ------------------------------------------------------------------------------------------------
def test_a_part_of_a_sweep_holds_its_configurations_in_flat_order() -> None:
    b = GraphBuilder("sweep", kind="bf16")
    batch, seq = np.array([[1], [2]]), np.array([8, 16, 32])
    x = b.input("x", (batch, seq, 4), "bf16")
    unary(b, "relu", add(b, x, x))
    graph = b.graph(batch=batch, seq=seq)
    assert sweep_shape(graph) == (2, 3)
    part = select(graph, 2, 5)
    assert np.array_equal(part.tensors["x"].bytes, [2 * 1 * 32 * 4, 2 * 2 * 8 * 4, 2 * 2 * 16 * 4])
    assert np.array_equal(part.workload["seq"], [32, 8, 16])
    assert sweep_shape(part) == (3,)


def test_a_sweep_is_seen_in_attributes_and_overridden_bytes_too() -> None:
    fp32 = dtype("fp32")
    graph = Graph("opaque", {"x": Tensor("x", (), fp32, "input", bytes_override=np.array([4, 8]))}, ())
    assert graph.is_sweep
    assert sweep_shape(graph) == (2,)
    windowed = Operator("a", "relu", ("x",), (), {"window": np.array([1, 2, 3])})
    narrow = replace(graph, tensors={"x": Tensor("x", (4,), fp32, "input")}, blocks=(Block("b", (windowed,)),))
    assert narrow.is_sweep
    assert sweep_shape(narrow) == (3,)
