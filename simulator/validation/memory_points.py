"""Published peak-memory measurements against predictions, row by row.

The table (`memory_points_dev.csv`) holds what others measured: single operators (Liger-Kernel, Cut Cross-Entropy),
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
from peakline.models.graph import Graph
from peakline.models.workload import Lora
from peakline.models.workloads import inference, training_step
from peakline.validation.litgpt import litgpt_step, model_named
from peakline.validation.single_operators import cut_cross_entropy, liger

__all__ = ["TABLE", "NotPredicted", "memory_points"]

TABLE = "memory_points_dev.csv"

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


def memory_points(folder: Path) -> pd.DataFrame:
    """One row per measurement: id, what, gpu, figure, measured and predicted bytes, signed error, or why not.

    Args:
        folder: where `memory_points_dev.csv` lies.

    Raises:
        FileNotFoundError: the table is absent.
    """
    rows = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False).to_dict("records")
    return pd.DataFrame([_compare({str(k): v for k, v in row.items()}) for row in rows])


def _compare(row: Row) -> dict[str, Any]:
    said: dict[str, Any] = {
        "id": row["id"],
        "what": f"{row['model']}, {row['task']}",
        "gpu": row["gpu"],
        "measured": _bytes(row),
        "figure": None,
        "predicted": None,
        "error": None,
        "reason": None,
    }
    try:
        case = _case(row)
        found = estimate(case.graph, case.device).memory
        predicted = int(getattr(found, case.figure)) - case.minus
        said |= {"figure": case.figure, "predicted": predicted, "error": predicted / said["measured"] - 1}
    except NotPredicted as reason:
        said["reason"] = str(reason)
    return said


def _bytes(row: Row) -> float:
    """The measured bytes, in the unit the row states; `GB` without a remark is 10⁹."""
    units = {"B": 1.0, "MiB": 2.0**20, "GiB": 2.0**30, "GB": 1e9, "GB(1e9)": 1e9}
    return float(row["measured_value_as_published"]) * units[row["unit"]]


def _case(row: Row) -> Case:
    family = row["id"].split("-")[0]
    maker = _MAKERS.get(family)
    if maker is None:
        raise NotPredicted(_UNSUPPORTED.get(family, "no rule for this source"))
    if row["sharding_or_parallelism"] not in ("none", "", "TP1 PP1 CP1 EP1"):
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


def _figure(row: Row) -> str:
    metric = row["metric"].lower()
    if "reserved" in metric:
        return "reserved"
    if "nvml" in metric or "nvidia-smi" in metric or "device memory" in metric:
        return "device"
    return "allocated"


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
    kind = {"float32": "fp32", "bfloat16": "bf16"}[row["dtype"]]
    graph = liger(row["model"], row["seq_or_image"], kind)
    if graph is None:
        raise NotPredicted("not a module of PyTorch or transformers")
    return Case(graph, _gpu(row["gpu"]), "allocated")


def _cce(row: Row) -> Case:
    """Memory above the inputs (forward, or both passes), or above what the forward pass left (backward alone)."""
    implementation = row["attention_and_other_config"].removeprefix("impl=")
    rows, hidden, vocabulary = 8192, 2304, 256000
    graph = cut_cross_entropy(implementation, rows, hidden, vocabulary)
    if graph is None:
        raise NotPredicted(f"implementation {implementation} (torch.compile or a variant) is not modelled")
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
    name = {
        "vgg16": "vgg-16", "resnet-50": "resnet-50", "xception (timm)": "xception", "mobilenetv2": "mobilenet-v2",
        "efficientnet-b0": "efficientnet-b0", "inceptionv3 (no aux)": "inception-v3",
    }.get(row["model"].lower())  # fmt: skip
    if name is None:
        raise NotPredicted(f"model {row['model']} is not in the catalogue")
    graph = training_step(
        name,
        batch=int(row["micro_batch_per_gpu"]),
        image=int(row["seq_or_image"]),
        dtype="fp32",
        optimizer=row["optimizer"].lower(),
    )
    return Case(graph, _gpu(row["gpu"]), "device")


def _trainer(row: Row) -> Case:
    """transformers' Trainer of January 2022 on bert-large: float32, eager attention, dropout on, CUDA 11.2.

    PyTorch before 2.0 zeroes gradients in place, and CUDA before 11.7 loads every kernel when the context starts.
    """
    gpu = _eagerly_loaded(_gpu(row["gpu"]))
    if row["task"] == "static":
        if "context" in row["attention_and_other_config"]:
            raise NotPredicted("the context alone: an input of the model, not a prediction")
        graph = inference("bert-large-uncased", batch=1, seq=1, dtype="fp32", attention="eager")
        return Case(graph, gpu, "device")
    optimizer = {"AdamW (HF Trainer default)": "adamw-loop", "Adafactor": "adafactor", "bnb Adam8bit": "adam8bit"}
    accumulation = re.search(r"grad_accum=(\d+)", row["attention_and_other_config"])
    graph = training_step(
        "bert-large-uncased",
        batch=int(row["micro_batch_per_gpu"]),
        seq=int(row["seq_or_image"]),
        dtype="fp32",
        attention="eager",
        optimizer=optimizer[row["optimizer"]],
        accumulation=int(accumulation.group(1)) if accumulation else 1,
        set_to_none=False,
        overrides={"head": "classification"},
    )
    return Case(graph, gpu, "device")


def _eagerly_loaded(gpu: Device) -> Device:
    """The device under a runtime that loads all kernels at start, where the catalogue knows how much that takes."""
    eager = gpu.software.libraries_eager
    return device(gpu, **{"software.libraries": f"{eager} B"}) if eager else gpu


def _xmem(row: Row) -> Case:
    name = {"torchvision ConvNeXt-Base": "convnext-base", "torchvision ConvNeXt-Tiny": "convnext-tiny"}.get(
        row["model"]
    )
    if name is None:
        raise NotPredicted("the sequence length is not stated")
    image = re.match(r"(\d+)x", row["seq_or_image"])
    graph = training_step(
        name,
        batch=int(row["micro_batch_per_gpu"]),
        image=int(image.group(1)) if image else None,
        dtype="fp32",
        optimizer=row["optimizer"].lower(),
        overrides={"classes": 10},
    )
    return Case(graph, _gpu(row["gpu"]), "device")


def _torchao(row: Row) -> Case:
    """torchao's low-bit optimizer benchmark: float32 parameters under bf16 autocast, or pure bf16."""
    optimizer = {"PyTorch Adam": "adam", "ao AdamFp8": "adam8bit"}.get(row["optimizer"])
    if optimizer is None or "630M" not in row["model"]:
        raise NotPredicted("optimizer or image size is not stated or not modelled")
    graph = training_step(
        "vit-h-14",
        batch=int(row["micro_batch_per_gpu"]),
        dtype="fp32",
        autocast="bf16",
        optimizer=optimizer,
        overrides={"classes": 45},
    )
    return Case(graph, _gpu(row["gpu"]), "allocated")


def _megatron(row: Row) -> Case:
    """Megatron-LM on one rank without model parallelism: bf16 with float32 main parameters and gradients."""
    shape = re.match(r"L(\d+) h(\d+) a(\d+)$", row["model"])
    if shape is None:
        raise NotPredicted("model shape is not plain GPT")
    layers, hidden, heads = (int(n) for n in shape.groups())
    graph = training_step(
        "gpt3-175b",
        batch=int(row["micro_batch_per_gpu"]),
        seq=int(row["seq_or_image"]),
        dtype="bf16",
        optimizer="adam-fused",
        master_weights=True,
        recompute={"none": "none", "full": "full", "selective": "selective"}[row["activation_checkpointing"]],
        overrides={
            "layers": layers,
            "hidden": hidden,
            "heads": heads,
            "kv_heads": heads,
            "head_dim": hidden // heads,
            "rotary_dim": hidden // heads,
            "ffn": 4 * hidden,
        },
    )
    return Case(graph, _gpu(row["gpu"]), "allocated")


_MAKERS: dict[str, Callable[[Row], Case]] = {
    "LIG": _liger, "CCE": _cce, "LIT": _litgpt, "GMN": _cnn, "HFB": _trainer, "XMM": _xmem, "TAO": _torchao,
    "MEG": _megatron,
}  # fmt: skip
