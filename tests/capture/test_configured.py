"""A `config.json` that no built-in family reads is captured from transformers' implementation of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import peakline as pk  # noqa: E402
from peakline.cli.app import run  # noqa: E402

OLMO = {
    "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "vocab_size": 1000, "hidden_size": 128,
    "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "pad_token_id": None, "eos_token_id": None, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(OLMO), encoding="utf-8")
    return tmp_path


def _said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run([*arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_line_estimates_it_like_any_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("estimate", str(folder), "--device", "h100-sxm", "--train", "--batch", "2", "--json")
    code, out, _ = _said(capsys, *arguments)
    real = transformers.Olmo2ForCausalLM(transformers.Olmo2Config.from_dict(OLMO))
    found = json.loads(out)
    assert code == 0
    assert found["model"] == "Olmo2ForCausalLM"
    assert found["memory"]["by_role"]["parameter"] == 2 * sum(p.numel() for p in real.parameters())
    assert found["memory"]["by_role"]["optimizer_state"] == pytest.approx(
        4 * sum(p.numel() for p in real.parameters()), rel=0.01
    )


def test_python_takes_the_content_too() -> None:
    plain = pk.capture(OLMO, {"batch": 4, "seq": 512}, device="h100-sxm", dtype="bf16")
    thrifty = pk.capture(OLMO, {"batch": 4, "seq": 512, "recompute": "full"}, device="h100-sxm", dtype="bf16")
    assert pk.estimate(thrifty, "h100-sxm").memory.live < pk.estimate(plain, "h100-sxm").memory.live
    assert thrifty.parameters == plain.parameters


def test_pictures_have_the_size_of_the_configuration() -> None:
    swin = transformers.SwinConfig(image_size=64, embed_dim=32, depths=[1, 1], num_heads=[2, 2]).to_dict()
    graph = pk.capture(swin, {"batch": 2}, mode="inference", device="h100-sxm")
    assert any(tensor.shape == (2, 3, 64, 64) for tensor in graph.tensors.values())


@pytest.mark.parametrize(
    ("change", "said", "problem"),
    [
        ({}, {"seq": 0}, "seq: must be a whole number of at least 1, not 0"),
        ({}, {"seq": 8, "context": 8}, "context: not an option of a captured configuration"),
        ({}, {"seq": 8, "attention": "flash"}, "attention: 'flash' is unknown here; accepted: auto, eager"),
        (
            {"model_type": "olmo99"},
            {"seq": 8},
            "field .model_type. is .olmo99., which neither peakline nor",
        ),
        ({"hidden_size": "wide"}, {"seq": 8}, "transformers cannot read this configuration"),
    ],
)
def test_what_cannot_be_says_so(change: dict[str, Any], said: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        pk.capture(OLMO | change, said, device="h100-sxm")


def test_other_phases_need_a_built_in_family(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _said(capsys, "estimate", str(folder), "--device", "h100-sxm", "--decode", "--context", "64")
    assert code == 2
    assert "others are captured from transformers, with --train or --infer" in err
