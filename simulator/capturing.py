"""Capture: a user's own torch module and training step as a workload, without a GPU and without weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from os import PathLike
from typing import Any

from peakline.configured import configured
from peakline.hardware import Device
from peakline.hardware import device as find_device
from peakline.models.capture.target import Target
from peakline.models.graph import Graph
from peakline.models.origin import Origin, remember

__all__ = ["capture"]


def capture(
    program: Any,
    inputs: Any = None,
    *,
    optimizer: Any = None,
    loss: Callable[[Any], Any] | None = None,
    mode: str = "training",
    device: str | Device = "h100-sxm",
    dtype: Any = None,
    autocast: Any = None,
    steps: int = 2,
    real: bool = False,
    name: str | None = None,
    fold: bool = True,
    change: str = "",
) -> Graph:
    """The workload of a torch module or training step, as it would run on `device`.

    The program runs on the CPU under fake tensors: no GPU, no weights and no arithmetic, whatever its size. What it
    dispatches, what it keeps and when it lets go is recorded over `steps` steps; the graph is the last of them.

    Args:
        program: an `nn.Module` (its weights real or on the meta device; they are neither copied nor changed), a
            function without arguments that makes one (nothing is ever allocated), or, without `inputs`, a function
            that runs a whole step, or one that returns `(module, inputs)`, `(module, inputs, optimizer)` or a step. Or
            the path or content of a Hugging Face `config.json`, for transformers' implementation of it; `inputs` is
            then a dict of `batch`, `seq` and what else `peakline.configured` takes.
        inputs: example inputs of the module: a tensor, a tuple of positional or a dict of named ones. Their shapes
            and dtypes count, and the values of integer and boolean ones (masks, positions).
        optimizer: a class of `torch.optim` or a name of one, a `functools.partial`, a function of the parameters, or
            an instance over the module's parameters. None: forward and backward only.
        loss: from the module's output to the tensor that is differentiated. By default the output's `loss`, the output
            itself where it is one number, else its sum.
        mode: `training`, or `inference` for a forward pass without gradients; the module is put into that mode.
        device: catalogue name, path of a device file, or a `Device`; "cpu" for this machine's CPU allocator.
        dtype: format to convert floating-point parameters and inputs to first, as `module.to(dtype)` does.
        autocast: format of a `torch.autocast` region around the forward pass.
        steps: steps to record; the last one should be like all that follow.
        real: compute every value on the CPU beside the recording, for programs whose control flow depends on data
            (`.item()`, `nonzero`, a router's choice): needs real weights and inputs, their memory and their time.
        name: of the graph; by default the module's class.
        fold: recognise repeated layers, so that the graph stays small.
        change: do one thing differently, to see what it would save: `checkpoint` (recompute repeated layers),
            `fused` or `loop` (the optimizer's implementation), `halved` (two passes over half the batch),
            `attention` (PyTorch's fused kernels for transformers' written-out ones), `cache` (keep no keys and
            values), `chunked` (a language model's loss, a chunk of tokens at a time).

    Raises:
        ImportError: torch is not installed.
        ValueError: an argument that is none of the above; the program raises, or needs values that fake tensors do not
            have (`CaptureError`, naming the line).
    """
    try:
        import torch
    except ImportError as error:
        raise ImportError("capture needs torch: pip install 'peakline[torch]'") from error
    from peakline.models.capture.step import MODES, Workload, record

    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown; accepted: {', '.join(MODES)}")
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps: must be a whole number of at least 1, not {steps!r}")
    target = target_of(device)
    run, given, convert = program, inputs, _torch_dtype("dtype", dtype, torch)
    if isinstance(program, str | PathLike | Mapping):
        run, given = configured(program, mode, {"dtype": convert, **(inputs or {})})
        convert = None  # the model is made in that format
    workload = Workload(
        run, given, optimizer, loss, mode, _torch_dtype("autocast", autocast, torch), convert, steps, real, change
    )
    recording = record(workload, target)
    from peakline.models.capture.assemble import assemble
    from peakline.models.capture.price import pricing

    graph = assemble(recording, pricing(target), name=name or _name_of(run), phase=mode)
    options = {
        "program": program, "inputs": inputs, "optimizer": optimizer, "loss": loss, "mode": mode, "device": device,
        "dtype": dtype, "autocast": autocast, "steps": steps, "real": real, "name": name, "fold": fold,
        "change": change,
    }  # fmt: skip
    return remember(_folded(graph) if fold else graph, Origin("captured", capture, options))


def _folded(graph: Graph) -> Graph:
    try:
        found = import_module("peakline.models.capture.fold")
    except ImportError:
        return graph
    folded: Graph = found.fold(graph)
    return folded


def _name_of(program: Any) -> str:
    return getattr(program, "__name__", None) or type(program).__name__


def _torch_dtype(argument: str, value: Any, torch: Any) -> Any:
    """A torch dtype of a name of ours or torch's (`bf16`, `bfloat16`), or the dtype itself."""
    if value is None or isinstance(value, torch.dtype):
        return value
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    found = getattr(torch, names.get(str(value), str(value)), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"{argument} {value!r} is unknown; accepted: {', '.join(names)}, or a torch dtype")
    return found


def target_of(device: str | Device) -> Target:
    """What decides which kernels PyTorch picks on a device.

    Raises:
        ValueError: an unknown device, or one that PyTorch's CUDA kernels do not run on.
    """
    if device == "cpu":
        return Target(kind="cpu")
    found = find_device(device)
    if found.kind == "cpu":
        return Target(kind="cpu")
    gpu, units = found.gpu, found.compute.units if found.compute is not None else None
    if gpu is None or found.compute_capability is None:
        raise ValueError(
            f"device {found.name}: PyTorch's CUDA kernels do not run on a {found.kind}; accepted: GPUs, cpu"
        )
    usual = Target()
    return Target(
        "cuda", found.compute_capability, units or usual.multiprocessors, gpu.threads_per_unit or usual.threads,
        int(gpu.shared_per_block or usual.shared_memory),
    )  # fmt: skip
