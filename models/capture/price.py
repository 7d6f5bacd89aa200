"""The cost of a recorded call on a target: its work, and the blocks the target's kernels allocate inside it."""

from __future__ import annotations

from collections.abc import Callable

from peakline.models.capture.assemble import Priced
from peakline.models.capture.calls import Call
from peakline.models.capture.target import Target
from peakline.models.capture.work import work
from peakline.models.kernels import Stream

__all__ = ["pricing"]


def pricing(target: Target) -> Callable[[Call], Priced]:
    """Prices the calls of one recording."""
    if target.kind == "cpu":
        return _on_cpu(target)
    return lambda call: _on_cuda(call, target)


def _on_cuda(call: Call, target: Target) -> Priced:
    try:
        from peakline.models.capture.cuda import workspaces
    except ImportError:
        found: tuple[int, ...] = ()
    else:
        found = tuple(workspaces(call, target))
    done = work(call, target)
    return Priced(done.kernels, done.reads, done.writes, found)


def _on_cpu(target: Target) -> Callable[[Call], Priced]:
    from peakline.models.capture.cpu import Inside, Kernels

    kernels = Kernels()

    def price(call: Call) -> Priced:
        done = work(call, target)
        flops = sum(float(kernel.flops) for kernel in done.kernels if not isinstance(kernel, Stream))
        found = kernels(call, flops) or Inside()
        return Priced(done.kernels, done.reads, done.writes, found.peak, found.all, found.results, found.before)

    return price
