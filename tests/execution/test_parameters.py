"""Parameters that come for the forward pass, the backward pass and their turn, and lie in files between them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from measured import measured_peak  # noqa: E402
from small_models import CASES, DEVICE, captured, loss_of  # noqa: E402

import peakline as pk  # noqa: E402

STEPS = 10
WITHIN = {"parameters": 0.001, "parameters and states": 0.001, "all but moved activations": 0.01}
BY_NAME = {case.name: case for case in CASES}
ALLOWED = {
    "parameters": ("offload-params",),
    "parameters and states": ("offload-optimizer", "offload-params"),
    "all but moved activations": ("recompute", "offload-optimizer", "offload-params"),
}


@cache
def streamed_plan(name: str, kind: str) -> pk.OffloadPlan:
    """The plan in the least memory."""
    graph, _ = captured(BY_NAME[name])
    return pk.plan(graph, DEVICE, objective="memory", allow=ALLOWED[kind], ssd="1 TB", time_limit=3.0)


def trained(name: str, plan: pk.OffloadPlan | None, folder: Path) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Losses and gradients of ten steps, and the module's state after them."""
    module, inputs, optimizer = BY_NAME[name].build()
    gradients: list[Any] = []
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    losses = []
    with plan.apply(module, optimizer, folder=folder) if plan else nullcontext():
        for step in range(STEPS):
            loss = loss_of(module(**inputs))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if step == 4:  # an evaluation and a checkpoint in between see everything
                with torch.no_grad():
                    losses.append(loss_of(module(**inputs)))
                losses.append(torch.stack([v.float().sum() for v in module.state_dict().values()]))
    return losses, gradients, module.state_dict()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt2", "parameters"),
        ("bert", "parameters and states"),
        ("llama", "all but moved activations"),
        ("vit", "all but moved activations"),
    ],
)
def test_ten_steps_are_bit_for_bit_those_without_a_plan(name: str, kind: str, tmp_path: Path) -> None:
    plan = streamed_plan(name, kind)
    assert any(d.role == "parameter" and d.moved for d in plan.decisions)
    losses, gradients, state = trained(name, None, tmp_path)
    again, found, other = trained(name, plan, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, found, strict=True))
    assert all(torch.equal(value, other[key]) for key, value in state.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("gpt2", "parameters"),
        ("vit", "parameters"),
        ("bert", "parameters and states"),
        ("llama", "parameters and states"),
        *((name, "all but moved activations") for name in ("gpt2", "llama", "bert", "vit")),
    ],
)
def test_the_measured_peak_is_the_planned_one(name: str, kind: str, tmp_path: Path) -> None:
    case, plan = BY_NAME[name], streamed_plan(name, kind)
    applied: list[Any] = []

    def make() -> Callable[[], None]:
        module, inputs, optimizer = case.build()
        applied.append(plan.apply(module, optimizer, folder=tmp_path))
        return case.step(module, inputs, optimizer)

    try:
        assert measured_peak(make) == pytest.approx(plan.peak, rel=WITHIN[kind])
    finally:
        applied[0].remove()


def test_a_plan_that_moves_parameters_asks_for_the_optimizer(tmp_path: Path) -> None:
    module, _, _ = BY_NAME["vit"].build()
    with pytest.raises(ValueError, match="optimizer: the plan moves"):
        streamed_plan("vit", "parameters").apply(module, folder=tmp_path)
