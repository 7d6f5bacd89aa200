"""What CUDA would have done: which kernels PyTorch picks there, what they save, and what they allocate inside.

A program is recorded on fake CPU tensors. Two things turn the record into CUDA's:

* `rerouting`: while the program runs, functions whose CPU and CUDA implementations differ are replaced by the ATen
  operators that CUDA runs (dropout's mask, the choice among attention kernels, batch norm, fused RMS norm, autocast,
  multi-tensor optimizers), and `torch.cuda` calls and devices become harmless;
* with it, operators whose CUDA kernels return tensors of another format or size (statistics of a norm) return them:
  `results` is the table;
* `workspaces`: blocks that a CUDA implementation allocates and frees inside one operator.

`choose_attention` and `workspaces` are plain functions; the first two need torch and are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peakline.models.capture.cuda.attention import AttentionCall, Backend, choose_attention
from peakline.models.capture.cuda.blocks import workspaces

if TYPE_CHECKING:
    from peakline.models.capture.cuda.outcomes import results
    from peakline.models.capture.cuda.reroute import rerouting

__all__ = ["AttentionCall", "Backend", "choose_attention", "rerouting", "results", "workspaces"]


def __getattr__(name: str) -> Any:
    if name == "rerouting":
        from peakline.models.capture.cuda.reroute import rerouting

        return rerouting
    if name == "results":
        from peakline.models.capture.cuda.outcomes import results

        return results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
