"""What a user may hand to `pk.capture`, what comes back, and that nothing of theirs is altered."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.models.graph import Graph  # noqa: E402
from peakline.program import load_function, names_function  # noqa: E402


def small() -> nn.Module:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def roles(graph: Graph) -> dict[str, int]:
    """Bytes of each role."""
    return {role: int(graph.total_bytes(role)) for role in ("parameter", "gradient", "optimizer_state", "input")}


WEIGHTS = 4 * (8 * 16 + 16 + 16 * 4 + 4)


def test_a_module_with_inputs_and_an_optimizer() -> None:
    graph = pk.capture(small(), torch.zeros(3, 8), optimizer="adamw")
    assert roles(graph) == {
        "parameter": WEIGHTS, "gradient": WEIGHTS, "optimizer_state": 2 * WEIGHTS + 4 * 4, "input": 3 * 8 * 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    "optimizer", ["sgd", torch.optim.SGD, partial(torch.optim.SGD, lr=0.1)], ids=["name", "class", "partial"]
)
def test_an_optimizer_is_a_name_a_class_or_a_partial(optimizer: Any) -> None:
    graph = pk.capture(small(), torch.zeros(3, 8), optimizer=optimizer)
    assert roles(graph)["optimizer_state"] == 0


def test_an_optimizer_that_has_stepped_keeps_its_states() -> None:
    module = small()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    module(torch.zeros(3, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    before = {id(p): s["momentum_buffer"].clone() for p, s in optimizer.state.items()}
    graph = pk.capture(module, torch.zeros(3, 8), optimizer=optimizer)
    assert roles(graph)["optimizer_state"] == WEIGHTS
    assert all(torch.equal(s["momentum_buffer"], before[id(p)]) for p, s in optimizer.state.items())
    assert [p for group in optimizer.param_groups for p in group["params"]] == list(module.parameters())


def test_a_factory_allocates_nothing() -> None:
    graph = pk.capture(lambda: nn.Linear(1 << 17, 1 << 17), torch.zeros(1, 1 << 17), mode="inference")
    assert roles(graph)["parameter"] == 4 * ((1 << 34) + (1 << 17))


def test_a_factory_may_convert_what_it_makes() -> None:
    def make() -> Any:
        return small().to(torch.bfloat16), torch.zeros(3, 8, dtype=torch.bfloat16)

    made, whole = pk.capture(make), pk.capture(small(), torch.zeros(3, 8), dtype=torch.bfloat16)
    assert roles(made)["parameter"] == roles(whole)["parameter"] == WEIGHTS // 2


def test_a_module_on_the_meta_device_is_as_good_as_a_real_one() -> None:
    with torch.device("meta"):
        meta = small()
    one, other = (pk.capture(m, torch.zeros(3, 8), optimizer="adam") for m in (meta, small()))
    assert one == other


def test_inputs_may_be_named_or_nested() -> None:
    class Pair(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], *, scale: dict[str, Tensor]) -> Tensor:
            return (pair[0] * pair[1] * scale["by"]).sum()

    a = torch.zeros(5)
    graph = pk.capture(Pair(), {"pair": (a, torch.zeros(5)), "scale": {"by": a}}, mode="inference")
    assert [t.name for t in graph.of_role("input")] == ["pair.0", "pair.1"]


def test_nothing_of_the_users_is_altered() -> None:
    module = small().eval()
    before = {name: (id(p), p.detach().clone()) for name, p in module.named_parameters()}
    pk.capture(module, torch.zeros(3, 8), optimizer="adamw")
    after = dict(module.named_parameters())
    assert all(id(after[n]) == i and torch.equal(after[n], value) for n, (i, value) in before.items())
    assert all(p.grad is None for p in module.parameters())
    assert not module.training
    assert not nn.modules.module._global_forward_hooks


def test_nothing_is_altered_by_an_interrupt_either() -> None:
    class Interrupted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            raise KeyboardInterrupt

    module = Interrupted()
    weight = module.weight
    with pytest.raises(KeyboardInterrupt):
        pk.capture(module, torch.zeros(2))
    assert module.weight is weight
    assert not nn.modules.module._global_forward_hooks


def adversarial() -> Callable[[], None]:
    """A step with two optimizers."""
    maker, judge = nn.Linear(16, 64), nn.Linear(64, 1)
    first, second = torch.optim.Adam(maker.parameters()), torch.optim.Adam(judge.parameters())

    def step() -> None:
        noise = torch.randn(8, 16)
        second.zero_grad()
        (judge(maker(noise).detach()).mean() - judge(torch.randn(8, 64)).mean()).backward()
        second.step()
        first.zero_grad()
        (-judge(maker(noise)).mean()).backward()
        first.step()

    return step


@pytest.mark.parametrize("program", [adversarial, adversarial()], ids=["a function that makes it", "itself"])
def test_a_step_of_your_own_with_two_models_and_optimizers(program: Any) -> None:
    graph = pk.capture(program)
    assert {t.name for t in graph.of_role("parameter")} == {"maker.weight", "maker.bias", "judge.weight", "judge.bias"}
    assert graph.previous == {f"{n}.grad": f"{n}.grad.2" for n in ("maker.weight", "maker.bias", "judge.weight",
                                                                    "judge.bias")}  # fmt: skip


def test_a_custom_autograd_function_keeps_what_it_saves() -> None:
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return gradient * 3 * x**2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return Cube.apply(self.linear(x))

    graph = pk.capture(Model(), torch.zeros(4, 8))
    saved = next(o for _, o in graph.operators() if o.type == "aten.addmm").outputs[0]
    readers = [o for _, o in graph.operators() if saved in o.inputs and o.phase == "backward"]
    assert readers
    assert {o.module for o in readers} <= {"", "linear"}


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_a_phase_of_its_own(reentrant: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = small(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(checkpoint(self.first, x, use_reentrant=reentrant))

    graph = pk.capture(Model(), torch.zeros(4, 8, requires_grad=True), optimizer="sgd")
    again = [o.type for _, o in graph.operators() if o.phase == "recompute"]
    assert again.count("aten.addmm") >= 1
    assert {o.module.split(".")[0] for _, o in graph.operators() if o.phase == "recompute"} == {"first"}


def test_a_mask_of_ones_is_seen_to_be_one() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x.sum() if bool((mask == 1).all()) else (x * mask).sum()

    def operators(mask: Tensor) -> set[str]:
        return {o.type for _, o in pk.capture(Masked(), (torch.zeros(4), mask), mode="inference").operators()}

    assert "aten.mul" not in operators(torch.ones(4, dtype=torch.long))
    assert "aten.mul" in operators(torch.tensor([1, 1, 1, 0]))


class Choosing(nn.Module):
    """Looks at what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        rows = (y.sum(1) > -100).nonzero()[:, 0]
        return y[rows].sum()


def test_control_flow_that_depends_on_data_is_explained() -> None:
    with pytest.raises(ValueError, match=r"test_capture.py:\d+: .*real=True"):
        pk.capture(Choosing(), torch.ones(3, 4))


def test_control_flow_that_depends_on_data_is_followed_with_real_values() -> None:
    module = Choosing()
    before = module.linear.weight.detach().clone()
    graph = pk.capture(module, torch.ones(3, 4), optimizer="adam", real=True)
    gathered = next(o for _, o in graph.operators() if o.type == "aten.index")
    assert graph.tensors[gathered.outputs[0]].shape == (3, 4)
    assert torch.equal(module.linear.weight, before)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "inputs of a wrong shape": (lambda: pk.capture(small(), torch.zeros(3, 5)), r"RuntimeError.*\[3, 5\]"),
    "a module without inputs": (lambda: pk.capture(small()), "inputs: a module needs example inputs"),
    "a function that returns a number": (lambda: pk.capture(lambda: 3), "returned int; accepted"),
    "a pair of something else": (lambda: pk.capture(lambda: (1, 2)), "a tuple of int, int"),
    "an unknown optimizer": (lambda: pk.capture(small(), torch.zeros(3, 8), optimizer="adamx"), "adamw"),
    "an output without a loss": (lambda: pk.capture(nn.LSTM(4, 4), torch.zeros(3, 4)), "pass loss="),
    "an unknown mode": (lambda: pk.capture(small(), torch.zeros(3, 8), mode="train"), "training, inference"),
    "no steps": (lambda: pk.capture(small(), torch.zeros(3, 8), steps=0), "steps: .*at least 1"),
    "a microcontroller": (lambda: pk.capture(small(), torch.zeros(3, 8), device="stm32f746"), "accepted: GPUs, cpu"),
    "an integer format": (lambda: pk.capture(small(), torch.zeros(3, 8), dtype="int8"), "dtype 'int8'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_in_one_line(case: str) -> None:
    run, says = BAD[case]
    with pytest.raises(ValueError, match=says) as caught:
        run()
    assert "\n" not in str(caught.value)


def test_functions_are_named_by_module_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_training.py").write_text("def make_step():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    assert names_function("my_training:make_step")
    assert names_function("some/my_training.py:make_step")
    assert not names_function("llama-3.1-8b")
    assert load_function("my_training:make_step")() == 1
    assert load_function(f"{tmp_path}/my_training.py:make_step")() == 1
    with pytest.raises(ValueError, match="no function 'make_stop'; it has: make_step"):
        load_function("my_training:make_stop")
    with pytest.raises(ValueError, match="no module named 'my_trainings'"):
        load_function("my_trainings:make_step")
