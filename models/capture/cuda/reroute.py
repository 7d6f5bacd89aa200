"""While a program is recorded on fake CPU tensors, it runs as it would on a CUDA device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from peakline.models.capture.cuda.autocast import autocast_as_on_cuda
from peakline.models.capture.cuda.composites import composed_for
from peakline.models.capture.cuda.devices import devices_replaced
from peakline.models.capture.cuda.modules import modules_converted
from peakline.models.capture.cuda.outcomes import answering
from peakline.models.capture.cuda.pretence import pretended_device
from peakline.models.capture.target import Target

__all__ = ["rerouting"]


@contextmanager
def rerouting(target: Target) -> Iterator[None]:
    """Everything inside runs PyTorch's code for the target; for a CPU nothing changes.

    Enter it inside the fake tensor mode and before the recorder. It changes process-wide tables of PyTorch, so one
    program at a time can be recorded in a process.
    """
    if target.kind != "cuda":
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(composed_for(target))
        stack.enter_context(autocast_as_on_cuda())
        stack.enter_context(pretended_device(target))
        stack.enter_context(modules_converted())
        stack.enter_context(devices_replaced())
        stack.enter_context(answering(target))
        yield
