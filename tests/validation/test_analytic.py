"""Closed forms from the literature beside what the program counts."""

from __future__ import annotations

from peakline.validation.analytic import activations, kv_cache


def test_a_gpt_layer_keeps_what_korthikanti_counts_within_one_percent() -> None:
    table = activations()
    assert set(table["recompute"]) == {"none", "selective"}
    assert table["error"].abs().max() < 0.01


def test_weights_and_kv_cache_are_the_published_bytes() -> None:
    table = kv_cache()
    assert len(table) >= 5
    assert (table["KV bytes/token"] / table["published"] - 1).abs().max() < 0.02
    assert (table["weights (bf16)"] >= table["2·parameters"]).all()
