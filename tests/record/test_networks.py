"""The networks written by hand have the published numbers of parameters; every case can be built."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="networks need torch")

from peakline.record import MEMORY_CASES, MemoryCase  # noqa: E402
from peakline.record.build import build  # noqa: E402
from peakline.record.cases import STEP_CASES  # noqa: E402
from peakline.record.networks import DiT, ResNet, UNet  # noqa: E402
from peakline.record.operator_cases import operator_cases  # noqa: E402

BY_NAME = {case.name: case for case in MEMORY_CASES}


def _parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_resnet50_has_the_parameters_of_torchvisions() -> None:
    with torch.device("meta"):
        assert _parameters(ResNet((3, 4, 6, 3), 64, 1000)) == 25_557_032


def test_dit_xl_2_has_the_675_million_parameters_of_the_paper() -> None:
    with torch.device("meta"):
        assert _parameters(DiT(1152, 28, 16, 2, 4, 1000)) == pytest.approx(675e6, rel=0.005)


def test_the_unet_gives_back_an_image_of_the_same_shape() -> None:
    net = UNet(32, (1, 2, 2), 1, 3, 1)
    x = torch.randn(2, 3, 16, 16)
    assert net(x, torch.tensor([1, 2])).shape == x.shape


def test_names_are_unique_and_steps_are_taken_from_the_cases() -> None:
    assert len(BY_NAME) == len(MEMORY_CASES)
    assert set(STEP_CASES) <= set(BY_NAME)
    for device in ("cuda", "cpu"):
        names = [case.name for case in operator_cases(device)]
        assert len(set(names)) == len(names)


def test_the_seed_decides_the_order_of_the_products_alone() -> None:
    one, other = operator_cases("cuda", 1), operator_cases("cuda", 2)
    assert one == operator_cases("cuda", 1) != other
    assert {case.name for case in one} == {case.name for case in other}


def test_enough_small_training_steps_of_different_kinds_run_on_any_machine() -> None:
    small = [case for case in MEMORY_CASES if case.scale == "small" and case.mode == "training"]
    assert len(small) >= 15
    assert len({case.model_type for case in small}) >= 12
    assert {case.dtype for case in small} == {"fp32", "bf16"}
    assert len({case.optimizer for case in small}) >= 6
    assert any(case.checkpointing for case in small)


LARGE = {(case.architecture, str(case.config)): case for case in reversed(MEMORY_CASES) if case.scale != "small"}


@pytest.mark.parametrize("case", LARGE.values(), ids=lambda case: case.name)
def test_large_cases_are_what_they_are_called(case: MemoryCase) -> None:
    """Built without memory: the configuration is one that the library accepts."""
    if case.source == "transformers":
        pytest.importorskip("transformers")
    built = build(case, "meta")
    parameters = _parameters(built.module)
    published = {
        "llama-7b": 6.74e9, "llama-1.1b": 1.10e9, "llama-3.2-1b": 1.24e9, "gpt2-medium": 355e6, "gpt2-b": 124e6,
        "opt-1.3b": 1.3e9, "gemma2-2b": 2.6e9, "bert-base": 110e6, "vit-base": 86.6e6, "t5-large": 738e6,
        "whisper-small": 242e6, "mamba-130m": 129e6, "qwen3-0.6b": 596e6, "resnet50": 25.6e6, "dit-xl": 675e6,
    }  # fmt: skip
    for name, count in published.items():
        if case.name.startswith(name):
            assert parameters == pytest.approx(count, rel=0.02)
    assert next(iter(built.module.parameters())).device.type == "meta"
