"""The cost of a recorded call on a target: its work, and the blocks the target's kernels allocate inside it."""

from __future__ import annotations

from peakline.models.capture.assemble import Priced
from peakline.models.capture.calls import Call
from peakline.models.capture.target import Target
from peakline.models.capture.work import work

__all__ = ["price"]


def price(call: Call, target: Target) -> Priced:
    """Kernels, compulsory bytes and workspace of `call`."""
    done = work(call, target)
    return Priced(done.kernels, done.reads, done.writes, _workspaces(call, target))


def _workspaces(call: Call, target: Target) -> tuple[int, ...]:
    if target.kind == "cpu":
        from peakline.models.capture.cpu import workspaces
    else:
        try:
            from peakline.models.capture.cuda import workspaces
        except ImportError:
            return ()
    return tuple(workspaces(call, target))
