"""Equal parts of a graph that may change places: an order among them costs nothing and leaves little to search."""

from __future__ import annotations

from itertools import pairwise
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from schedule_cases import least_traffic_by_enumeration, orders, problems, working_set

from peakline.solvers.bounds import live_floors
from peakline.solvers.dag import Dag, Ordered
from peakline.solvers.order import smallest_peak
from peakline.solvers.order.search import search as search_order
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule.search import search
from peakline.solvers.schedule.states import Moves
from peakline.solvers.segments import Segment
from peakline.solvers.symmetry import in_listed_order, swaps


@st.composite
def with_equal_parts(draw: st.DrawFn) -> Problem:
    """Two or three copies of a few operators on one input, perhaps with weights of their own, perhaps joined."""
    tensors = {"x": Tensor("x", draw(st.integers(1, 4)), "input")}
    operators = []
    copies = draw(st.integers(2, 3))
    length = draw(st.integers(1, 2 if copies == 3 else 3))
    reads = [draw(st.lists(st.integers(-1, n - 1), min_size=1, max_size=2, unique=True)) for n in range(length)]
    sizes = [draw(st.integers(1, 5)) for _ in range(length)]
    weights = [draw(st.sampled_from((0, 0, 1, 3))) for _ in range(length)]
    role = draw(st.sampled_from(("activation", "activation", "output")))
    joined = draw(st.booleans())
    for copy in draw(st.permutations(range(copies))):
        for n in range(length):
            name = f"{copy}.{n}"
            inputs = ["x" if k < 0 else f"{copy}.{k}" for k in reads[n]]
            if weights[n]:
                tensors[f"w{name}"] = Tensor(f"w{name}", weights[n], "parameter")
                inputs.append(f"w{name}")
            tensors[name] = Tensor(name, sizes[n] + (copy == 1 and draw(st.sampled_from((0, 0, 0, 1)))), role)
            operators.append(Operator(f"f{name}", tuple(inputs), (name,)))
    if joined:
        tensors["y"] = Tensor("y", draw(st.integers(1, 3)))
        ends = [f"{copy}.{length - 1}" for copy in range(copies)]
        operators.append(Operator("join", (*ends, "x") if draw(st.booleans()) else tuple(ends), ("y",)))
    return Problem(tuple(tensors.values()), tuple(operators))


def experts(count: int) -> Problem:
    """A layer of experts as large as each other, and what follows it."""
    tensors = [Tensor("x", 8, "input"), Tensor("y", 8)]
    operators = []
    for e in range(count):
        tensors += [Tensor(f"w{e}", 20, "parameter"), Tensor(f"h{e}", 5), Tensor(f"o{e}", 2)]
        operators += [
            Operator(f"up{e}", ("x", f"w{e}"), (f"h{e}",)),
            Operator(f"down{e}", (f"h{e}",), (f"o{e}",)),
        ]
    operators.append(Operator("sum", ("x", *(f"o{e}" for e in range(count))), ("y",)))
    return Problem(tuple(tensors), tuple(operators))


@settings(max_examples=100, deadline=None)
@given(st.one_of(with_equal_parts(), problems(most=5)), st.integers(0, 4))
def test_order_among_equal_parts_costs_no_traffic(problem: Problem, spare: int) -> None:
    dag, capacity = in_listed_order(Dag.of(problem)), working_set(problem) + spare
    found = search(Moves(dag, Segment(0, dag.everything, 0), capacity), 0, 10_000, deadline=inf)
    assert found.moves is not None
    assert found.cost == least_traffic_by_enumeration(problem, capacity)


@settings(max_examples=100, deadline=None)
@given(st.one_of(with_equal_parts(), problems(most=5)))
def test_order_among_equal_parts_costs_no_peak(problem: Problem) -> None:
    dag = Dag.of(problem)
    number = {operator.name: i for i, operator in enumerate(problem.operators)}
    least = min(dag.peak_of([number[operator.name] for operator in order]) for order in orders(problem))
    ordered = in_listed_order(dag)
    assert max(live_floors(ordered)) <= least
    assert search_order(ordered, Segment(0, dag.everything, 0), 0).peak == least
    assert smallest_peak(problem, jobs=1).peak == least


def test_experts_are_begun_one_after_the_other() -> None:
    dag = in_listed_order(Dag.of(experts(5)))
    assert isinstance(dag, Ordered)
    begun = [i for i, operator in enumerate(dag.problem.operators) if operator.name.startswith("up")]
    assert all(dag.before[later] >> earlier & 1 for earlier, later in pairwise(begun))


def test_a_part_of_another_size_keeps_its_freedom() -> None:
    problem = experts(3)
    other = Problem(tuple(Tensor("h1", 6) if t.name == "h1" else t for t in problem.tensors), problem.operators)
    (group,) = [group for group in swaps(Dag.of(other)) if 0 in group]
    names = [operator.name for operator in other.operators]
    assert [names[i] for i in group] == ["up0", "up2"]


def test_sixteen_experts_are_scheduled_with_proof() -> None:
    problem = experts(16)
    capacity = working_set(problem)
    plan = schedule(problem, capacity, jobs=1)
    assert plan.certificate.status == "optimal"
    assert replay(problem, plan).non_compulsory == plan.certificate.objective
