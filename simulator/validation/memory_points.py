"""Published peak-memory measurements against predictions, row by row.

The tables (`memory_points*.csv`) hold what others measured: single operators (Liger-Kernel, Cut Cross-Entropy),
fine-tuning (lit-gpt, transformers' Trainer, torchao), CNN training (GPUMemNet, xMem), Megatron-LM's CI. A row is
predicted if it runs on one GPU and its configuration is stated; every other row is listed with what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from peakline.estimator import estimate
from peakline.hardware import Device, device
from peakline.models.catalogue import model_names
from peakline.models.graph import Graph
from peakline.models.workloads import inference, training_step
from peakline.validation.litgpt import litgpt_step, model_named
from peakline.validation.megatron import megatron_step, sharded_away
from peakline.validation.releases import softmax_keeps_input
from peakline.validation.single_operators import cut_cross_entropy, liger

__all__ = ["TABLES", "NotPredicted", "memory_points", "tables"]

TABLES = "memory_points*.csv"

Row = Mapping[str, str]


class NotPredicted(Exception):
    """Why a row has no prediction."""


@dataclass(frozen=True)
class Case:
    """A row's run: the program, the device, which figure was measured, and what is subtracted from it (bytes)."""

    graph: Graph
    device: Device
    figure: str
    minus: int = 0


def memory_points(source: Path) -> pd.DataFrame:
    """One row per measurement: id, what, gpu, figure, measured and predicted bytes, signed error, or why not.

    Args:
        source: a table, or a folder of tables named `memory_points*.csv`; an id that appears twice counts once.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a table lacks a column.
    """
    rows: dict[str, Row] = {}
    for path in tables(source):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        missing = sorted(_COLUMNS - set(table.columns))
        if missing:
            raise ValueError(f"{path.name}: column {missing[0]!r} is missing; accepted: {', '.join(sorted(_COLUMNS))}")
        for row in table.to_dict("records"):
            rows.setdefault(str(row["id"]), {str(k): str(v) for k, v in row.items()})
    return pd.DataFrame([_compare(row) for row in rows.values()], columns=list(_RESULT))


def tables(source: Path) -> list[Path]:
    """The tables of a folder, or the one named.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(source.glob(TABLES)) if source.is_dir() else [source] if source.is_file() else []
    if not found:
        raise FileNotFoundError(f"{source}: no table {TABLES} there")
    return found


_COLUMNS = {
    "id", "model", "task", "dtype", "micro_batch_per_gpu", "seq_or_image", "optimizer", "activation_checkpointing",
    "sharding_or_parallelism", "offload", "attention_and_other_config", "gpu", "n_gpus", "metric",
    "measured_value_as_published", "unit", "source",
}  # fmt: skip
_RESULT = ("id", "what", "gpu", "measured", "figure", "predicted", "error", "reason")


def _compare(row: Row) -> dict[str, Any]:
    said: dict[str, Any] = dict.fromkeys(_RESULT)
    said |= {"id": row["id"], "what": f"{row['model']}, {row['task']}", "gpu": row["gpu"]}
    try:
        said["measured"] = _bytes(row)
        case = _case(row)
        found = estimate(case.graph, case.device).memory
        predicted = int(getattr(found, case.figure)) - case.minus
        said |= {"figure": case.figure, "predicted": predicted, "error": predicted / said["measured"] - 1}
    except NotPredicted as reason:
        said["reason"] = str(reason)
    except ValueError as refusal:  # a configuration that the models refuse
        said["reason"] = f"refused: {refusal}"
    return said


def _bytes(row: Row) -> float:
    """The measured bytes, in the unit the row states; `GB` without a remark is 10⁹."""
    units = {"B": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "MB": 1e6, "GB": 1e9, "GB(1e9)": 1e9}
    try:
        value = float(row["measured_value_as_published"])
    except ValueError:
        raise NotPredicted(f"measured value {row['measured_value_as_published']!r} is not a number") from None
    if row["unit"] not in units:
        raise NotPredicted(f"unit {row['unit']!r} is unknown")
    if not 0 < value < float("inf"):
        raise NotPredicted(f"measured value {value} is not a size")
    return value * units[row["unit"]]


def _case(row: Row) -> Case:
    family = row["id"].split("-")[0]
    maker = _MAKERS.get(family)
    if maker is None:
        raise NotPredicted(_UNSUPPORTED.get(family, "no rule for this source"))
    if row["sharding_or_parallelism"] not in ("none", "", "TP1 PP1 CP1 EP1", "TP1 PP1 CP1 EP1 dist-opt"):
        raise NotPredicted(f"needs parallelism: {row['sharding_or_parallelism']}")
    if row["offload"] not in ("none", ""):
        raise NotPredicted(f"needs offload: {row['offload']}")
    return maker(row)


_UNSUPPORTED = {
    "TTU": "recipe flags are not in the table",
    "PFT": "batch, sequence length and format are not in the table",
    "TIM": "optimizer and versions are not stated",
    "TTN": "needs parallelism (FSDP2)",
    "FQL": "needs parallelism (two GPUs)",
    "MNG": "torch.compile with FlexAttention and a script that changes per record",
}


def _gpu(name: str) -> Device:
    for pattern, catalogued in _GPUS:
        if re.search(pattern, name):
            return device(catalogued)
    raise NotPredicted(f"GPU {name!r} is not in the catalogue")


_GPUS = (
    (r"A100.*40", "a100-40gb"), (r"A100", "a100-80gb"), (r"H100", "h100-sxm"), (r"H200", "h200"),
    (r"V100.*16", "v100-16gb"), (r"V100", "v100-32gb"), (r"3060", "rtx-3060-12gb"), (r"3090", "rtx-3090"),
    (r"4070 Ti SUPER", "rtx-4080"), (r"4090", "rtx-4090"), (r"A6000", "rtx-a6000"),
)  # fmt: skip


# ---- sources ---------------------------------------------------------------------------------------------------------
def _liger(row: Row) -> Case:
    kind = {"float32": "fp32", "bfloat16": "bf16"}.get(row["dtype"])
    graph = liger(row["model"], row["seq_or_image"], kind) if kind else None
    if graph is None:
        raise NotPredicted(f"module {row['model']!r} in {row['dtype']!r} is not modelled")
    return Case(graph, _gpu(row["gpu"]), "allocated")


def _cce(row: Row) -> Case:
    """Memory above the inputs (forward, or both passes), or above what the forward pass left (backward alone)."""
    implementation = row["attention_and_other_config"].removeprefix("impl=")
    rows, hidden, vocabulary = 8192, 2304, 256000
    graph = cut_cross_entropy(implementation, rows, hidden, vocabulary)
    if graph is None:
        raise NotPredicted(f"implementation {implementation!r} (torch.compile or a variant) is not modelled")
    if row["task"] not in ("loss-fw", "loss-bw", "loss-fw-bw"):
        raise NotPredicted(f"task {row['task']!r} is not modelled")
    inputs = int(graph.total_bytes("input", "parameter"))
    if row["task"] == "loss-bw":
        inputs += _left_by_forward(graph)
    elif row["task"] == "loss-fw":
        blocks = tuple(b for b in graph.blocks if all(o.phase == "forward" for o in b.operators))
        graph = replace(graph, blocks=blocks)
    return Case(graph, _gpu(row["gpu"]), "live", inputs)


def _left_by_forward(graph: Graph) -> int:
    """Bytes the forward pass leaves for the backward pass."""
    from peakline.memory.lifetimes import unroll

    program = unroll(graph)
    last = max(i for i, step in enumerate(program.steps) if step.operator.phase == "forward")
    alive = [
        key for key in range(len(program.storages)) if 0 <= program.births[key] <= last and program.deaths[key] > last
    ]
    return sum(int(program.sizes[key]) for key in alive)


def _litgpt(row: Row) -> Case:
    """Lit-GPT's fine-tuning scripts; their first iteration takes the longest sample and sets the peak."""
    method = {"fine-tune LoRA": "lora", "fine-tune Adapter": "adapter", "fine-tune Adapter-v2": "adapter-v2"}.get(
        row["task"]
    )
    if method is None:
        raise NotPredicted(f"task {row['task']!r} is not modelled")
    config = model_named(row["model"])
    longest = re.search(r"longest sample (\d+)", row["seq_or_image"])
    if config is None or longest is None:
        raise NotPredicted(f"model {row['model']!r} is not modelled or its sequence length is not stated")
    weight = {"bf16-true": None, "bf16-true + bnb.nf4": "nf4", "bf16-true + bnb.nf4-dq": "nf4-dq"}.get(row["dtype"], "")
    if weight == "":
        raise NotPredicted(f"format {row['dtype']!r} is not modelled")
    graph = litgpt_step(config, method, _count(row, "micro_batch_per_gpu"), int(longest.group(1)), weight)
    return Case(graph, _gpu(row["gpu"]), "allocated")


def _count(row: Row, column: str) -> int:
    """A whole number of a column."""
    if not re.fullmatch(r"\s*\d+\s*", row[column]):
        raise NotPredicted(f"{column} {row[column]!r} is not a whole number")
    return int(row[column])


def _cnn(row: Row) -> Case:
    """GPUMemNet's training scripts (`Test_Pipeline/cnn_models/*.py`): torchvision's or timm's model, Adam, float32."""
    name = _catalogued(re.sub(r"\s*\(.*\)", "", row["model"]))
    graph = training_step(
        name,
        batch=_count(row, "micro_batch_per_gpu"),
        image=_count(row, "seq_or_image"),
        dtype="fp32",
        optimizer=row["optimizer"].lower(),
    )
    return Case(graph, _gpu(row["gpu"]), "device")


def _catalogued(model: str) -> str:
    """The catalogue's name of a model as a table writes it: `ResNet50`, `torchvision ConvNeXt-Base`, `VGG16`."""
    wanted = re.sub(r"[^a-z0-9]", "", model.lower().removeprefix("torchvision "))
    for name in model_names():
        if re.sub(r"[^a-z0-9]", "", name) == wanted:
            return name
    raise NotPredicted(f"model {model!r} is not in the catalogue")


def _trainer(row: Row) -> Case:
    """transformers' Trainer of January 2022 on bert-large: float32, eager attention, dropout on, CUDA 11.2.

    PyTorch 1.10, the newest then, zeroes gradients in place and keeps softmax's input; CUDA before 11.7 loads every
    kernel when the context starts.
    """
    gpu = _eagerly_loaded(_gpu(row["gpu"]))
    mixed = row["dtype"].lower().startswith("fp16")  # `--fp16`: autocast over float32 parameters
    if not row["model"].startswith("bert-large-uncased") or not (mixed or row["dtype"] == "fp32"):
        raise NotPredicted(f"model {row['model']!r} in {row['dtype']!r} is not modelled")
    if row["task"] == "static":
        if "context" in row["attention_and_other_config"]:
            raise NotPredicted("the context alone: an input of the model, not a prediction")
        graph = inference("bert-large-uncased", batch=1, seq=1, dtype="fp32", attention="eager")
        return Case(graph, gpu, "device")
    optimizer = {"AdamW (HF Trainer default)": "adamw-loop", "Adafactor": "adafactor", "bnb Adam8bit": "adam8bit"}
    if row["optimizer"] not in optimizer:
        raise NotPredicted(f"optimizer {row['optimizer']!r} is not modelled")
    accumulation = re.search(r"grad_accum=(\d+)", row["attention_and_other_config"])
    graph = training_step(
        "bert-large-uncased",
        batch=_count(row, "micro_batch_per_gpu"),
        seq=_count(row, "seq_or_image"),
        dtype="fp32",
        autocast="fp16" if mixed else None,
        attention="eager",
        optimizer=optimizer[row["optimizer"]],
        accumulation=int(accumulation.group(1)) if accumulation else 1,
        set_to_none=False,
        recompute={"none": "none", "full": "full", "": "none"}.get(row["activation_checkpointing"], "full"),
        overrides={"head": "classification"},
    )
    return Case(softmax_keeps_input(graph), gpu, "device")


def _eagerly_loaded(gpu: Device) -> Device:
    """The device under a runtime that loads all kernels at start, where the catalogue knows how much that takes."""
    eager = gpu.software.libraries_eager
    return device(gpu, **{"software.libraries": f"{eager} B"}) if eager else gpu


def _xmem(row: Row) -> Case:
    """xMem's runs: torchvision models on CIFAR-10 (ten classes), float32, zeroed gradients freed."""
    image = re.match(r"(\d+)x", row["seq_or_image"])
    if image is None:
        raise NotPredicted("the sequence length is not stated")
    graph = training_step(
        _catalogued(row["model"]),
        batch=_count(row, "micro_batch_per_gpu"),
        image=int(image.group(1)),
        dtype="fp32",
        optimizer=row["optimizer"].lower(),
        overrides={"classes": 10},
    )
    return Case(graph, _gpu(row["gpu"]), "device")


def _torchao(row: Row) -> Case:
    """torchao's low-bit optimizer benchmark on timm's ViT-H: float32 parameters under bf16 autocast."""
    optimizer = {
        "PyTorch Adam": "adam", "PyTorch AdamW": "adamw", "PyTorch AdamW (fused)": "adamw-fused",
        "PyTorch (fused)": "adamw-fused", "bnb 8-bit Adam": "adam8bit", "bnb Adam8bit": "adam8bit",
        "ao Adam8bit": "adam8bit", "ao AdamFp8": "adamfp8", "lpmm Adam4bit": "adam4bit", "ao Adam4bit": "adam4bit",
    }.get(row["optimizer"])  # fmt: skip
    if "ViT-H" not in row["model"] or row["dtype"] != "fp32 params, bf16 AMP":
        raise NotPredicted("the image size or the optimizer's implementation is not stated")
    if optimizer is None:
        raise NotPredicted(f"optimizer {row['optimizer']!r} is not modelled")
    graph = training_step(
        "vit-h-14",
        batch=_count(row, "micro_batch_per_gpu"),
        dtype="fp32",
        autocast="bf16",
        optimizer=optimizer,
        overrides={"classes": 45, "fused_qkv": True},
    )
    return Case(graph, _gpu(row["gpu"]), "allocated")


def _megatron(row: Row) -> Case:
    """Megatron-LM's GPT tests on one rank without model parallelism; the distributed optimizer shards its states."""
    shape = re.match(r"L(\d+) h(\d+) a(\d+)$", row["model"])
    recompute = row["activation_checkpointing"]
    if shape is None:
        raise NotPredicted("model shape is not plain GPT")
    if recompute not in ("none", "full", "selective"):
        raise NotPredicted(f"recomputation {recompute!r} is not modelled")
    if "/gpt/gpt3_mcore" not in row["source"]:
        raise NotPredicted("only the GPT-3 functional tests are modelled")
    layers, hidden, heads = (int(n) for n in shape.groups())
    batch, seq = _count(row, "micro_batch_per_gpu"), _count(row, "seq_or_image")
    graph = megatron_step(layers, hidden, heads, batch, seq, recompute)  # type: ignore[arg-type]
    away = sharded_away(graph, _count(row, "n_gpus")) if "dist-opt" in row["sharding_or_parallelism"] else 0
    return Case(graph, _gpu(row["gpu"]), "allocated", away)


_MAKERS: dict[str, Callable[[Row], Case]] = {
    "LIG": _liger, "CCE": _cce, "LIT": _litgpt, "GMN": _cnn, "HFB": _trainer, "XMM": _xmem, "TAO": _torchao,
    "MEG": _megatron,
}  # fmt: skip
