"""A device that is not there: `torch.cuda` answers with the target's facts, optimizers choose as on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor

from peakline.models.capture.target import Target

__all__ = ["pretended_device"]


class _Nothing:
    """A stream, an event, a graph pool: accepts every call and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0
        self.device = torch.device("cpu")

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *args: Any) -> None:
        return None

    def elapsed_time(self, *args: Any) -> float:
        """No time passes."""
        return 0.0

    def query(self) -> bool:
        """Everything has finished."""
        return True

    def __getattr__(self, name: str) -> Callable[..., None]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: None


class _Generator(torch.Generator):
    """A generator for whatever device, on the CPU."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, device="cpu")  # type: ignore[call-arg]


def _answering(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _answers(target: Target) -> dict[str, Any]:
    """What `torch.cuda` says."""
    major, minor = target.capability
    properties = SimpleNamespace(
        name="cuda",
        major=major,
        minor=minor,
        multi_processor_count=target.multiprocessors,
        total_memory=2**40,
        shared_memory_per_block_optin=target.shared_memory,
        gcnArchName="",
    )
    answers: dict[str, Any] = {
        "is_available": _answering(True),
        "is_initialized": _answering(True),
        "device_count": _answering(1),
        "current_device": _answering(0),
        "get_device_name": _answering("cuda"),
        "get_device_capability": _answering(target.capability),
        "get_device_properties": _answering(properties),
        "is_bf16_supported": _answering(major >= 8),
        "mem_get_info": _answering((2**40, 2**40)),
        "memory_stats": _answering({}),
        "get_rng_state": _answering(torch.empty(0, dtype=torch.uint8)),
        "get_rng_state_all": _answering([]),
        "current_stream": _Nothing,
        "default_stream": _Nothing,
        "Stream": _Nothing,
        "Event": _Nothing,
        "stream": _answering(nullcontext()),
        "device": _Nothing,
    }
    silent = (
        "init synchronize empty_cache manual_seed manual_seed_all seed seed_all set_device set_stream ipc_collect "
        "reset_peak_memory_stats reset_max_memory_allocated set_per_process_memory_fraction set_rng_state "
        "set_rng_state_all reset_accumulated_memory_stats _lazy_init nvtx"
    )
    answers |= {name: _answering(None) for name in silent.split() if name != "nvtx"}
    zero = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved utilization"
    return answers | {name: _answering(0) for name in zero.split()}


def _always_step(self: Any, optimizer: Any, optimizer_state: Any, *args: Any, **kwargs: Any) -> Any:
    """`GradScaler._maybe_opt_step`, taking the gradients to be finite: whether they are is data."""
    return optimizer.step(*args, **kwargs)


@contextmanager
def _inference_without_shortcuts() -> Iterator[None]:
    """`torch.inference_mode` as `torch.no_grad`, which keeps as little.

    In inference mode composite operators reach a dispatch mode whole, before they are taken apart.
    """
    from torch.autograd.grad_mode import inference_mode

    def enter(self: Any) -> None:
        self._grad_was = torch.is_grad_enabled()
        if self.mode:
            torch.set_grad_enabled(False)

    def leave(self: Any, *args: Any) -> None:
        torch.set_grad_enabled(self._grad_was)

    with patch.object(inference_mode, "__enter__", enter), patch.object(inference_mode, "__exit__", leave):
        yield


@contextmanager
def pretended_device(target: Target) -> Iterator[None]:
    """`torch.cuda` is there, idle and empty; optimizers take multi-tensor kernels for fake CPU tensors.

    torch/optim/optimizer.py `_default_to_fused_or_foreach`: foreach by default for parameters on CUDA.
    """
    from torch.amp.grad_scaler import GradScaler
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    devices = [*_foreach_utils._get_foreach_kernels_supported_devices(), "cpu"]
    with ExitStack() as stack:
        for name, answer in _answers(target).items():
            if hasattr(torch.cuda, name):
                stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(_inference_without_shortcuts())
        stack.enter_context(patch.object(torch, "Generator", _Generator))
        for module in (optimizer, _foreach_utils):
            kinds = [*module._foreach_supported_types, FakeTensor, torch.nn.Parameter]
            stack.enter_context(patch.object(module, "_foreach_supported_types", kinds))
            stack.enter_context(patch.object(module, "_get_foreach_kernels_supported_devices", lambda: devices))
        stack.enter_context(patch.object(GradScaler, "_maybe_opt_step", _always_step))
        was = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(torch.backends.mha.set_fastpath_enabled, was)
        yield
