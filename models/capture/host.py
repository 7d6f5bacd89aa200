"""Memory of the host in a program recorded for a device: what is moved there no longer counts.

Every tensor is a fake one on the CPU, those that stand for the device's as well, so a tensor's `device` says nothing.
What is asked to be pinned, or to go to the CPU by name (`.cpu()`, `.to("cpu")`), lies on the host; what is asked to go
from there to the device of another tensor comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

__all__ = ["HOST", "Host"]

T = TypeVar("T")


class Host:
    """Whether memory is just now asked for on the host; one program is recorded at a time."""

    def __init__(self) -> None:
        """The device's."""
        self.asked = False

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Storages made inside lie on the host."""
        before, self.asked = self.asked, True
        try:
            yield
        finally:
            self.asked = before

    @staticmethod
    def holds(tensor: object) -> bool:
        """Whether a tensor was put there."""
        return isinstance(tensor, Tensor) and bool(tensor.__dict__.get("_on_host"))

    @staticmethod
    def mark(tensor: T) -> T:
        """Remember that a tensor lies there."""
        if isinstance(tensor, Tensor):
            tensor._on_host = True  # type: ignore[attr-defined]
        return tensor


HOST = Host()
