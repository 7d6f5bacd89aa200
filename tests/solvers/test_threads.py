"""One thread of linear algebra while a solver works."""

from __future__ import annotations

import numpy as np
import pytest

from peakline.solvers.problem import Operator, Problem, Tensor
from peakline.solvers.schedule import Progress, schedule
from peakline.solvers.threads import one_thread, thread_counts


def test_libraries_get_their_threads_back_whatever_happens() -> None:
    before = thread_counts()
    if not before:
        pytest.skip("NumPy does not multiply by OpenBLAS here")

    def interrupted() -> None:
        with one_thread():
            assert set(thread_counts()) == {1}
            assert (np.eye(3) @ np.eye(3) == np.eye(3)).all()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert thread_counts() == before


def test_schedules_are_found_in_one_thread() -> None:
    problem = Problem((Tensor("x", 1, "input"), Tensor("y", 1, "output")), (Operator("f", ("x",), ("y",)),))
    seen: list[int] = []

    def listen(progress: Progress) -> None:
        seen.extend(thread_counts())

    schedule(problem, 2, progress=listen)
    assert all(count == 1 for count in seen)
