"""One thing done differently: what `pk.explain` tries on a captured program; the user's own stays as it was."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from modules import Blocks  # noqa: E402
from torch import nn  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.models.capture.changes import CHANGES, repeated_layers  # noqa: E402

X = torch.zeros(256, 64)


def live(graph: Any) -> int:
    """Bytes of the live peak."""
    return int(pk.estimate(graph, "a100-80gb").memory.live)


def test_recomputation_is_what_the_user_would_write_by_hand() -> None:
    asked = pk.capture(Blocks, X, optimizer="adamw", change="checkpoint")
    written = pk.capture(lambda: Blocks(reentrant=False), X, optimizer="adamw")
    assert live(asked) == pytest.approx(live(written), rel=0.01)


def test_half_the_batch_twice_is_an_accumulation_of_two() -> None:
    whole, halves, half = (
        pk.capture(Blocks, x, optimizer="adamw", change=change) for x, change in ((X, ""), (X, "halved"), (X[:128], ""))
    )
    assert live(half) <= live(halves) < live(whole)


def test_a_fused_optimizer_needs_no_list_of_temporaries() -> None:
    x = X[:1]
    assert live(pk.capture(Blocks, x, optimizer="adamw", change="fused")) == live(
        pk.capture(Blocks, x, optimizer=lambda p: torch.optim.AdamW(p, fused=True))
    )


def test_what_is_not_there_cannot_be_changed() -> None:
    for change in ("attention", "cache", "chunked"):
        with pytest.raises(ValueError, match="not applicable"):
            pk.capture(Blocks, X, optimizer="adamw", change=change)
    with pytest.raises(ValueError, match=", ".join(CHANGES)):
        pk.capture(Blocks, X, change="faster")


@pytest.mark.parametrize("change", ["checkpoint", "fused", "loop", "halved"])
def test_the_users_module_and_optimizer_are_as_before(change: str) -> None:
    module = Blocks()
    optimizer = torch.optim.AdamW(module.parameters())
    before = [dict(vars(m)) for m in module.modules()], dict(optimizer.param_groups[0])
    try:
        pk.capture(module, X, optimizer=optimizer, change=change)
    finally:
        assert [set(vars(m)) for m in module.modules()] == [set(names) for names in before[0]]
        assert dict(optimizer.param_groups[0]) == before[1]


def test_the_outermost_repeated_layers_are_found() -> None:
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)])
    assert list(repeated_layers(nn.ModuleDict({"body": layers, "head": nn.Linear(4, 4)}))) == list(layers)
    assert list(repeated_layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))) == []


def test_an_explanation_of_a_captured_module_names_lines_and_saves_what_it_says() -> None:
    graph = pk.capture(Blocks, X.repeat(64, 1), optimizer="adamw")
    found = pk.explain(graph, "a100-80gb")
    assert any("modules.py:" in t.line for t in found.tensors)
    best = next(e for e in found.effects if e.change.options == {"change": "checkpoint"})
    again = pk.capture(Blocks, X.repeat(64, 1), optimizer="adamw", change="checkpoint")
    assert best.live == live(graph) - live(again)


def test_a_language_models_loss_in_chunks_never_holds_all_logits() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=2, vocab_size=8192,
        use_cache=False,
    )  # fmt: skip
    ids = torch.zeros(2, 256, dtype=torch.long)
    whole, chunks = (
        pk.capture(
            lambda: transformers.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}, optimizer="sgd",
            change=change,
        )
        for change in ("", "chunked")
    )  # fmt: skip
    logits = 2 * 256 * 8192 * 4
    assert live(whole) - live(chunks) > 1.5 * logits
