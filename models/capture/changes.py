"""The same program with something done differently, to see what that would save: nothing of the user's is rewritten.

A change is applied while a program is recorded and undone afterwards. Each does what a user would write:
`torch.utils.checkpoint` around every repeated layer, `fused=True` in the optimizer, two passes over half a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.checkpoint import checkpoint

from peakline.models.capture.errors import CaptureError

__all__ = ["CHANGES", "Change"]

CHANGES = ("checkpoint", "fused", "loop", "halved", "attention", "cache", "chunked")
"""Recompute repeated layers; one fused kernel for the optimizer, or one parameter after the other; two passes over
half the batch; fused attention; no cache of keys and values; the loss of a language model in chunks of tokens."""

CHUNKS = 8


class Change:
    """One change, or none.

    Attributes:
        kind: one of `CHANGES`, or "".
        applied: whether there was anything to change.
    """

    def __init__(self, kind: str = "") -> None:
        """Nothing is applied yet.

        Raises:
            CaptureError: an unknown kind.
        """
        if kind and kind not in CHANGES:
            raise CaptureError(f"change {kind!r} is unknown; accepted: {', '.join(CHANGES)}")
        self.kind = kind
        self.applied = False
        self._undo: list[Callable[[], None]] = []

    def undo(self) -> None:
        """Put everything back."""
        while self._undo:
            self._undo.pop()()

    def check(self) -> None:
        """Refuse a change that found nothing to change.

        Raises:
            CaptureError: saying so.
        """
        if self.kind and not self.applied:
            raise CaptureError(f"change {self.kind!r} is not applicable: there is nothing of that kind to change")

    def _set(self, owner: Any, name: str, value: Any) -> None:
        before = vars(owner).get(name, self)
        setattr(owner, name, value)
        self._undo.append(partial(delattr, owner, name) if before is self else partial(setattr, owner, name, before))
        self.applied = True

    # ---- modules ---------------------------------------------------------------------------------------------------
    def module(self, module: torch.nn.Module) -> None:
        """Change how a module computes."""
        if self.kind == "checkpoint":
            self._checkpoint(module)
        config = getattr(module, "config", None)
        if self.kind == "attention" and getattr(config, "_attn_implementation", "") == "eager":
            choose = getattr(module, "set_attn_implementation", None)
            if choose is not None:
                choose("sdpa")
                self._undo.append(partial(choose, "eager"))
                self.applied = True
        if self.kind == "cache" and getattr(config, "use_cache", False):
            self._set(config, "use_cache", False)
        if self.kind == "chunked" and _is_language_model(module):
            self._set(module, "forward", partial(_chunked, module))

    def _checkpoint(self, module: torch.nn.Module) -> None:
        """transformers' own switch, or `torch.utils.checkpoint` around the forward of each repeated layer."""
        if getattr(module, "supports_gradient_checkpointing", False):
            if not getattr(module, "is_gradient_checkpointing", False):
                module.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
                self._undo.append(module.gradient_checkpointing_disable)  # type: ignore[arg-type]
                self.applied = True
            if getattr(getattr(module, "config", None), "use_cache", False):
                self._set(module.config, "use_cache", False)  # recomputation cannot append to it
            return
        for layer in repeated_layers(module):
            self._set(layer, "forward", partial(checkpoint, layer.forward, use_reentrant=False))

    # ---- optimizers ------------------------------------------------------------------------------------------------
    def optimizer_class(self, given: Any) -> Any:
        """What makes the optimizer."""
        if self.kind not in ("fused", "loop"):
            return given
        self.applied = True
        return partial(given, **({"fused": True} if self.kind == "fused" else {"foreach": False}))

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Change an optimizer that exists."""
        chosen = {"fused": {"fused": True, "foreach": False}, "loop": {"fused": False, "foreach": False}}
        for group in optimizer.param_groups:
            for name, value in chosen.get(self.kind, {}).items():
                if name in group:
                    self._undo.append(partial(group.__setitem__, name, group[name]))
                    group[name] = value
                    self.applied = True

    # ---- inputs ----------------------------------------------------------------------------------------------------
    def inputs(self, inputs: Any) -> list[Any]:
        """The inputs of each pass of a step: of two, each with half of every tensor as long as the first one.

        Raises:
            CaptureError: the first tensor's first dimension is odd.
        """
        if self.kind != "halved":
            return [inputs]
        tensors = [t for t in tree_flatten(inputs)[0] if isinstance(t, torch.Tensor) and t.dim()]
        batch = tensors[0].shape[0] if tensors else 1
        if batch % 2:
            raise CaptureError(f"change 'halved' is not applicable: a batch of {batch} has no half")
        self.applied = True

        def half(at: int, tensor: torch.Tensor) -> torch.Tensor:
            return tensor[at : at + batch // 2].clone() if tensor.dim() and tensor.shape[0] == batch else tensor

        return [tree_map_only(torch.Tensor, partial(half, at), inputs) for at in (0, batch // 2)]


def repeated_layers(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Layers of one class that stand in a row in a list or a sequence, the outermost ones."""
    if isinstance(module, torch.nn.ModuleList | torch.nn.Sequential):
        layers = [layer for layer in module if any(True for _ in layer.children())]
        kinds = [type(layer) for layer in layers if any(True for _ in layer.parameters())]
        usual = max(kinds, key=kinds.count, default=None)
        if usual is not None and kinds.count(usual) > 1:
            yield from (layer for layer in layers if type(layer) is usual)
            return
    for child in module.children():
        yield from repeated_layers(child)


# ---- a language model's loss, a chunk of tokens at a time ------------------------------------------------------------
def _is_language_model(module: torch.nn.Module) -> bool:
    """A causal language model of transformers whose logits are its last projection's output and nothing else."""
    config = getattr(module, "config", None)
    named = type(module).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    plain = not getattr(config, "final_logit_softcapping", None) and not getattr(config, "logit_scale", None)
    return named and plain and hasattr(module, "get_output_embeddings") and hasattr(module, "base_model")


def _chunked(module: Any, *args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> dict[str, torch.Tensor]:
    """The mean cross-entropy of the next token; each chunk's logits are computed again in the backward pass."""
    if labels is None:
        raise CaptureError("change 'chunked' is not applicable: the model is given no labels")
    hidden = module.base_model(*args, **kwargs)[0]
    head = module.get_output_embeddings()
    targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)

    def piece(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = head(states).float().flatten(0, 1)
        return torch.nn.functional.cross_entropy(logits, wanted.flatten(), reduction="sum")

    total = hidden.new_zeros((), dtype=torch.float32)
    for states, wanted in zip(hidden.chunk(CHUNKS, 1), targets.chunk(CHUNKS, 1)):
        total = total + checkpoint(piece, states, wanted, use_reentrant=False)
    return {"loss": total / labels.numel()}
