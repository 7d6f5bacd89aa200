"""States and layers that lie elsewhere change no number."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from measured import measured_peak  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from peakline.execution.optimizers import layers_of, offload_optimizer  # noqa: E402
from peakline.execution.streaming import stream_layers  # noqa: E402

OPTIMIZERS = {
    "adamw": partial(torch.optim.AdamW, lr=1e-2, amsgrad=True),
    "adamw-fused": partial(torch.optim.AdamW, lr=1e-2, fused=True),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop-foreach": partial(torch.optim.RMSprop, foreach=True),
}
X = torch.linspace(-1, 1, 16 * 192).view(16, 192)


def layers(number: int = 6) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(nn.Linear(192, 192), nn.Tanh()) for _ in range(number)))


def trained(optimizer: Any, elsewhere: dict[str, Any] | None) -> tuple[list[Tensor], dict[str, Any]]:
    module = layers()
    made = optimizer(module.parameters())
    schedule = torch.optim.lr_scheduler.ExponentialLR(made, 0.9)
    away = None
    for step in range(6):
        if step == 2 and elsewhere is not None:
            away = offload_optimizer(made, module, **elsewhere)
        module(X).square().sum().backward()
        made.step()
        made.zero_grad()
        schedule.step()
    if away is not None:
        away.remove()
    return list(module.parameters()), made.state_dict()["state"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("where", ["files", "host memory", "updated on the host"])
def test_an_optimizer_with_its_states_elsewhere_takes_the_same_steps(kind: str, where: str, tmp_path: Path) -> None:
    options = {"files": {"folder": tmp_path}, "host memory": {}, "updated on the host": {"update": "host"}}[where]
    parameters, states = trained(OPTIMIZERS[kind], None)
    found, as_well = trained(OPTIMIZERS[kind], options)
    assert all(torch.equal(a, b) for a, b in zip(parameters, found, strict=True))
    assert states.keys() == as_well.keys()
    for number, state in states.items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(as_well[number][k])) for k, v in state.items())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_gradients_that_leave_for_the_host_as_they_are_made_are_updated_from_there(kind: str) -> None:
    names = [name for name, _ in layers().named_parameters()]
    parameters, _ = trained(OPTIMIZERS[kind], None)
    found, _ = trained(OPTIMIZERS[kind], {"update": "host", "gradients": names[::2], "release": True})
    assert all(torch.equal(a, b) for a, b in zip(parameters, found, strict=True))


@pytest.mark.parametrize("update", ["host", "device"])
def test_a_gradient_that_leaves_is_gone_when_the_backward_pass_is_over(update: str) -> None:
    module = layers(2)
    optimizer = OPTIMIZERS["adamw-fused"](module.parameters())
    away = offload_optimizer(optimizer, module, update=update, gradients=["0.0.weight"], release=True)
    module(X).sum().backward()
    assert module[0][0].weight.grad is None
    assert module[1][0].weight.grad is not None
    optimizer.step()
    assert all(parameter.grad is None for parameter in module.parameters())
    away.remove()


def test_states_in_files_take_the_memory_of_one_turn(tmp_path: Path) -> None:
    def peak(away: bool) -> int:
        ended = []

        def make() -> Any:
            module = layers(12)
            optimizer = OPTIMIZERS["adamw-fused"](module.parameters())
            if away:
                ended.append(offload_optimizer(optimizer, module, folder=tmp_path))

            def step() -> None:
                module(X).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()

            return step

        found = measured_peak(make)
        for one in ended:
            one.remove()
        return found

    states = 2 * 12 * 192 * 192 * 4
    assert peak(False) - peak(True) == pytest.approx(states * 11 / 12, rel=0.02)


def test_a_saved_state_holds_everything_while_states_are_in_files(tmp_path: Path) -> None:
    module = layers(2)
    optimizer = OPTIMIZERS["adamw"](module.parameters())
    away = offload_optimizer(optimizer, module, folder=tmp_path)
    module(X).sum().backward()
    optimizer.step()
    assert {"exp_avg", "exp_avg_sq", "step"} <= optimizer.state_dict()["state"][0].keys()
    away.remove()


def test_turns_are_layers() -> None:
    names = ["wte.weight", "h.0.a.weight", "h.0.a.bias", "h.1.a.weight", "norm.weight"]
    assert layers_of(names) == [["wte.weight"], ["h.0.a.weight", "h.0.a.bias"], ["h.1.a.weight"], ["norm.weight"]]


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("files", [True, False])
def test_streamed_layers_give_the_same_outputs(ahead: int, files: bool, tmp_path: Path) -> None:
    module = layers()
    with torch.no_grad():
        expected = module(X)
        with stream_layers(module, folder=tmp_path if files else None, ahead=ahead):
            assert sum(p.numel() for p in module.parameters()) == 0
            assert torch.equal(module(X), expected)
            assert torch.equal(module(X), expected)
        assert torch.equal(module(X), expected)


def test_streamed_layers_take_the_memory_of_those_that_are_in(tmp_path: Path) -> None:
    ended = []

    def make() -> Any:
        module = layers(12)
        ended.append(stream_layers(module, folder=tmp_path, ahead=1))

        def step() -> None:
            with torch.no_grad():
                module(X)

        return step

    layer = 4 * (192 * 192 + 192)
    peak = measured_peak(make)
    ended[0].remove()
    assert peak == pytest.approx(2 * layer + 2 * X.nbytes, rel=0.1)


def test_what_layers_share_with_others_stays_and_strides_are_kept() -> None:
    module = nn.ModuleDict({"embed": nn.Embedding(8, 8), "layers": nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])})
    module["layers"][1].weight = module["embed"].weight
    module["layers"][0].weight.data = torch.randn(8, 8).t()
    x = torch.randn(2, 8)
    with torch.no_grad():
        expected = [layer(x) for layer in module["layers"]]
        with stream_layers(module, "layers"):
            assert torch.equal(module["embed"](torch.arange(8)), module["embed"].weight)
            assert all(torch.equal(layer(x), y) for layer, y in zip(module["layers"], expected))
    assert module["layers"][0].weight.stride() == (1, 8)


def test_statistics_of_streamed_layers_are_kept_and_a_saved_state_holds_everything() -> None:
    module = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(3)))
    other = copy.deepcopy(module)
    x = torch.randn(4, 8)
    with torch.no_grad(), stream_layers(module):
        assert torch.equal(module(x), other(x))
        state = {name: value.clone() for name, value in module.state_dict().items()}
        assert torch.equal(module(x), other(x))
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert state["1.1.num_batches_tracked"] == 1
    assert state["0.0.weight"].shape == (8, 8)


def test_streaming_is_for_inference_and_says_so() -> None:
    module = layers(2)
    with stream_layers(module), pytest.raises(ValueError, match=r"run the module under torch\.no_grad"):
        module(X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: stream_layers(m, "blocks"), "layers: 'blocks' is no list of modules; accepted: "),
        (lambda m: stream_layers(m, ahead=-1), "ahead: -1 is not a whole number of at least 0"),
        (lambda m: stream_layers(m, [m[0], m[0]]), "two of them share a parameter"),
        (lambda m: stream_layers(m[0][0]), "no ModuleList and no Sequential"),
        (lambda m: stream_layers(m, []), r"layers: \[\] is not modules; accepted: a path"),
        (lambda m: stream_layers("m"), r"module: expected a torch\.nn\.Module, not str"),
        (lambda m: stream_layers(m) and stream_layers(m), "one of them is streamed already"),
        (lambda m: stream_layers(m) and copy.deepcopy(m), "copy it before, or after remove"),
        (lambda m: offload_optimizer(torch.optim.SGD(m.parameters()), m, update="disk"), "update: 'disk' is unknown"),
        (lambda m: offload_optimizer(torch.optim.SGD(m.parameters()), m[0]), "is not the module's"),
    ],
)
def test_bad_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(layers(2))
