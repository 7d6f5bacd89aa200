"""Peaks of transformers' models and a diffusion transformer against torch's own memory events of a real step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from cpu_truth import compare, measure, predict  # noqa: E402
from modules import DiT  # noqa: E402
from test_transformers import MODELS, maker  # noqa: E402

import peakline as pk  # noqa: E402

PEAK, UNEXPLAINED = 0.01, 0.05
LABELS = torch.zeros(4, dtype=torch.long)
CASES: dict[str, tuple[Callable[[], Any], Any]] = {
    name: (maker(name), MODELS[name][3]) for name in ("llama", "qwen3", "gemma2", "gpt2", "opt", "bert")
} | {"dit": (DiT, (torch.zeros(4, 4, 16, 16), LABELS, LABELS, torch.zeros(4, 4, 16, 16)))}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def steps_of(make: Callable[[], Any], inputs: Any) -> Callable[[], Callable[[], None]]:
    """A function that makes a real training step."""

    def make_step() -> Callable[[], None]:
        module = make().train()
        optimizer = torch.optim.AdamW(module.parameters())
        held: dict[str, Any] = {}

        def step() -> None:
            out = module(**inputs) if isinstance(inputs, dict) else module(*inputs)
            held["loss"] = out if isinstance(out, torch.Tensor) else out.loss
            del out
            held["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return make_step


@pytest.mark.parametrize("name", CASES)
def test_the_peak_of_a_real_step_is_predicted(name: str) -> None:
    make, inputs = CASES[name]
    truth = measure(steps_of(make, inputs), steps=2)
    graph = pk.capture(make, inputs, optimizer=torch.optim.AdamW, device="cpu")
    found = compare(truth, predict(graph))
    assert abs(found.peak_error) <= PEAK, found.report()
    assert found.unexplained <= UNEXPLAINED, found.report()
