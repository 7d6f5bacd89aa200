"""What holds while a program is recorded: PyTorch as on the target, and nothing that depends on this process."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import FakeTensor

from peakline.models.capture.compiled import without_compilation
from peakline.models.capture.recorder import Recorder
from peakline.models.capture.target import Target
from peakline.models.capture.unseen import reported

__all__ = ["as_without_fakes", "surroundings"]


@contextmanager
def surroundings(recorder: Recorder, target: Target) -> Iterator[None]:
    """Everything below, at once; enter it inside the fake tensor mode."""
    with ExitStack() as stack:
        stack.enter_context(without_compilation(recorder.recording.notes))
        stack.enter_context(_rerouted(target))
        stack.enter_context(_attending(recorder, target))
        stack.enter_context(_many_at_once(target))
        stack.enter_context(as_without_fakes())
        stack.enter_context(_states_seen(recorder, target))
        stack.enter_context(_no_collection())
        stack.enter_context(_quiet())
        stack.enter_context(reported(recorder.known))
        yield


@contextmanager
def _rerouted(target: Target) -> Iterator[None]:
    """Composite functions run the operators that they would run on the target."""
    if target.kind != "cuda":
        from peakline.models.capture.cuda.outcomes import answering

        with answering(target):
            yield
        return
    try:
        from peakline.models.capture.cuda import rerouting
    except ImportError:
        context: Any = nullcontext()
    else:
        context = rerouting(target)
    with context:
        yield


@contextmanager
def _attending(recorder: Recorder, target: Target) -> Iterator[None]:
    """The recorder knows when the CPU's attention runs; on CUDA other functions stand in its place."""
    if target.kind != "cpu":
        yield
        return
    attention = torch.nn.functional.scaled_dot_product_attention

    @wraps(attention)
    def attended(*args: Any, **kwargs: Any) -> torch.Tensor:
        recorder.attending = True
        try:
            return attention(*args, **kwargs)
        finally:
            recorder.attending = False

    with patch.object(torch.nn.functional, "scaled_dot_product_attention", attended):
        yield


@contextmanager
def _many_at_once(target: Target) -> Iterator[None]:
    """Optimizers and gradient clipping treat fake tensors as they would plain ones on the target.

    `torch.optim.optimizer._default_to_fused_or_foreach` takes the multi-tensor kernels where every parameter is a
    plain tensor on a device that has them: CUDA, not the CPU.
    """
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    optimizers: Any = optimizer
    utils: Any = _foreach_utils
    kinds = [optimizers._foreach_supported_types, utils._foreach_supported_types]
    devices = utils._get_foreach_kernels_supported_devices

    def with_cpu() -> list[str]:
        return [*devices(), "cpu"]

    for known in kinds:
        known.append(FakeTensor)
    if target.kind == "cuda":
        utils._get_foreach_kernels_supported_devices = optimizers._get_foreach_kernels_supported_devices = with_cpu
    try:
        yield
    finally:
        for known in kinds:
            known.remove(FakeTensor)
        utils._get_foreach_kernels_supported_devices = optimizers._get_foreach_kernels_supported_devices = devices


@contextmanager
def _states_seen(recorder: Recorder, target: Target) -> Iterator[None]:
    """The states of random number generators, which checkpointing keeps, lie in the CPU's memory."""
    if target.kind != "cpu":
        yield
        return
    get = torch.get_rng_state

    def seen() -> torch.Tensor:
        state = get()
        recorder.born(state, "aten.get_rng_state.default")
        return state

    torch.get_rng_state = torch.random.get_rng_state = seen
    try:
        yield
    finally:
        torch.get_rng_state = torch.random.get_rng_state = get


@contextmanager
def _quiet() -> Iterator[None]:
    """What fake tensors log of an operator that refuses its operands is said by the exception, too."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextmanager
def as_without_fakes() -> Iterator[None]:
    """transformers builds other masks where it sees fake tensors (`is_tracing`): let it see none."""
    module = sys.modules.get("transformers.utils.import_utils")
    before = getattr(module, "is_fake_tensor", None)
    if before is None:
        yield
        return
    module.is_fake_tensor = lambda x: False  # type: ignore[union-attr]
    try:
        yield
    finally:
        module.is_fake_tensor = before  # type: ignore[union-attr]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Cyclic garbage is collected before and not within: frees then do not depend on how much Python allocates."""
    import gc

    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
