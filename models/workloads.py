"""From a model's name to the graph of one run: a training step, a prefill, a decode step, an inference pass."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, TypeAlias

import numpy as np

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, as_dim
from peakline.models.dtypes import DType
from peakline.models.dtypes import dtype as dtype_of
from peakline.models.graph import Graph, Tensor
from peakline.models.origin import Origin, remember
from peakline.models.weights import with_weights
from peakline.models.workload import PHASE_NAMES, Family, Lora, Workload

__all__ = [
    "ModelSource",
    "decode",
    "default_length",
    "forward",
    "inference",
    "prefill",
    "refuse_option",
    "training_step",
]

ModelSource: TypeAlias = str | PathLike[str] | Mapping[str, Any]
"""A catalogue name, a path to a `config.json` or its folder, or the configuration itself."""

_LARGEST = 1 << 40
_DEFAULT_SEQ = 2048
_CHOICES = {
    "attention": ("auto", "flash", "efficient", "math", "eager"),
    "kernels": ("eager", "fused"),
    "loss": ("unfused", "native", "fused", "chunked"),
}


def training_step(
    model: ModelSource,
    *,
    optimizer: str | None = "adamw",
    recompute: str = "none",
    accumulation: int = 1,
    master_weights: bool = False,
    set_to_none: bool = True,
    **options: Any,
) -> Graph:
    """One training step: forward, loss, backward, optimizer.

    Args:
        model: catalogue name, `config.json` path or folder, or configuration mapping.
        optimizer: `sgd`, `momentum`, `adam`, `adamw`, `rmsprop`, `adagrad`, `adam8bit`, `adafactor`, `muon`, each with
            `-fused` or `-loop` for the implementation (foreach otherwise), or None for forward and backward only.
        recompute: `none`, `full` or `selective`.
        accumulation: microbatches per step, each of `batch`.
        master_weights: float32 master copies, gradient buffers and states beside low-precision parameters.
        set_to_none: whether `zero_grad` frees the gradients (PyTorch's default).
        **options: see `forward`.

    Raises:
        ValueError: a model, size, format or choice that cannot be; the message names the field and what is accepted.
    """
    from peakline.models.transforms.optimizer import parse_optimizer
    from peakline.models.transforms.training import train

    refuse_option("recompute", recompute)
    accumulation = _whole("accumulation", accumulation)
    given = {"optimizer": optimizer, "recompute": recompute, "accumulation": accumulation,
             "master_weights": master_weights, "set_to_none": set_to_none, **options}  # fmt: skip
    variant = None
    if optimizer is not None and optimizer.lower() != "none":
        optimizer, variant = parse_optimizer(optimizer)
    else:
        optimizer = None
    graph, loss = forward(model, "training", **options)
    said: dict[str, Any] = {"optimizer": "none" if optimizer is None else optimizer, "recompute": recompute}
    if variant is not None:
        said["optimizer_implementation"] = variant
    if accumulation > 1:
        said["accumulation"] = accumulation
    if master_weights:
        said["master_weights"] = True
    step = train(
        graph,
        loss.name,
        optimizer=optimizer,
        implementation=variant,
        recomputation=recompute,  # type: ignore[arg-type]
        accumulation=accumulation,
        master_weights=master_weights,
        set_to_none=set_to_none,
        workload=said,
    )
    return remember(step, Origin("built", training_step, {"model": model, **given}))


def prefill(model: ModelSource, **options: Any) -> Graph:
    """Run `seq` prompt tokens per sequence through the model and fill the KV cache; options as for `forward`."""
    return remember(forward(model, "prefill", **options)[0], Origin("built", prefill, {"model": model, **options}))


def decode(model: ModelSource, **options: Any) -> Graph:
    """Generate one token per sequence with `context` tokens in the KV cache (this one included); see `forward`."""
    return remember(forward(model, "decode", **options)[0], Origin("built", decode, {"model": model, **options}))


def inference(model: ModelSource, **options: Any) -> Graph:
    """One forward pass without gradients or cache; options as for `forward`."""
    return remember(forward(model, "inference", **options)[0], Origin("built", inference, {"model": model, **options}))


def forward(
    model: ModelSource,
    phase: str,
    *,
    batch: Any = 1,
    seq: Any = None,
    context: Any = None,
    image: Any = None,
    dtype: str | DType = "bf16",
    autocast: str | DType | None = None,
    kv_dtype: str | DType | None = None,
    weight_dtype: str | DType | None = None,
    attention: str = "auto",
    kernels: str = "eager",
    channels_last: bool = False,
    loss: str = "unfused",
    loss_chunks: int = 8,
    dropout: bool = True,
    lora: Lora | int | None = None,
    overrides: Mapping[str, Any] | None = None,
    **unknown: Any,
) -> tuple[Graph, Tensor]:
    """The forward graph of one run, and its loss (training) or result.

    Args:
        model: catalogue name, `config.json` path or folder, or configuration mapping.
        phase: `training`, `prefill`, `decode` or `inference`.
        batch, seq, context, image: sizes, whole numbers or arrays of them (a sweep; arrays broadcast).
        dtype: format of parameters and activations.
        autocast: format of matrix products under mixed precision, over parameters in `dtype`.
        kv_dtype, weight_dtype: formats of the KV cache and of quantised linear weights.
        attention: `auto`, `flash`, `efficient`, `math` or `eager`.
        kernels: `eager` (kernel by kernel, as transformers runs) or `fused`.
        channels_last: images and convolution weights lie in memory as [N, H, W, C] (`torch.channels_last`).
        loss: `unfused` (float32 logits), `native` (in their own format), `fused` or `chunked` (in `loss_chunks`
            slices).
        dropout: whether the configuration's dropout applies in training.
        lora: rank of low-rank adapters, or a `Lora`; the base is then frozen.
        overrides: configuration fields to replace, as in `{"num_hidden_layers": 2}`.

    Raises:
        ValueError: naming the option, its value and what is accepted.
    """
    from peakline.models.catalogue import resolve

    if unknown:
        _unknown_option(next(iter(unknown)))
    if phase not in PHASE_NAMES:
        raise ValueError(f"phase: {phase!r} is unknown; accepted: {', '.join(PHASE_NAMES)}")
    for option, value in (("attention", attention), ("kernels", kernels), ("loss", loss)):
        refuse_option(option, value)
    name, family, config = resolve(model)
    if overrides:
        config = _override(config, overrides)
    if phase not in family.phases:
        raise ValueError(f"{name} cannot run phase {phase!r}; it can run: {', '.join(family.phases)}")
    work = Workload(
        phase=phase,
        batch=_whole("batch", batch),
        image=None if image is None else _whole("image", image),
        kind=_format("dtype", dtype),
        autocast=None if autocast is None else _format("autocast", autocast),
        kv_kind=None if kv_dtype is None else _format("kv_dtype", kv_dtype),
        weight_kind=None if weight_dtype is None else _format("weight_dtype", weight_dtype),
        attention=attention,  # type: ignore[arg-type]
        eager=kernels == "eager",
        loss=loss,  # type: ignore[arg-type]
        loss_chunks=int(_whole("loss_chunks", loss_chunks)),
        dropout=dropout,
        lora=lora if lora is None or isinstance(lora, Lora) else Lora(_whole("lora", lora)),
    )
    work = _lengths(work, name, family, config, seq, context)
    if phase == "training" and not work.kind.is_float:
        raise ValueError(f"dtype: {work.kind} has no gradients; train in bf16, fp16 or fp32")
    builder = GraphBuilder(
        name,
        kind=work.kind,
        training=work.training,
        autocast=work.autocast,
        eager=work.eager,
        channels_last=channels_last,
    )
    result = family.build(builder, config, work)
    said = _describe(work) | ({"channels_last": True} if channels_last else {})
    graph = builder.graph(**said)
    if family.kind == "vision" and work.weight_kind is not None:
        graph = with_weights(graph, work.weight_kind)
    return graph, result


def _lengths(work: Workload, name: str, family: Family, config: Any, seq: Any, context: Any) -> Workload:
    """Fill in the sequence lengths a language model needs; refuse those that mean nothing here."""
    if family.kind in ("vision", "diffusion"):
        for option, value in (("seq", seq), ("context", context)):
            if value is not None:
                raise ValueError(f"{option}: {name} has no token sequence; give batch and image")
        return work
    if work.image is not None:
        raise ValueError(f"image: {name} reads tokens, not images; give seq")
    limit = getattr(config, "max_positions", None)
    if work.phase == "decode":
        if seq is not None:
            raise ValueError("seq: a decode step makes one token; give context, the tokens in the cache")
        return replace(work, seq=1, context=_whole("context", default_length(limit) if context is None else context))
    if context is not None:
        raise ValueError(f"context: only a decode step has one; give seq for {work.phase}")
    return replace(work, seq=_whole("seq", default_length(limit) if seq is None else seq))


def default_length(limit: int | None) -> int:
    """Tokens where the caller names none: what the model allows, at most 2048."""
    return min(limit, _DEFAULT_SEQ) if limit else _DEFAULT_SEQ


def _describe(work: Workload) -> dict[str, Any]:
    """The workload in plain values, defaults left out."""
    said: dict[str, Any] = {"phase": work.phase, "batch": work.batch}
    if work.phase == "decode":
        said["context"] = work.context
    elif work.seq is not None:
        said["seq"] = work.seq
    if work.image is not None:
        said["image"] = work.image
    said["dtype"] = work.kind.name
    for key, value in (("autocast", work.autocast), ("kv_dtype", work.kv_kind), ("weight_dtype", work.weight_kind)):
        if value is not None:
            said[key] = value.name
    said["attention"] = work.attention
    said["kernels"] = "eager" if work.eager else "fused"
    if work.training:
        said["loss"] = work.loss
    if work.lora is not None:
        said["lora_rank"] = work.lora.rank
    return said


def _whole(option: str, value: Any) -> Any:
    """A positive size, or an array of them."""
    try:
        size: Dim = as_dim(value)
    except TypeError:
        raise ValueError(f"{option}: must be a whole number (or an array of them), not {value!r}") from None
    if not np.all(np.greater(size, 0)):
        raise ValueError(f"{option}: must be at least 1, not {value if np.ndim(value) == 0 else int(np.min(value))}")
    if not np.all(np.less_equal(size, _LARGEST)):
        raise ValueError(f"{option}: {int(np.max(value))} is beyond anything that can be run (largest: 2**40)")
    return size


def refuse_option(option: str, value: Any) -> None:
    """Refuse a value that no workload takes for an option of few values: formats, backends, losses, optimizers.

    Raises:
        ValueError: naming the option, the value and what is accepted.
    """
    if option in _CHOICES:
        if value not in _CHOICES[option]:
            raise ValueError(f"{option}: {value!r} is unknown; accepted: {', '.join(_CHOICES[option])}")
    elif option in _FORMATS and value is not None:
        _format(option, value)
    elif option == "recompute" and value is not None:
        from peakline.models.transforms.recompute import POLICIES

        if value not in POLICIES:
            raise ValueError(f"recompute: {value!r} is unknown; accepted: {', '.join(POLICIES)}")
    elif option == "optimizer" and isinstance(value, str) and value.lower() != "none":
        from peakline.models.transforms.optimizer import parse_optimizer

        parse_optimizer(value)


_FORMATS = ("dtype", "autocast", "kv_dtype", "weight_dtype")


def _format(option: str, value: str | DType) -> DType:
    try:
        return dtype_of(value)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def _override(config: Any, overrides: Mapping[str, Any]) -> Any:
    known = config.__dataclass_fields__
    for field in overrides:
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"overrides: {type(config).__name__} has no field {field!r}{hint}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    try:
        return replace(config, **values)
    except TypeError:
        said = ", ".join(f"{name} {value!r} (now {getattr(config, name)!r})" for name, value in values.items())
        raise ValueError(f"overrides: a value is of the wrong type: {said}") from None


def _unknown_option(option: str) -> None:
    import inspect

    known = [*inspect.signature(forward).parameters][2:-1] + [*inspect.signature(training_step).parameters][1:-1]
    near = difflib.get_close_matches(option, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
    raise ValueError(f"option {option!r} is unknown{hint}")
