"""The built-in families and the captured implementations of the same models agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from resnet import ResNet50  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.memory.footprint import footprint  # noqa: E402
from peakline.memory.lifetimes import unroll  # noqa: E402
from peakline.memory.saved import saved_bytes  # noqa: E402
from peakline.models.graph import Graph  # noqa: E402
from peakline.models.kernels import Stream  # noqa: E402
from peakline.models.operators import Node, operator_type  # noqa: E402

SAVED, LIVE = 0.01, 0.02
DEVICE = "h100-sxm"


@dataclass(frozen=True)
class Model:
    """A model built in, and the same as somebody else's module."""

    built: Callable[[], Graph]
    module: Callable[[], Any]
    inputs: Callable[[], Any]


def _step(config: Any, **workload: Any) -> Callable[[], Graph]:
    model = config if isinstance(config, str) else config.to_dict()
    return lambda: pk.training_step(model, dtype="bf16", optimizer="adamw", **workload)


def _text(vocabulary: int) -> Callable[[], Any]:
    ids = torch.zeros(2, 512, dtype=torch.long)
    return lambda: {"input_ids": ids, "labels": ids}


def _pictures(batch: int) -> Callable[[], Any]:
    return lambda: (torch.zeros(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long))


LLAMA = transformers.LlamaConfig(
    vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=4, num_attention_heads=16,
    num_key_value_heads=4, use_cache=False,
)  # fmt: skip
GPT2 = transformers.GPT2Config(n_layer=4, use_cache=False)
BERT = transformers.BertConfig(num_hidden_layers=4)
VIT = transformers.ViTConfig(num_hidden_layers=4, num_labels=1000)

SMALL = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 2, "use_cache": False, "pad_token_id": None}  # fmt: skip
WINDOWED = transformers.MistralConfig(sliding_window=256, **SMALL)
PHI3 = transformers.Phi3Config(**SMALL)
STABLE = transformers.StableLmConfig(**SMALL)
FALCON = transformers.FalconConfig(vocab_size=8000, hidden_size=512, num_hidden_layers=2, num_attention_heads=8)

MODELS = {
    "llama": Model(_step(LLAMA, batch=2, seq=512), lambda: transformers.LlamaForCausalLM(LLAMA), _text(32000)),
    "gpt2": Model(_step(GPT2, batch=2, seq=512), lambda: transformers.GPT2LMHeadModel(GPT2), _text(50257)),
    "bert": Model(_step(BERT, batch=2, seq=512), lambda: transformers.BertForMaskedLM(BERT), _text(30522)),
    "vit": Model(
        _step(VIT, batch=8),
        lambda: transformers.ViTForImageClassification(VIT),
        lambda: dict(zip(("pixel_values", "labels"), _pictures(8)())),
    ),
    "mistral beyond its window": Model(
        _step(WINDOWED, batch=2, seq=512), lambda: transformers.MistralForCausalLM(WINDOWED), _text(8000)
    ),
    "phi-3": Model(_step(PHI3, batch=2, seq=512), lambda: transformers.Phi3ForCausalLM(PHI3), _text(8000)),
    "stablelm": Model(_step(STABLE, batch=2, seq=512), lambda: transformers.StableLmForCausalLM(STABLE), _text(8000)),
    "falcon": Model(
        _step(FALCON, batch=2, seq=512),
        lambda: transformers.FalconForCausalLM(FALCON),
        lambda: {**_text(8000)(), "use_cache": False},
    ),
    "resnet-50": Model(_step("resnet-50", batch=16), ResNet50, _pictures(16)),
}


def _flops(graph: Graph, *phases: str) -> int:
    """Floating-point operations of matrix products, convolutions and attention."""
    total = 0
    for block, operator in graph.operators():
        if operator.phase in phases:
            for kernel in operator_type(operator.type).kernels(Node.of(graph, operator)):
                if not isinstance(kernel, Stream):
                    total += kernel.flops * block.repeat * block.times
    return total


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest) -> tuple[str, Graph, Graph]:
    """The built and the captured training step of a model."""
    model = MODELS[request.param]
    captured = pk.capture(model.module, model.inputs(), optimizer="adamw", dtype="bf16", device=DEVICE)
    return request.param, model.built(), captured


def test_they_do_the_same_arithmetic(pair: tuple[str, Graph, Graph]) -> None:
    _, built, captured = pair
    assert _flops(captured, "forward") == _flops(built, "forward")
    assert _flops(captured, "backward") == _flops(built, "backward")


def test_they_keep_the_same_for_backward(pair: tuple[str, Graph, Graph]) -> None:
    _, built, captured = pair
    assert saved_bytes(unroll(captured)) == pytest.approx(saved_bytes(unroll(built)), rel=SAVED)


def test_their_live_peaks_agree(pair: tuple[str, Graph, Graph]) -> None:
    _, built, captured = pair
    peaks = [footprint(unroll(graph), pk.device(DEVICE), replay=False).live for graph in (built, captured)]
    assert peaks[1] == pytest.approx(peaks[0], rel=LIVE)


def test_they_have_the_same_parameters_under_the_same_names(pair: tuple[str, Graph, Graph]) -> None:
    _, built, captured = pair
    assert captured.parameters == built.parameters
