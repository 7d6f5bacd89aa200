"""The cheapest sets of tensors that leave room for an operator, and what knowing them exactly proves."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.solvers.bounds import cheapest_cover, traffic_bound
from peakline.solvers.dag import Dag
from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule

SIZES = st.lists(st.integers(1, 12), max_size=5)


def by_enumeration(once: list[int], twice: list[int], least: int) -> int:
    priced = [(size, size) for size in once] + [(size, 2 * size) for size in twice]
    return min(
        sum(price for _, price in chosen)
        for count in range(len(priced) + 1)
        for chosen in combinations(priced, count)
        if sum(size for size, _ in chosen) >= least
    )


@given(SIZES, SIZES, st.data())
def test_the_cheapest_cover_is_that_of_all_subsets(once: list[int], twice: list[int], data: st.DataObject) -> None:
    if once or twice:
        least = data.draw(st.integers(1, sum(once) + sum(twice)))
        assert cheapest_cover(once, twice, least) == by_enumeration(once, twice, least)


def test_more_than_there_is_cannot_be_covered() -> None:
    with pytest.raises(ValueError, match="less than 9"):
        cheapest_cover([4], [4], 9)


def test_a_weight_too_large_for_what_is_missing_is_weighed_against_a_result() -> None:
    """Nine bytes are missing beside `wide`: a weight of 8, and a result of 1 out and back, rather than two weights."""
    names = ["w0", "w1", "w2"]
    tensors = [Tensor("x", 1, "input"), *(Tensor(n, 8, "parameter") for n in names), Tensor("r", 1), Tensor("h", 1)]
    tensors += [Tensor("wide", 20), Tensor("y", 1, "output")]
    operators = (
        Operator("first", ("x", *names), ("r", "h")),
        Operator("wide", ("h",), ("wide",)),
        Operator("last", ("wide",), ("n",)),
        Operator("back", ("n", "r", *names), ("y",)),
    )
    problem = Problem((*tensors, Tensor("n", 1)), operators)
    capacity = 37  # 46 are alive while `wide` runs
    assert traffic_bound(Dag.of(problem), capacity) == 10
    plan = schedule(problem, capacity, time_limit=5)
    assert replay(problem, plan).non_compulsory == plan.certificate.lower_bound == 10
