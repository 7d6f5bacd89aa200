"""The table of all rules, and the function that looks a call up in it."""

from __future__ import annotations

from peakline.models.capture.calls import Call
from peakline.models.capture.target import Target
from peakline.models.capture.work import attention, convolutions, elementwise, indexing, lists, products, rows
from peakline.models.capture.work.elementwise import pass_over
from peakline.models.capture.work.lists import foreach
from peakline.models.capture.work.record import NOTHING, Rule, Work

__all__ = ["known", "work"]

_RULES: dict[str, Rule] = {}
for _family in (elementwise, products, attention, convolutions, rows, indexing, lists):
    _RULES |= _family.RULES


_NO_KERNELS = ("prim.", "profiler.", "inductor.", "debugprims.")
"""Namespaces of operators that do nothing on the device."""


def known(packet: str) -> bool:
    """Whether some rule describes the operator (`aten.addmm`); `work` takes the others for one pass."""
    return packet in _RULES or packet.startswith("aten._foreach_")


def work(call: Call, target: Target) -> Work:
    """What a recorded call computes on the target.

    Args:
        call: with the arguments named as in the operator's schema and the tensors it returned, `None`s left out.
        target: where it runs; the same ATen operator can be different kernels on different devices.
    """
    packet = call.packet
    rule = _RULES.get(packet)
    if rule is not None:
        return rule(call, target)
    if packet.startswith("aten._foreach_"):
        return foreach(call, target)
    if packet.startswith(_NO_KERNELS) or _only_looks(call):
        return NOTHING
    return pass_over(call, target)


def _only_looks(call: Call) -> bool:
    """Whether the call made no storage and wrote into none: every result is a view of an argument."""
    if call.makes or not call.results or call.packet.endswith("_"):
        return False
    seen = {view.storage for view in call.views()}
    return all(view.storage in seen for view in call.results)
