"""A sweep is its configurations: every figure of an array estimate equals the scalar estimate's, exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import peakline as pk
from peakline import chunks
from peakline.memory.options import AllocatorOptions
from peakline.models.builder import GraphBuilder
from peakline.models.graph import Graph
from peakline.models.operators.attention import attention

SMALL = {"layers": 2}


def figures(estimate: pk.Estimate) -> dict[str, Any]:
    """Every number of an estimate by a readable path."""
    memory, cost = estimate.memory, estimate.cost
    found = {name: getattr(memory, name) for name in ("live", "allocated", "reserved", "device", "fits", "retries")}
    found |= {"peak_operator": memory.peak_operator, "time": estimate.time, "peak": estimate.peak}
    found |= {name: getattr(cost, name) for name in ("flops", "vector_work", "bound", "io", "tiled")}
    for label, table in (
        ("by_role", memory.by_role),
        ("traffic", cost.traffic),
        ("io_lower_bound", cost.io_lower_bound),
        ("limited_by", cost.limited_by),
    ):
        found |= {f"{label}.{key}": value for key, value in table.items()}
    if estimate.energy_joules is not None:
        found["energy_joules"] = estimate.energy_joules
    return found


def same(array: pk.Estimate, index: tuple[int, ...], one: pk.Estimate) -> None:
    """The array's figures at `index` are the scalar's; a part that a configuration lacks counts 0."""
    shape = np.shape(array.memory.live)
    together, alone = figures(array), figures(one)
    for name in together.keys() | alone.keys():
        found = np.broadcast_to(together.get(name, 0), shape)[index]
        expected = alone.get(name, 0)
        assert found == (float(expected) if name == "flops" else expected), name


def compare(build: Callable[..., Graph], sizes: dict[str, Any], device: str, **options: Any) -> None:
    """Estimate the sweep and each configuration."""
    shape = np.broadcast_shapes(*(np.shape(v) for v in sizes.values()))
    array = pk.estimate(build(**sizes), device, **options)
    assert np.shape(array.memory.live) == shape
    for index in np.ndindex(shape):
        at = {name: int(np.broadcast_to(v, shape)[index]) for name, v in sizes.items()}
        same(array, index, pk.estimate(build(**at), device, **options))


def training(**sizes: Any) -> Graph:
    return pk.training_step("llama-3.2-1b", overrides=SMALL, **sizes)


def test_training_over_batch_and_length() -> None:
    """3 × 3 configurations on broadcast axes; some have few enough ids for the embedding's small kernel."""
    compare(training, {"batch": np.array([[1], [3], [8]]), "seq": np.array([64, 384, 2048])}, "h100-sxm")


def test_prefill_over_a_line() -> None:
    def build(**sizes: Any) -> Graph:
        return pk.prefill("llama-2-7b", overrides=SMALL, **sizes)

    compare(build, {"batch": np.arange(1, 9), "seq": 100 * np.arange(1, 9)}, "a100-80gb")


def test_decode_over_context() -> None:
    def build(**sizes: Any) -> Graph:
        return pk.decode("mistral-7b", overrides=SMALL, **sizes)

    compare(build, {"batch": np.array([[1], [16]]), "context": np.array([5, 4096, 4097, 9000])}, "rtx-4090")


@pytest.mark.parametrize("attention", ["eager", "math"])
def test_decode_with_its_scores_written_out(attention: str) -> None:
    """One query and many keys: the products are not square."""

    def build(**sizes: Any) -> Graph:
        return pk.decode("llama-3.2-1b", overrides=SMALL, attention=attention, **sizes)

    compare(build, {"batch": 2, "context": np.array([5, 300, 4096])}, "a100-80gb")


def test_sliding_windows_longer_and_shorter_than_the_sequence() -> None:
    """Gemma-2's local layers see 4,096 keys: the number of pairs bends there."""

    def build(**sizes: Any) -> Graph:
        return pk.prefill("gemma-2-2b", overrides=SMALL, **sizes)

    compare(build, {"batch": 1, "seq": np.array([100, 4095, 4096, 4097, 8192])}, "h100-sxm")


@pytest.mark.parametrize("model", ["resnet-18", "vit-b-16"])
def test_images_over_batch(model: str) -> None:
    """ViT adds a position embedding: a batch of one copies the gradient that a larger one sums."""

    def build(**sizes: Any) -> Graph:
        return pk.training_step(model, **sizes)

    compare(build, {"batch": np.array([1, 7, 64])}, "a100-80gb")


FAMILIES = {
    "mixtral-8x7b": {"layers": 2},
    "deepseek-v3": {"layers": 4},
    "mamba-130m": {"layers": 2},
    "t5-small": {},
    "bert-base": {"layers": 2},
}


@pytest.mark.parametrize("model", FAMILIES)
def test_every_family_sweeps(model: str) -> None:
    def build(**sizes: Any) -> Graph:
        return pk.inference(model, overrides=FAMILIES[model], **sizes)

    compare(build, {"batch": np.array([[1], [3], [40]]), "seq": np.array([1, 33, 512])}, "h100-sxm")


TRAININGS = {
    "gpt2": [{"recompute": "full"}, {"accumulation": 3}, {"dtype": "fp32", "autocast": "bf16"}, {"attention": "eager"}],
    "bert-base": [{}],
    "mixtral-8x7b": [{"optimizer": "adamw-loop"}],
    "mamba-130m": [{"optimizer": "sgd"}],
    "llama-3.2-1b": [{"lora": 8}, {"kernels": "fused"}, {"loss": "chunked"}, {"master_weights": True}],
}


@pytest.mark.parametrize(("model", "how"), [(model, how) for model, hows in TRAININGS.items() for how in hows])
def test_training_s_variants_sweep(model: str, how: dict[str, Any]) -> None:
    """A batch of one broadcasts nothing over the batch, and sums nothing back."""

    def build(**sizes: Any) -> Graph:
        return pk.training_step(model, overrides=SMALL, **how, **sizes)

    compare(build, {"batch": np.array([1, 5]), "seq": np.array([[100], [512]])}, "h100-sxm")


def test_flop_counts_past_two_to_the_63_are_rounded_once() -> None:
    def build(**sizes: Any) -> Graph:
        return pk.prefill("llama-3.1-70b", **sizes)

    batches = np.array([1, 300, 2000])
    array = pk.estimate(build(batch=batches, seq=131072), "h100-sxm")
    assert array.cost.flops[-1] > 2.0**63
    for i, batch in enumerate(batches.tolist()):
        same(array, (i,), pk.estimate(build(batch=batch, seq=131072), "h100-sxm"))


def test_only_an_attribute_may_vary() -> None:
    """One program whose sliding window alone is an array."""

    def build(window: Any) -> Graph:
        b = GraphBuilder("windowed", kind="bf16")
        q, k, v = (b.input(name, (2, 512, 256), "bf16") for name in "qkv")
        attention(b, q, k, v, heads=4, kv_heads=4, causal=True, window=window)
        return b.graph()

    array = pk.estimate(build(np.array([16, 100, 512, 900])), "h100-sxm")
    for i, window in enumerate((16, 100, 512, 900)):
        one = pk.estimate(build(window), "h100-sxm")
        assert array.cost.flops[i] == one.cost.flops
        assert array.time[i] == one.time


def test_a_device_without_an_allocator_model() -> None:
    def build(**sizes: Any) -> Graph:
        return pk.prefill("llama-3.2-1b", overrides=SMALL, **sizes)

    compare(build, {"batch": np.array([1, 2]), "seq": np.array([[128], [256]])}, "tpu-v4")


def test_allocator_settings_apply_to_every_configuration() -> None:
    options = AllocatorOptions.parse("expandable_segments:True")
    compare(training, {"batch": np.array([1, 2, 5])} | {"seq": 256}, "rtx-4090", allocator=options)


def test_a_sweep_larger_than_a_part_is_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 7 of 30 configurations; memory is then not replayed, and says so."""
    from peakline import estimator

    whole = pk.estimate(training(batch=np.arange(1, 7)[:, None], seq=64 * np.arange(1, 6)), "h100-sxm")
    for module in (chunks, estimator):
        monkeypatch.setattr(module, "CHUNK", 7)
    parts = pk.estimate(training(batch=np.arange(1, 7)[:, None], seq=64 * np.arange(1, 6)), "h100-sxm")
    assert parts.memory.allocated is None
    together, alone = figures(parts), figures(whole)
    for name in together:
        if name not in ("allocated", "reserved", "device", "retries", "peak", "fits"):
            assert np.array_equal(np.broadcast_to(together[name], (6, 5)), np.broadcast_to(alone[name], (6, 5))), name
    assert any("not replayed" in note for note in parts.notes)
