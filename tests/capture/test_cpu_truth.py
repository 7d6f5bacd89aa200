"""The CPU's allocator is predicted: against torch's own memory events of real steps, run here and now."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from cpu_steps import CASES, Case  # noqa: E402
from cpu_truth import compare, measure, predict  # noqa: E402

import peakline as pk  # noqa: E402

PEAK = 0.01
UNEXPLAINED = 0.05


def test_there_are_fifteen_steps_of_many_kinds() -> None:
    assert len(CASES) >= 15
    assert {case.dtype for case in CASES} == {torch.float32, torch.bfloat16}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products spend their time waiting for one another on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_peak_and_events_of_a_real_step_are_predicted(case: Case) -> None:
    truth = measure(case.real, steps=2)
    module, inputs = case.build()
    graph = pk.capture(module, inputs, optimizer=case.optimizer, loss=lambda loss: loss, device="cpu")
    found = compare(truth, predict(graph))
    assert abs(found.peak_error) <= PEAK, found.report()
    assert found.unexplained <= UNEXPLAINED, found.report()
    assert found.out_of_order <= 2 * UNEXPLAINED, found.report()
    assert abs(found.prediction.before - truth.before) <= PEAK * truth.before, found.report()
