"""A `config.json` that no built-in family reads, run as transformers' own implementation of it.

The class is looked up in the installed transformers by the names the file gives; no code that a file or a hub points
at is ever fetched or run (`auto_map` is ignored).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from peakline.models.huggingface import read_config
from peakline.models.workloads import default_length

__all__ = ["SIZES", "configured"]

SIZES = ("batch", "seq", "image", "attention", "recompute", "dtype", "overrides")
"""What may be said of a configuration's run."""

_BOTH = "AutoModelForSeq2SeqLM"
_USUAL = (_BOTH, "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModelForImageClassification", "AutoModel")
_ONE_LABEL = ("SequenceClassification", "ImageClassification")
_A_LABEL_A_TOKEN = ("ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration")


def configured(
    source: str | PathLike[str] | Mapping[str, Any], mode: str, said: Mapping[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any]]:
    """A function that makes the model a configuration describes, and inputs for it.

    Args:
        source: path of a `config.json` or of its folder, or the content.
        mode: `training` adds labels, `inference` does not.
        said: `batch`, `seq` (tokens; the model's limit, at most 2048), `image` (pixels), `attention` (`auto`, or
            `eager`: written out), `recompute` (`none` or `full`), `dtype` (a torch dtype the model is made in),
            `overrides` (fields of the configuration).

    Raises:
        ImportError: transformers is not installed.
        ValueError: not a configuration, a model transformers does not know or that reads neither tokens nor images, a
            size that is not a positive whole number, or an option that is none of the above.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("a config.json that peakline has no family for needs: pip install transformers") from error
    where = "config" if isinstance(source, Mapping) else str(source)
    values = dict(source) if isinstance(source, Mapping) else read_config(source)
    values |= dict(said.get("overrides") or {})
    _check(said)
    config = _config(transformers, values, where)
    kind = _model_class(transformers, config, values, where)
    inputs = _inputs(kind, config, mode, said, where)

    def make() -> Any:
        return _made(kind, config, said)

    make.__name__ = kind.__name__
    return make, inputs


def _check(said: Mapping[str, Any]) -> None:
    for name, value in said.items():
        if name not in SIZES:
            raise ValueError(f"{name}: not an option of a captured configuration; accepted: {', '.join(SIZES)}")
        if name in SIZES[:3] and value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: must be a whole number of at least 1, not {value!r}")
    for name, accepted in (("attention", ("auto", "eager")), ("recompute", ("none", "full"))):
        if said.get(name, accepted[0]) not in accepted:
            raise ValueError(f"{name}: {said[name]!r} is unknown here; accepted: {', '.join(accepted)}")


def _config(transformers: Any, values: dict[str, Any], where: str) -> Any:
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise ValueError(
            f"{where}: field 'model_type' is {model_type!r}, which neither peakline nor transformers "
            f"{transformers.__version__} knows; accepted: one they know, or your own function as MODULE:FUNCTION"
        )
    try:
        return transformers.CONFIG_MAPPING[model_type].from_dict({k: v for k, v in values.items() if k != "auto_map"})
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{where}: transformers cannot read this configuration: {said}") from None


def _model_class(transformers: Any, config: Any, values: Mapping[str, Any], where: str) -> Any:
    """The class that `architectures` names if transformers has it for such a configuration, else the usual one."""
    for name in values.get("architectures") or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and getattr(found, "config_class", None) is type(config):
            return found
    whole = [name for name in _USUAL if name != _BOTH or getattr(config, "is_encoder_decoder", False)]
    for auto in whole:
        mapping = getattr(transformers, auto)._model_mapping
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise ValueError(f"{where}: transformers has no model for model_type {config.model_type!r}")


def _inputs(kind: Any, config: Any, mode: str, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    import torch

    batch, main = int(said.get("batch") or 1), getattr(kind, "main_input_name", "input_ids")
    if main == "input_ids":
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        shape: tuple[int, ...] = (batch, said.get("seq") or default_length(longest))
        inputs = {"input_ids": torch.zeros(shape, dtype=torch.long)}
    elif main == "pixel_values":
        size = said.get("image") or getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (batch, getattr(config, "num_channels", 3), height, width)
        inputs = {"pixel_values": torch.zeros(shape, dtype=said.get("dtype") or torch.float32)}
    else:
        raise ValueError(
            f"{where}: {kind.__name__} reads {main}; accepted: models of tokens or images, "
            "or your own function as MODULE:FUNCTION"
        )
    labelled = mode == "training" or getattr(config, "is_encoder_decoder", False)  # a decoder reads its labels, shifted
    if labelled and any(name in kind.__name__ for name in _ONE_LABEL):
        inputs["labels"] = torch.zeros(batch, dtype=torch.long)
    elif labelled and any(name in kind.__name__ for name in _A_LABEL_A_TOKEN):
        inputs["labels"] = torch.zeros(shape, dtype=torch.long)
    return inputs


def _made(kind: Any, config: Any, said: Mapping[str, Any]) -> Any:
    """The model, in `dtype`, without a cache of keys and values, recomputing its layers if asked."""
    import torch

    usual = torch.get_default_dtype()
    if said.get("dtype") is not None:
        torch.set_default_dtype(said["dtype"])
    try:
        written = {"attn_implementation": "eager"} if said.get("attention") == "eager" else {}
        model = kind._from_config(config, **written)
    finally:
        torch.set_default_dtype(usual)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    if said.get("recompute") == "full":
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    return model
