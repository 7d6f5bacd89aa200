"""Reading a Hugging Face config.json, good and bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peakline.models.builder import GraphBuilder
from peakline.models.catalogue import entry, resolve
from peakline.models.huggingface import LIMIT, from_config
from peakline.models.workload import Workload

LLAMA_3_1_8B: dict[str, Any] = {  # as published, fields without a size left in
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8, "pretraining_tp": 1,
    "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 8.0, "rope_type": "llama3"}, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip


def without(*fields: str) -> dict[str, Any]:
    return {k: v for k, v in LLAMA_3_1_8B.items() if k not in fields}


def test_a_file_its_folder_and_its_content_give_the_catalogued_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA_3_1_8B))
    published = entry("llama-3.1-8b").config
    for source in (LLAMA_3_1_8B, path, str(path), tmp_path):
        assert from_config(source)[1] == published


def test_resolve_takes_names_paths_mappings_and_pairs(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_1_8B))
    expected = entry("llama-3.1-8b")
    for model in (
        "llama-3.1-8b",
        "meta-llama/Llama-3.1-8B",
        str(tmp_path),
        LLAMA_3_1_8B,
        (expected.family, expected.config),
    ):
        assert resolve(model)[1:] == (expected.family, expected.config)


def test_the_architecture_decides_where_model_type_is_absent() -> None:
    assert from_config(without("model_type"))[1] == entry("llama-3.1-8b").config


def test_absent_key_value_heads_mean_one_per_head() -> None:
    assert from_config(without("num_key_value_heads"))[1].kv_heads == 32


def test_fields_that_nobody_knows_are_ignored() -> None:
    assert from_config(LLAMA_3_1_8B | {"auto_map": {"AutoModel": "evil.Module"}})[1] == entry("llama-3.1-8b").config


def test_the_head_of_an_encoder_is_the_one_its_architecture_names() -> None:
    bert = {
        "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "intermediate_size": 3072,
    }  # fmt: skip
    counts = {}
    for architecture in ("BertForMaskedLM", "BertForSequenceClassification", "BertModel"):
        family, config = from_config(bert | {"architectures": [architecture]})
        b = GraphBuilder("bert")
        family.build(b, config, Workload("inference", seq=8))
        counts[architecture] = b.graph().parameters
    assert counts == {  # transformers' own counts of bert-base-uncased
        "BertForMaskedLM": 109514298, "BertForSequenceClassification": 109483778, "BertModel": 109482240,
    }  # fmt: skip


BAD = {
    "unknown architecture": (
        LLAMA_3_1_8B | {"model_type": "nonsuch", "architectures": ["NonsuchLM"]},
        "LlamaForCausalLM",
    ),
    "no architecture": (without("model_type", "architectures"), "architectures"),
    "architectures not a list": (LLAMA_3_1_8B | {"architectures": 3}, "architectures"),
    "a field missing": (without("hidden_size"), "'hidden_size' is missing"),
    "a wrong type": (LLAMA_3_1_8B | {"num_hidden_layers": "many"}, "'num_hidden_layers' is 'many'"),
    "a negative size": (LLAMA_3_1_8B | {"vocab_size": -1}, "'vocab_size' is -1"),
    "heads that do not divide": (LLAMA_3_1_8B | {"num_attention_heads": 24, "num_key_value_heads": 24}, "4096"),
    "key-value heads that do not divide": (LLAMA_3_1_8B | {"num_key_value_heads": 5}, "multiple of 5"),
    "a flag that is none": (LLAMA_3_1_8B | {"tie_word_embeddings": "yes"}, "true or false"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_one_line_that_names_file_and_fault(case: str, tmp_path: Path) -> None:
    config, named = BAD[case]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r".") as caught:
        from_config(path)
    message = str(caught.value)
    assert named in message
    assert str(path) in message
    assert "\n" not in message


def test_files_that_hold_no_configuration_are_refused_in_one_line(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "binary": bytes(range(256)),
        "list": b"[1, 2]",
        "text": b"hidden_size: 4",
        "deep": b"[" * 100000,
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=name) as caught:
            from_config(path)
        assert "\n" not in str(caught.value)


def test_a_huge_file_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as f:
        f.truncate(LIMIT + 1)
    for path, named in ((huge, "at most"), (tmp_path / "none.json", "no such file"), (tmp_path, "without config.json")):
        with pytest.raises(ValueError, match=named):
            from_config(path)
