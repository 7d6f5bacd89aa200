"""Exact answers on small graphs: Checkmate's integer program, Rotor's chains, and what plans attain beside them."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import peakline as pk
from peakline.planning.chains import chain_of
from peakline.planning.execute import DEVICE
from peakline.planning.extract import profile
from peakline.planning.rerun import nodes_of, rerun
from peakline.solvers.offload.checkmate import Node, checkmate, replay
from peakline.streams import simulate


# ---- Checkmate ------------------------------------------------------------------------------------------------------
@st.composite
def graphs(draw):
    """Five operators, each reading some of the earlier ones; the last one reads the first, as a backward pass does."""
    nodes = []
    for i in range(5):
        reads = set(draw(st.lists(st.integers(0, i - 1), max_size=2))) if i else set()
        reads |= {i - 1} if i else set()
        reads |= {0} if i == 4 else set()
        nodes.append(Node(f"n{i}", float(draw(st.integers(1, 3))), draw(st.integers(1, 4)), tuple(sorted(reads))))
    return tuple(nodes)


def searched(nodes, budget):
    """Least seconds over every order in which stage t runs any of the earlier operators before operator t."""
    best = None
    for runs in product(*(product((False, True), repeat=t) for t in range(len(nodes)))):
        order = tuple(i for t, again in enumerate(runs) for i in (*(i for i, on in enumerate(again) if on), t))
        seconds, peak = replay(nodes, order)
        if peak <= budget and (best is None or seconds < best):
            best = seconds
    return best


@settings(max_examples=15, deadline=None)
@given(graphs(), st.integers(5, 14))
def test_no_order_there_is_beats_it(nodes, budget):
    found = checkmate(nodes, budget)
    assert (None if found is None else found.seconds) == searched(nodes, budget)


def test_a_chain_is_checkpointed_as_known():
    """f0…f5 and their backward runs in room for five results: two operators again, as in the paper's figure 1."""
    forward = [Node(f"f{i}", 1.0, 1, (i - 1,) if i else ()) for i in range(6)]
    backward = [Node("b5", 2.0, 1, (4, 5))]
    for i in reversed(range(5)):
        backward.append(Node(f"b{i}", 2.0, 1, (len(forward) + len(backward) - 1, i, *((i - 1,) if i else ()))))
    nodes = tuple(forward + backward)
    free = checkmate(nodes, 100)
    assert free.order == tuple(range(12))
    tight = checkmate(nodes, 5)
    assert replay(nodes, tight.order)[1] <= 5
    assert free.seconds < tight.seconds == tight.lower_bound


def test_an_order_that_reads_what_is_not_there_is_refused():
    nodes = (Node("a", 1.0, 1), Node("b", 1.0, 1, (0,)))
    with pytest.raises(ValueError, match="b runs without the result of a"):
        replay(nodes, (1, 0))
    with pytest.raises(ValueError, match="b never runs"):
        replay(nodes, (0, 0))


BLOCKS = {"two layers": (0.95, 0.85), "activations": (0.9, 0.8), "narrow and wide": (0.85, 0.75)}
WITHIN = 1.05


def block(name):
    torch = pytest.importorskip("torch")
    nn = torch.nn
    torch.manual_seed(0)
    x = torch.randn(4096, 256)
    modules = {
        "two layers": [m for _ in range(2) for m in (nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))],
        "activations": [nn.Tanh() for _ in range(6)],
        "narrow and wide": [m for _ in range(4) for m in (nn.Linear(256, 256), nn.GELU())],
    }
    x.requires_grad_(name == "activations")
    return pk.capture(nn.Sequential(*modules[name]), x, loss=lambda y: y.square().mean(), device="cpu", name=name)


@pytest.mark.parametrize("name", BLOCKS)
def test_inside_a_block_the_plan_is_within_five_percent_of_checkmates_optimum(name):
    graph = block(name)
    before = pk.estimate(graph, "a100-80gb")
    nodes, base = nodes_of(profile(before))
    seconds, peak = replay(nodes, tuple(range(len(nodes))))
    assert (seconds, peak + base) == (pytest.approx(before.time), before.memory.live)
    outside = before.memory.context + 2 * before.device.software.cublas_workspace_bytes
    for share in BLOCKS[name]:
        room = int(share * before.memory.live)
        best = checkmate(nodes, room - base, time_limit=10)
        plan = pk.plan(graph, "a100-80gb", budget=room + outside, allow=["recompute"])
        assert best.lower_bound <= plan.seconds * (1 + 1e-9)
        assert plan.seconds <= WITHIN * best.seconds


# ---- chains ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def deep():
    step = pk.training_step("gpt2", batch=8, seq=512, dtype="bf16", optimizer="adamw-fused")
    return step, pk.estimate(step, "a100-80gb")


@pytest.mark.parametrize("model", ["gpt2", "resnet-50", "stable-diffusion-1.5"])
def test_steps_in_their_own_order_take_what_the_estimate_says(model):
    size = {"batch": 2, "seq": 256} if model == "gpt2" else {"batch": 2}
    before = pk.estimate(pk.training_step(model, dtype="bf16", **size), "a100-80gb")
    taken = profile(before)
    timeline = simulate(rerun(taken, range(len(taken.steps)), None))
    assert timeline.peak(DEVICE) == before.memory.live
    assert timeline.makespan == pytest.approx(before.time)


def test_a_transformer_is_a_chain_of_layers_and_a_network_with_skips_is_none(deep):
    _, before = deep
    chain = chain_of(profile(before))
    assert len(chain.stages) >= 12
    skips = pk.estimate(pk.training_step("stable-diffusion-1.5", batch=1, image=64, dtype="bf16"), "a100-80gb")
    found = chain_of(profile(skips))
    assert found is None or found.smallest().peak(DEVICE) > 0.9 * skips.memory.live


@pytest.mark.parametrize("share", [0.9, 0.75, 0.62])
def test_a_chains_schedule_stays_within_its_room_and_above_its_bound(deep, share):
    _, before = deep
    chain = chain_of(profile(before))
    room = int(share * before.memory.live)
    timeline = chain.within(room)
    assert timeline.peak(DEVICE) <= room
    assert chain.lower_bound(room) <= timeline.makespan * (1 + 1e-9)
    assert timeline.makespan >= before.time


def test_below_what_single_layers_reach_the_chain_is_the_plan(deep):
    step, before = deep
    smallest = pk.plan(step, "a100-80gb", objective="memory", allow=["recompute"])
    assert smallest.needs <= chain_of(profile(before)).smallest().peak(DEVICE)
    tight = pk.plan(step, "a100-80gb", budget=smallest.budget, allow=["recompute"])
    assert tight.peak <= smallest.peak
    assert tight.lower_bound <= tight.seconds
    methods = {smallest.method, tight.method}
    assert any("Rotor" in method for method in methods)
