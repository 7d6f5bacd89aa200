"""Operators that may as well wait: against exhaustive search, and in a decoder that projects its keys at any time."""

from __future__ import annotations

import random
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, problems, working_set

from peakline.solvers.dag import Dag, Ordered, bits
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule.contract import contract
from peakline.solvers.schedule.layers import layers
from peakline.solvers.schedule.postpone import postpone, waits
from peakline.solvers.schedule.search import search
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment


@st.composite
def projected(draw: st.DrawFn) -> Problem:
    """A few results that are read directly and through operators of one input that could run at any time."""
    tensors = [Tensor("x", draw(st.integers(1, 4)), "input"), Tensor("a", draw(st.integers(1, 4)))]
    operators = [Operator("first", ("x",), ("a",))]
    state = draw(st.sampled_from(("x", "a")))
    for n in range(draw(st.integers(1, 2))):
        made = [draw(st.sampled_from(("a", "a", state))) for _ in range(draw(st.integers(1, 2)))]
        for m, read in enumerate(made):
            tensors.append(Tensor(f"k{n}{m}", draw(st.integers(1, 5)), draw(st.sampled_from(("activation", "output")))))
            inputs = [read]
            if draw(st.booleans()):
                tensors.append(Tensor(f"w{n}{m}", draw(st.integers(1, 3)), "parameter"))
                inputs.append(f"w{n}{m}")
            operators.append(Operator(f"project{n}{m}", tuple(inputs), (f"k{n}{m}",)))
        tensors.append(Tensor(f"y{n}", draw(st.integers(1, 6))))
        keys = tuple(f"k{n}{m}" for m in range(len(made)))
        operators.append(Operator(f"join{n}", tuple(dict.fromkeys((*keys, state))), (f"y{n}",)))
        state = f"y{n}"
    return Problem(tuple(tensors), tuple(operators))


def least_when_waiting(problem: Problem, capacity: int) -> int:
    dag = postpone(contract(Dag.of(problem)), capacity).dag
    everything = Moves(dag, Segment(0, dag.everything, 0), capacity)
    found = search(everything, 0, 10_000, deadline=inf)
    assert found.moves is not None
    by_layers = layers(everything, known=10_000, width=1 << 40, deadline=inf)
    assert by_layers is not None
    assert by_layers.cost == found.cost
    return found.cost


@settings(max_examples=120, deadline=None)
@given(projected(), st.integers(0, 4))
def test_waiting_loses_nothing_where_results_are_projected(problem: Problem, spare: int) -> None:
    capacity = working_set(problem) + spare
    assert least_when_waiting(problem, capacity) == least_traffic_by_enumeration(problem, capacity)


def crossed(seed: int) -> tuple[Problem, int]:
    """Up to eleven operators that read what others go on reading, and the largest working set or a little more."""
    chance = random.Random(seed)
    tensors, operators, pool = [Tensor("x", chance.randint(1, 4), "input")], [], ["x"]
    for i in range(chance.randint(4, 11)):
        reads = chance.sample(pool, min(len(pool), chance.choice((1, 1, 1, 2, 2, 3))))
        if chance.random() < 0.25:
            tensors.append(Tensor(f"w{i}", chance.randint(1, 3), "parameter"))
            reads.append(f"w{i}")
        role = chance.choice(("activation",) * 5 + ("output",))
        tensors.append(Tensor(f"t{i}", chance.randint(1, 6), role))  # type: ignore[arg-type]  # a role
        operators.append(Operator(f"f{i}", tuple(reads), (f"t{i}",)))
        pool.append(f"t{i}")
        if len(pool) > 5 and chance.random() < 0.6:
            pool.pop(chance.randrange(len(pool) - 2))
    problem = Problem(tuple(tensors), tuple(operators))
    return problem, working_set(problem) + chance.choice((0, 0, 0, 1, 2))


def test_waiting_loses_nothing_where_much_moves() -> None:
    """Against A* without it, on graphs where something waits and something must move."""
    compared = 0
    for seed in range(900):
        problem, capacity = crossed(seed)
        dag = Dag.of(problem)
        if any(waits(contract(dag).dag, capacity)):
            least = search(Moves(dag, Segment(0, dag.everything, 0), capacity), 0, 10_000, deadline=inf).cost
            assert least_when_waiting(problem, capacity) == least
            compared += least > 0
    assert compared > 50


@settings(max_examples=120, deadline=None)
@given(problems(), st.integers(0, 4))
def test_waiting_loses_nothing_on_any_graph(problem: Problem, spare: int) -> None:
    capacity = working_set(problem) + spare
    assert least_when_waiting(problem, capacity) == least_traffic_by_enumeration(problem, capacity)


def decoder(layers_: int, key: int = 4) -> Problem:
    """Layers that each project keys from `memory` and join them with a state of 4 bytes; a wide operator follows."""
    tensors = [Tensor("x", 4, "input"), Tensor("memory", 4), Tensor("y0", 4)]
    operators = [Operator("encode", ("x",), ("memory",)), Operator("begin", ("memory",), ("y0",))]
    for n in range(layers_):
        tensors += [Tensor(f"k{n}", key), Tensor(f"s{n}", 8), Tensor(f"h{n}", 16), Tensor(f"y{n + 1}", 4)]
        operators += [
            Operator(f"keys{n}", ("memory",), (f"k{n}",)),
            Operator(f"scores{n}", (f"y{n}", f"k{n}"), (f"s{n}",)),
            Operator(f"wide{n}", (f"s{n}",), (f"h{n}",)),
            Operator(f"narrow{n}", (f"h{n}",), (f"y{n + 1}",)),
        ]
    return Problem(tuple(tensors), tuple(operators))


def test_a_projection_waits_for_the_layer_that_reads_it() -> None:
    dag = Dag.of(decoder(3))
    names = [operator.name for operator in dag.problem.operators]
    waiting = {names[k]: [names[i] for i in bits(mask)] for k, mask in enumerate(waits(dag, 24)) if mask}
    assert waiting["keys2"] == ["narrow1"]
    assert waiting["keys1"] == ["narrow0"]


def test_a_projection_smaller_than_what_it_reads_does_not_wait() -> None:
    """Run early, it is the smaller one that is kept."""
    dag = Dag.of(decoder(3, key=3))
    names = [operator.name for operator in dag.problem.operators]
    assert not any(mask for k, mask in enumerate(waits(dag, 24)) if names[k].startswith("keys"))


def test_a_decoder_of_twelve_layers_is_solved_at_once() -> None:
    problem = decoder(12)
    plan = schedule(problem, 24, time_limit=20)
    assert plan.certificate.status == "optimal"
    assert replay(problem, plan).non_compulsory == plan.certificate.objective > 0


def test_an_order_that_contradicts_what_waits_is_refused() -> None:
    dag = Dag.of(decoder(2))
    with pytest.raises(ValueError, match="listed before"):
        Ordered.by(dag, (2, *[0] * (len(dag) - 1)))


def test_weights_that_one_operator_reads_do_not_keep_it_from_its_neighbour() -> None:
    """They lie there while it runs, whoever runs before and after; what is shared does not."""

    def chain(weights: tuple[str, str]) -> Problem:
        names = dict.fromkeys(weights)
        return Problem(
            (
                Tensor("x", 4, "input"), Tensor("a", 4), Tensor("b", 4), Tensor("c", 4), Tensor("y", 4),
                *(Tensor(name, 2, "parameter") for name in names),
            ),
            (
                Operator("first", ("x",), ("a",)),
                Operator("conv1", ("a", weights[0]), ("b",)),
                Operator("conv2", ("b", weights[1]), ("c",)),
                Operator("last", ("x", "c"), ("y",)),
            ),
        )  # fmt: skip

    own, shared = (contract(Dag.of(chain(weights))) for weights in (("v", "w"), ("v", "v")))
    assert len(own.dag) < len(shared.dag) == 4
    assert max(own.dag.working_sets) == 12
