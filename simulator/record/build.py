"""From a case to a module, its inputs, its optimizer, and one step of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peakline.record.schema import MemoryCase

__all__ = ["DTYPES", "Built", "build", "loss_of_step", "run_step", "storage_bytes"]

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "sgd": (torch.optim.SGD, {"lr": 1e-3}),
    "momentum": (torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-4}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-3}),
}
_IMPLEMENTATIONS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "loop": {"foreach": False},
}
_LARGEST_TIME = 1000  # diffusion steps


@dataclass
class Built:
    """A case made real.

    Attributes:
        module: the network, in training or evaluation mode.
        inputs: keyword (transformers) or positional, by name in order (ours) arguments of a forward pass.
        target: what our own losses compare with.
        optimizer: None for inference and where the case has none.
        attention_used: the implementation transformers chose.
    """

    case: MemoryCase
    module: nn.Module
    inputs: dict[str, Tensor]
    target: Tensor | None = None
    optimizer: torch.optim.Optimizer | None = None
    attention_used: str | None = None
    _held: dict[str, Any] = field(default_factory=dict)

    def forward(self) -> Tensor:
        """The loss (training) or the result's first tensor (inference)."""
        if self.case.source == "transformers":
            out = self.module(**self.inputs)
            found: Tensor = out["loss"] if self.case.mode == "training" else out["logits"]
            return found
        result: Tensor = self.module(*self.inputs.values())
        if self.case.mode == "inference":
            return result
        assert self.target is not None
        loss = F.cross_entropy if self.case.loss == "cross_entropy" else F.mse_loss
        return loss(result, self.target)


def build(case: MemoryCase, device: str, *, seed: int = 0) -> Built:
    """Module, inputs and optimizer of a case on a device (`cuda`, `cpu`, `meta`).

    Raises:
        ValueError: the case names an unknown network or optimizer.
        ImportError: transformers is needed and not there.
    """
    torch.manual_seed(seed)
    if case.source == "transformers":
        module, inputs, used = _transformers(case, device)
        target = None
    else:
        module, inputs, target = _ours(case, device)
        used = None
    module.train(case.mode == "training")
    optimizer = None
    if case.mode == "training" and case.optimizer is not None:
        optimizer = make_optimizer(case.optimizer, module.parameters())
    return Built(case, module, inputs, target, optimizer, used)


def make_optimizer(name: str, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """An optimizer by its name, `adamw`, or with its implementation, `adamw-fused`. Raises ValueError if unknown."""
    base, _, how = name.partition("-")
    if base not in _OPTIMIZERS or (how and how not in _IMPLEMENTATIONS):
        known = f"{', '.join(_OPTIMIZERS)}, each alone or with -{', -'.join(_IMPLEMENTATIONS)}"
        raise ValueError(f"optimizer: {name!r} is unknown; accepted: {known}")
    kind, settings = _OPTIMIZERS[base]
    return kind(parameters, **settings, **(_IMPLEMENTATIONS[how] if how else {}))


def run_step(built: Built, phase: Callable[[str], None]) -> float | None:
    """One step; `phase` is told when each phase begins. Returns the loss (None: inference, or not finite)."""
    value = loss_of_step(built, phase)
    if value is None:
        return None
    number = float(value) * built.case.accumulation
    return number if abs(number) < float("inf") else None


def loss_of_step(built: Built, phase: Callable[[str], None]) -> Tensor | None:
    """One step, without a look at any value; the last microbatch's share of the loss (None: inference)."""
    case = built.case
    if case.mode == "inference":
        with torch.inference_mode(), _autocast(built):
            phase("forward")
            out = built.forward()
        del out
        return None
    value = None
    for _ in range(case.accumulation):
        phase("forward")
        with _autocast(built):
            loss = built.forward()
        if case.accumulation > 1:
            loss = loss / case.accumulation
        if case.zero_grad == "before_backward" and built.optimizer is not None:
            built.optimizer.zero_grad(set_to_none=True)
        phase("backward")
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.detach()
        del loss
    if built.optimizer is not None:
        phase("optimizer")
        built.optimizer.step()
        if case.zero_grad == "after_step":
            phase("zero_grad")
            built.optimizer.zero_grad(set_to_none=True)
    return value


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages behind some tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def _autocast(built: Built) -> AbstractContextManager[Any]:
    if built.case.autocast is None:
        return nullcontext()
    device = next(built.module.parameters()).device.type
    return torch.autocast(device, dtype=DTYPES[built.case.autocast])


# ---- transformers --------------------------------------------------------------------------------------------------
def _transformers(case: MemoryCase, device: str) -> tuple[nn.Module, dict[str, Tensor], str | None]:
    import transformers

    settings = {key: list(value) if isinstance(value, tuple) else value for key, value in case.config.items()}
    config = transformers.AutoConfig.for_model(case.model_type, **settings)
    architecture = getattr(transformers, case.architecture, None)
    if architecture is None:
        raise ValueError(f"architecture: transformers {transformers.__version__} has no {case.architecture!r}")
    how = {} if case.attention is None else {"attn_implementation": case.attention}
    with torch.device(device):
        module = architecture._from_config(config, dtype=DTYPES[case.dtype], **how)
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    if case.checkpointing:
        _checkpoint(module)
    used = getattr(module.config, "_attn_implementation", None)
    return module, _transformers_inputs(case, config, device), used if isinstance(used, str) else None


def _checkpoint(module: Any) -> None:
    """Recompute every layer, not reentrant (transformers renamed the method in its version 5)."""
    if hasattr(module, "activation_checkpointing_enable"):
        module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _transformers_inputs(case: MemoryCase, config: Any, device: str) -> dict[str, Tensor]:
    """What the architecture's forward takes, on the device; labels in training only."""
    dtype = DTYPES[case.dtype]
    tokens = int(getattr(config, "vocab_size", 0) or 0)

    def ids(length: int | None) -> Tensor:
        if length is None:
            raise ValueError(f"{case.name}: seq or source_seq is missing; {case.architecture} needs it")
        return torch.randint(3, tokens, (case.batch, length), device=device)

    found: dict[str, Tensor]
    if case.model_type == "vit":
        side = case.image or config.image_size
        found = {"pixel_values": torch.randn(case.batch, 3, side, side, dtype=dtype, device=device)}
        labels = torch.randint(0, config.num_labels, (case.batch,), device=device)
    elif case.model_type == "whisper":
        shape = (case.batch, config.num_mel_bins, case.source_seq or 2 * config.max_source_positions)
        found = {"input_features": torch.randn(shape, dtype=dtype, device=device)}
        labels = ids(case.seq)
        if case.mode == "inference":
            found["decoder_input_ids"] = labels
    elif case.source_seq is not None:
        found = {"input_ids": ids(case.source_seq)}
        labels = ids(case.seq)
        if case.mode == "inference":
            found["decoder_input_ids"] = labels
    else:
        found = {"input_ids": ids(case.seq)}
        labels = found["input_ids"]
    if case.mode == "training":
        found["labels"] = labels
    return found


# ---- our own -------------------------------------------------------------------------------------------------------
def _ours(case: MemoryCase, device: str) -> tuple[nn.Module, dict[str, Tensor], Tensor | None]:
    from peakline.record.networks import NETWORKS

    make = NETWORKS.get(case.architecture)
    if make is None:
        raise ValueError(f"architecture: {case.architecture!r} is unknown; accepted: {', '.join(NETWORKS)}")
    if case.image is None:
        raise ValueError(f"{case.name}: image is missing; {case.architecture} needs it")
    dtype = DTYPES[case.dtype]
    with torch.device(device):
        module = make(**case.config).to(dtype)
        module.recompute = case.checkpointing  # type: ignore[assignment]
        channels = int(case.config.get("channels", 3))  # type: ignore[arg-type]
        images = torch.randn(case.batch, channels, case.image, case.image, dtype=dtype)
        times = torch.randint(0, _LARGEST_TIME, (case.batch,))
        if case.architecture == "ResNet":
            return module, {"images": images}, torch.randint(0, int(case.config["classes"]), (case.batch,))  # type: ignore[arg-type]
        if case.architecture == "UNet":
            return module, {"images": images, "t": times}, torch.randn_like(images)
        labels = torch.randint(0, int(case.config["classes"]), (case.batch,))  # type: ignore[arg-type]
        inputs = {"latents": images, "t": times, "labels": labels}
        return module, inputs, torch.randn(case.batch, 2 * channels, case.image, case.image, dtype=dtype)
