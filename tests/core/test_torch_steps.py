"""Peak memory of real PyTorch training steps, allocation by allocation, against peakline's live peak.

The CPU runs the same autograd engine, derivatives and optimizers as CUDA. What differs is named in each test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from networks import BATCH, SEQ, LayerBuild, feed_forward, language_model, self_attention, stack, swiglu  # noqa: E402
from torch_memory import predicted_rise, predicted_saved, rise, saved_bytes, step_graph  # noqa: E402
from torch_networks import FeedForward, LanguageModel, SelfAttention, Stack, SwiGlu  # noqa: E402

LAYERS = 3
SCALAR = 8 * LAYERS  # on a CPU a Python factor is kept for backward as a float64 scalar; on CUDA it stays on the host

NETWORKS: dict[str, tuple[Callable[[], Any], LayerBuild, int]] = {
    "feed-forward": (FeedForward, feed_forward, 0),
    "swiglu": (SwiGlu, swiglu, 0),
    "attention": (SelfAttention, self_attention(), SCALAR),
    "attention with biases": (lambda: SelfAttention(bias=True), self_attention(bias=True), SCALAR),
    "grouped heads": (lambda: SelfAttention(kv_heads=2), self_attention(kv_heads=2), SCALAR),
}


def step(
    module: Any, forward: Callable[[], Any], *, microbatches: int = 1, zero: bool = False, autocast: bool = False
) -> Callable[[], None]:
    """A training step without optimizer: forward, backward, and gradients freed or zeroed."""

    def run() -> None:
        for _ in range(microbatches):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = forward()
            loss.backward()
        module.zero_grad(set_to_none=not zero)

    return run


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_peaks_where_pytorch_does(name: str) -> None:
    layer, build, host_scalars = NETWORKS[name]
    module = Stack(layer, LAYERS)
    graph = step_graph(stack(build, LAYERS))
    assert predicted_rise(graph) == rise(step(module, module.loss())) - host_scalars
    assert predicted_saved(graph) == saved_bytes(module.loss(), module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_accumulated_gradients_are_made_and_then_added(name: str) -> None:
    layer, build, host_scalars = NETWORKS[name]
    module = Stack(layer, LAYERS)
    measured = rise(step(module, module.loss(), microbatches=3))
    assert predicted_rise(step_graph(stack(build, LAYERS), accumulation=3)) == measured - host_scalars


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_that_are_kept_add_one_gradient_at_a_time(name: str) -> None:
    layer, build, host_scalars = NETWORKS[name]
    module = Stack(layer, LAYERS)
    measured = rise(step(module, module.loss(), zero=True))
    assert predicted_rise(step_graph(stack(build, LAYERS), set_to_none=False)) == measured - host_scalars


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpointed_layer_is_run_again_before_its_first_gradient(name: str) -> None:
    layer, build, host_scalars = NETWORKS[name]
    module = Stack(layer, LAYERS, recompute=True)
    measured = rise(step(module, module.loss()))
    assert predicted_rise(step_graph(stack(build, LAYERS), recomputation="full")) == measured - host_scalars // LAYERS


def test_checkpointing_and_accumulation_go_together() -> None:
    module = Stack(SwiGlu, LAYERS, recompute=True)
    graph = step_graph(stack(swiglu, LAYERS), recomputation="full", accumulation=2)
    assert predicted_rise(graph) == rise(step(module, module.loss(), microbatches=2))


def test_bfloat16_parameters_halve_what_is_bfloat16() -> None:
    module = Stack(SwiGlu, LAYERS).to(torch.bfloat16)
    graph = step_graph(stack(swiglu, LAYERS), kind="bf16")
    forward = module.loss(torch.bfloat16)
    assert predicted_rise(graph) == rise(step(module, forward))
    assert predicted_saved(graph) == saved_bytes(forward, module.parameters())


def test_bfloat16_attention_upcasts_its_scores_into_a_copy() -> None:
    """`F.softmax(…, dtype=float32)` keeps both formats of the probabilities; CUDA's norms keep float32 statistics."""
    module = Stack(SelfAttention, LAYERS).to(torch.bfloat16)
    graph = step_graph(stack(self_attention(), LAYERS), kind="bf16")
    statistics = LAYERS * 2 * BATCH * SEQ
    assert (
        predicted_saved(graph) - statistics * 4
        == saved_bytes(module.loss(torch.bfloat16), module.parameters()) - statistics * 2
    )


def test_autocast_casts_weights_once_and_activations_at_every_use() -> None:
    module = Stack(SwiGlu, LAYERS)
    forward = module.loss()

    def under_autocast() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward()

    graph = step_graph(stack(swiglu, LAYERS), autocast="bf16")
    assert predicted_rise(graph) == rise(step(module, forward, autocast=True))
    assert predicted_saved(graph) == saved_bytes(under_autocast, module.parameters())


def test_a_language_model_peaks_at_its_loss() -> None:
    module = LanguageModel()
    graph = step_graph(language_model())
    assert predicted_rise(graph) == rise(step(module, module.loss()))
    assert predicted_saved(graph) == saved_bytes(module.loss(), module.parameters())


def test_a_tied_head_holds_three_tables_when_its_gradients_meet() -> None:
    """The head's gradient is a transposed view, which PyTorch never adds into: the sum is a third table."""
    module = LanguageModel(layers=1, tied=True)
    graph = step_graph(language_model(layers=1, tied=True))
    assert predicted_rise(graph) == rise(step(module, module.loss()))
    table = module.embed.weight.nbytes
    assert predicted_rise(graph) > 3 * table
