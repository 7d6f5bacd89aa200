"""Activations in fewer bits: what comes back is within the format's bound, and training goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from measured import measured_peak  # noqa: E402
from small_models import CASES, DEVICE, captured, loss_of  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.execution.packing import PackedMemory, pack, unpack  # noqa: E402
from peakline.planning.packing import CODECS  # noqa: E402

BY_NAME = {case.name: case for case in CASES}
GRADIENTS = {"int8": 0.02, "fp8": 0.1, "int4": 0.3}
"""Norm of what gradients differ by, against their own: a few times the format's largest rounding error."""
WITHIN = 0.01
"""Of the planned peak: a piece at a time is packed, beside what the plan counts."""


@cache
def packed_plan(name: str, share: float, codec: str) -> pk.OffloadPlan:
    graph, live = captured(BY_NAME[name])
    return pk.plan(graph, DEVICE, budget=int(share * live), allow=["quantise-activations"], quantise=codec)


def trained(name: str, plan: pk.OffloadPlan | None, steps: int) -> tuple[list[float], list[Any]]:
    """Losses of the steps, and the gradients of the first."""
    module, inputs, optimizer = BY_NAME[name].build()
    losses, first = [], []
    with plan.apply(module, optimizer) if plan else nullcontext():
        for step in range(steps):
            loss = loss_of(module(**inputs))
            loss.backward()
            if not step:
                first = [p.grad.clone() for p in module.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses, first


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("count", [1, 255, 256, 20_001])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_every_element_comes_back_within_the_formats_error(codec: str, count: int, kind: torch.dtype) -> None:
    torch.manual_seed(count)
    format_ = CODECS[codec]
    x = (torch.randn(count) * torch.linspace(0.01, 30, count)).to(kind)
    codes, scales = pack(x, format_)
    assert codes.nbytes + scales.nbytes == format_.bytes_of(count)
    back = torch.empty_like(x)
    unpack((codes, scales), format_, back)
    for own, found in zip(x.float().split(format_.group), back.float().split(format_.group)):
        size = own.abs().amax() if codec == "fp8" else own.amax() - own.amin()
        rounding = torch.finfo(kind).eps * torch.maximum(own.abs(), found.abs())  # to the element's own format
        assert ((own - found).abs() <= format_.error * size + rounding + 1e-6).all()


@pytest.mark.parametrize("codec", CODECS)
def test_a_constant_and_zeros_come_back_exactly(codec: str) -> None:
    for x in (torch.zeros(700), torch.full((700,), 448.0)):
        stored = PackedMemory(codec).put(x)
        assert torch.equal(stored.fetch()[0], x)


def test_what_is_not_finite_is_held_as_it_is() -> None:
    x = torch.tensor([1.0, float("-inf"), float("nan")] * 200)
    assert torch.equal(PackedMemory("int8").put(x).fetch()[0].nan_to_num(7.0), x.nan_to_num(7.0))


@pytest.mark.parametrize("name", ["gpt2", "vit"])
@pytest.mark.parametrize("codec", CODECS)
def test_the_loss_is_the_same_and_gradients_are_close(name: str, codec: str) -> None:
    plan = packed_plan(name, 0.85, codec)
    assert any(decision.action == "compress" for decision in plan.decisions)
    (loss,), gradients = trained(name, None, 1)
    (again,), found = trained(name, plan, 1)
    assert again == loss
    off = sum(float((a - b).square().sum()) for a, b in zip(gradients, found, strict=True)) ** 0.5
    size = sum(float(a.square().sum()) for a in gradients) ** 0.5
    assert 0 < off <= GRADIENTS[codec] * size


def test_training_goes_on_as_it_would() -> None:
    plain, _ = trained("gpt2", None, 10)
    packed, _ = trained("gpt2", packed_plan("gpt2", 0.85, "int8"), 10)
    assert packed[-1] < packed[0]
    assert packed == pytest.approx(plain, rel=0.01)


@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "resnet"])
def test_the_measured_peak_is_the_planned_one(name: str) -> None:
    case, plan = BY_NAME[name], packed_plan(name, 0.85, "int8")
    applied: list[Any] = []

    def make() -> Callable[[], None]:
        module, inputs, optimizer = case.build()
        applied.append(plan.apply(module, optimizer))
        return case.step(module, inputs, optimizer)

    try:
        assert measured_peak(make) == pytest.approx(plan.peak, rel=WITHIN)
    finally:
        applied[0].remove()
