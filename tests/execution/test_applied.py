"""A plan carried out is the same training, in the memory that the plan says."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from measured import measured_peak  # noqa: E402
from small_models import CASES, DEVICE, Case, UNet, captured, loss_of, planned  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.execution.rehearsal import rehearsed  # noqa: E402
from peakline.execution.script import script_of  # noqa: E402

WITHIN = 0.02
STEPS = 10
BY_NAME = {case.name: case for case in CASES}
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def trained(case: Case, plan: pk.OffloadPlan | None, folder: Path) -> tuple[list[Tensor], list[Tensor], nn.Module]:
    """Ten steps: losses, the gradients of all steps as autograd completes them, and the module after them."""
    module, inputs, optimizer = case.build()
    gradients: list[Tensor] = []
    for parameter in module.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    losses = []
    with plan.apply(module, optimizer, folder=folder) if plan else nullcontext():
        for _ in range(STEPS):
            loss = loss_of(module(**inputs))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
    return losses, gradients, module


def applied_peak(case: Case, plan: pk.OffloadPlan, folder: Path) -> int:
    """The measured peak of a step under the plan."""
    applied: list[Any] = []

    def make() -> Callable[[], None]:
        module, inputs, optimizer = case.build()
        applied.append(plan.apply(module, optimizer, folder=folder))
        return case.step(module, inputs, optimizer)

    try:
        return measured_peak(make)
    finally:
        applied[0].remove()


@pytest.mark.parametrize(
    ("allow", "case"),
    [
        *((("recompute", "swap"), case) for case in CASES),
        *(((one,), BY_NAME[name]) for one in ("recompute", "swap") for name in ("gpt2", "resnet")),
    ],
    ids=lambda given: given.name if isinstance(given, Case) else "+".join(given),
)
def test_ten_steps_are_bit_for_bit_those_without_a_plan(allow: tuple[str, ...], case: Case, tmp_path: Path) -> None:
    plan = planned(case, 0.65, *allow)
    assert any(decision.action in ("recompute", "move") for decision in plan.decisions)
    losses, gradients, module = trained(case, None, tmp_path)
    again, as_well, other = trained(case, plan, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, as_well, strict=True))
    state = other.state_dict()  # running statistics are updated once a step
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert list(tmp_path.iterdir()) == []


@each
@pytest.mark.parametrize(
    ("allow", "share"),
    [
        (("recompute", "swap"), 0.85),
        (("recompute", "swap"), 0.75),
        (("recompute", "swap"), 0.65),
        (("recompute",), 0.65),
        (("swap",), 0.65),
    ],
    ids=lambda given: given if isinstance(given, float) else "+".join(given),
)
def test_the_measured_peak_is_the_planned_one(case: Case, allow: tuple[str, ...], share: float, tmp_path: Path) -> None:
    plan = planned(case, share, *allow)
    assert plan.peak <= share * captured(case)[1]
    assert any(decision.action in ("recompute", "move") for decision in plan.decisions)
    assert applied_peak(case, plan, tmp_path) == pytest.approx(plan.peak, rel=WITHIN)


class Keeping(UNet):
    """The same network, whose `forward` keeps its skips in a list to the end."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        skips, h = [], x
        for stage in self.down[:-1]:
            skips.append(stage(h))
            h = F.max_pool2d(skips[-1], 2)
        h = self.down[-1](h)
        for up, join, skip in zip(self.up, self.join, reversed(skips)):
            h = join(torch.cat([up(h), skip], 1))
        return F.mse_loss(self.out(h), y)


@pytest.mark.parametrize(("allow", "share"), [(("recompute",), 0.7), (("swap",), 0.8), (("swap",), 0.6)])
def test_variables_that_a_forward_keeps_hold_no_memory_beyond_the_plan(
    allow: tuple[str, ...], share: float, tmp_path: Path
) -> None:
    case = replace(BY_NAME["unet"], name="keeping", module=Keeping)
    plan = planned(case, share, *allow)
    assert applied_peak(case, plan, tmp_path) == pytest.approx(plan.peak, rel=WITHIN)
    losses, gradients, _ = trained(case, None, tmp_path)
    again, as_well, _ = trained(case, plan, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(gradients, as_well, strict=True))


@pytest.mark.parametrize(("allow", "share"), [(("recompute",), 0.6), (("swap",), 0.8)])
def test_the_first_step_under_a_plan_is_within_it_as_well(allow: tuple[str, ...], share: float, tmp_path: Path) -> None:
    case = replace(BY_NAME["unet"], name="keeping", module=Keeping)
    plan = planned(case, share, *allow)
    applied: list[Any] = []

    def make() -> Callable[[], None]:
        module, inputs, optimizer = case.build()
        step = case.step(module, inputs, optimizer)
        step()  # the optimizer has its states
        applied.append(plan.apply(module, optimizer, folder=tmp_path))
        return step

    try:
        assert measured_peak(make, steps=1) == pytest.approx(plan.peak, rel=WITHIN)
    finally:
        applied[0].remove()


@each
@pytest.mark.parametrize("allow", [("recompute", "swap")], ids="+".join)
def test_the_rehearsal_finds_out_what_the_first_step_would_have(
    case: Case, allow: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(case, 0.65, *allow)
    module, inputs, optimizer = case.build()
    state = torch.get_rng_state()
    tensors = {name: (id(t), t._version) for name, t in module.state_dict(keep_vars=True).items()}
    found = rehearsed(script_of(plan), module, (), inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: (id(t), t._version) for name, t in module.state_dict(keep_vars=True).items()} == tensors
    monkeypatch.setattr("peakline.execution.applied.rehearsed", lambda *_: set())
    with plan.apply(module, optimizer, folder=tmp_path) as applied:
        loss_of(module(**inputs)).backward()
        assert found == applied._lingering


def test_a_pass_that_cannot_be_rehearsed_is_learned_from_instead(tmp_path: Path) -> None:
    class Choosing(Keeping):
        """Looks at a value on the way, as fake tensors cannot."""

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            loss = super().forward(x, y)
            assert float(loss.detach()) > 0
            return loss

    case = replace(BY_NAME["unet"], name="keeping", module=Keeping)
    plan = planned(case, 0.7, "recompute")
    module, inputs, _ = replace(case, module=Choosing).build()
    assert rehearsed(script_of(plan), module, (), inputs) == set()
    with plan.apply(module) as applied:
        module(**inputs).backward()
        assert applied._lingering


def test_what_is_returned_is_never_emptied(tmp_path: Path) -> None:
    class Telling(Keeping):
        """Returns what it computed on the way too."""

        def forward(self, x: Tensor, y: Tensor) -> Any:
            first = self.down[0](x)
            h = self.join[1](torch.cat([self.up[1](self.down[1](F.max_pool2d(first, 2))), first], 1))
            return SimpleNamespace(loss=F.mse_loss(self.out(h), y), first=first)

    case = replace(BY_NAME["unet"], name="telling", module=Telling)
    plan = planned(case, 0.7, "recompute")
    assert any(d.tensor.startswith("down.0.5") and d.action == "recompute" for d in plan.decisions)
    module, inputs, _ = case.build()
    expected = module(**inputs).first
    with plan.apply(module):
        for _ in range(3):
            output = module(**inputs)
            output.loss.backward()
            assert torch.equal(output.first, expected)


@pytest.mark.parametrize("name", ["gpt2", "vit"])
def test_an_optimizer_in_turns_from_files_trains_the_same_in_less(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    plan = planned(case, 0.5, "recompute", "swap", "offload-optimizer")
    assert "optimizer_state" in {decision.role for decision in plan.decisions if decision.moved}
    losses, _, module = trained(case, None, tmp_path)
    again, _, other = trained(case, plan, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(losses, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
    assert applied_peak(case, plan, tmp_path) == pytest.approx(plan.peak, rel=WITHIN)


def test_a_loss_outside_of_the_module_is_planned_and_executed_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)) for _ in range(4)))
    x = torch.randn(1024, 64)
    graph = pk.capture(module, x, loss=lambda y: y.square().mean(), device="cpu")
    live = int(pk.estimate(graph, DEVICE).memory.live)
    plan = pk.plan(graph, DEVICE, budget=int(0.9 * live), allow=["recompute"])
    expected = torch.autograd.grad(module(x).square().mean(), list(module.parameters()))
    with plan.apply(module):
        found = torch.autograd.grad(module(x).square().mean(), list(module.parameters()))
        with torch.no_grad():
            module(x[:5])  # an evaluation in between is nobody's business
        module(x).square().mean()
        with pytest.raises(ValueError, match="the loss is another than the captured one"):
            module(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    module(x[:5]).sum().backward()


class Branching(nn.Module):
    """Gradients of two branches add up; values choose rows; dropout, and statistics of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(32, 128) for _ in range(4))
        self.sides = nn.ModuleList(nn.Linear(32, 128) for _ in range(4))
        self.back = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(128), nn.Linear(128, 32)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        for layer, side, back in zip(self.layers, self.sides, self.back):
            rows = torch.arange(0, x.shape[0], 2)
            x = back(F.gelu(layer(x)) * torch.tanh(side(F.dropout(x, 0.1, self.training))))
            x = x + x[rows].repeat_interleave(2, 0)
        return x.square().mean()


BRANCHING = Case("branching", Branching, lambda: {"x": torch.randn(512, 32)}, CASES[0].optimizer)


@pytest.mark.parametrize("share", [0.9, 0.55])
def test_gradients_are_added_in_place_as_they_are_without_a_listener(share: float, tmp_path: Path) -> None:
    plan = planned(BRANCHING, share, "swap")
    assert applied_peak(BRANCHING, plan, tmp_path) == pytest.approx(plan.peak, rel=0.002)
    expected, found = trained(BRANCHING, None, tmp_path), trained(BRANCHING, plan, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(expected[1], found[1], strict=True))


def test_plans_of_several_modules_work_at_once_and_end_in_any_order(tmp_path: Path) -> None:
    plan = planned(BRANCHING, 0.7, "recompute")
    (first, inputs, _), (second, _, _) = BRANCHING.build(), BRANCHING.build()
    one, two = plan.apply(first), plan.apply(second)
    for module in (first, second):
        torch.manual_seed(1)
        module(**inputs).backward()
    with pytest.raises(ValueError, match="module: another plan is at work in it"):
        plan.apply(nn.Sequential(first))
    copied = copy.deepcopy(first)  # without the plan
    one.remove()
    two.remove()
    for module in (copied, first):
        torch.manual_seed(1)
        module(**inputs).backward()  # a second time into the first
    for a, b in zip(first.parameters(), second.parameters()):
        assert a.grad is not None
        assert torch.allclose(a.grad, 2 * b.grad)


def test_parameters_that_are_away_are_there_for_whoever_reads_or_changes_them(tmp_path: Path) -> None:
    case = BY_NAME["gpt2"]
    plan = planned(case, 0.5, "recompute", "swap", "offload-params")
    (plain, inputs, _), (module, _, optimizer) = case.build(), case.build()
    with plan.apply(module, optimizer, folder=tmp_path):
        assert any(not p.untyped_storage().nbytes() for p in module.parameters())
        copied = copy.deepcopy(module)
        loss_of(module(**inputs)).backward()
        with torch.no_grad():
            torch._foreach_mul_(list(module.parameters()), 2.0)
        loss_of(module(**inputs))
    for a, b, c in zip(plain.parameters(), copied.parameters(), module.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(2 * a, c)


class Wide(nn.Module):
    """Parameters that take more than activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(256, 256), nn.Tanh()) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).square().mean()


def test_gradients_that_have_left_are_clipped_and_added_up_as_ever(tmp_path: Path) -> None:
    case = Case("wide", Wide, lambda: {"x": torch.randn(16, 256)}, CASES[0].optimizer)
    plan = planned(case, 0.5, "offload-optimizer", "offload-params")
    assert any(decision.role == "gradient" and decision.moved for decision in plan.decisions)
    states = []
    for apply in (False, True):
        module, inputs, optimizer = case.build()
        with plan.apply(module, optimizer, folder=tmp_path) if apply else nullcontext():
            for _ in range(2):
                for _ in range(2):
                    loss_of(module(**inputs)).backward()
                nn.utils.clip_grad_norm_(module.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            loss_of(module(**inputs)).backward()
            optimizer.zero_grad()  # a step that is skipped leaves nothing to the next
            loss_of(module(**inputs)).backward()
            optimizer.step()
        states.append(module.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


# ---- refusals -------------------------------------------------------------------------------------------------------
def test_a_built_in_graph_cannot_be_lined_up() -> None:
    graph = pk.training_step("gpt2", batch=1, seq=128, dtype="bf16")
    plan = pk.plan(graph, "a100-80gb", allow=["recompute"])
    with pytest.raises(ValueError, match="its graph is a built-in one"):
        plan.apply(nn.Linear(2, 2))


def test_another_model_is_refused_by_the_first_parameter_that_differs() -> None:
    plan = planned(BY_NAME["resnet"], 0.75, "recompute")
    with pytest.raises(ValueError, match=r"another model: .*weight of shape .* is missing"):
        plan.apply(nn.Linear(2, 2))
    module, _, _ = BY_NAME["resnet"].build()
    module.head[1] = nn.Linear(32, 11)
    with pytest.raises(ValueError, match=r"head\.1\.weight has shape \(11, 32\), in the plan \(10, 32\)"):
        plan.apply(module)


def test_a_module_that_changed_is_refused_naming_the_operator() -> None:
    plan = planned(BY_NAME["resnet"], 0.75, "recompute")
    module, inputs, _ = BY_NAME["resnet"].build()
    module.stem[2] = nn.Tanh()
    with plan.apply(module), pytest.raises(ValueError, match=r"next operator is .*relu.*, the module runs aten\.tanh"):
        module(**inputs)


def test_other_formats_frozen_parameters_and_what_is_no_optimizer_are_refused() -> None:
    plan = planned(BRANCHING, 0.7, "recompute")
    module, inputs, _ = BRANCHING.build()
    with pytest.raises(ValueError, match=r"optimizer: expected a torch\.optim\.Optimizer, not str"):
        plan.apply(module, "adamw")
    with pytest.raises(ValueError, match=r"layers\.0\.weight has format bf16, in the plan fp32"):
        plan.apply(module.bfloat16())
    module.float().sides[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"sides\.1\.weight is frozen, in the plan it is trained"):
        plan.apply(module)
    module.sides[1].requires_grad_(True)
    with plan.apply(module):
        first = module(**inputs)
        module(**inputs)
        with pytest.raises(ValueError, match="called again before the backward pass of its last call"):
            first.backward()
        with pytest.raises(ValueError, match="the module is in evaluation mode, the plan's was not"):
            module.eval()(**inputs)


def test_other_shapes_are_refused_naming_both() -> None:
    plan = planned(BY_NAME["resnet"], 0.75, "recompute")
    module, inputs, _ = BY_NAME["resnet"].build()
    with (
        plan.apply(module),
        pytest.raises(ValueError, match=r"shape \(8, 16, 32, 32\) in the plan, of \(4, 16, 32, 32"),
    ):
        module(**{name: value[:4] for name, value in inputs.items()})


def test_a_folder_must_be_named_and_writable(tmp_path: Path) -> None:
    case = BY_NAME["gpt2"]
    plan = planned(case, 0.75, "swap")
    module, _, _ = case.build()
    with pytest.raises(ValueError, match="folder: the plan moves tensors to a drive"):
        plan.apply(module)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"folder: .* cannot be written to"):
        plan.apply(module, folder=tmp_path / "file")


def test_a_plan_for_a_cpu_needs_a_drive_to_move_to() -> None:
    graph, live = captured(BY_NAME["resnet"])
    with pytest.raises(ValueError, match=f"ssd: {DEVICE} is a CPU, whose memory is the host's"):
        pk.plan(graph, DEVICE, budget=int(0.75 * live))
