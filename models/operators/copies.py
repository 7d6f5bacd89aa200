"""Copies, in-place accumulation, and the marker that ends a tensor's life."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.dims import Dim
from peakline.models.kernels import Kernel
from peakline.models.operators.registry import OperatorType, register


@dataclass(frozen=True)
class Copy(OperatorType):
    """A copy into fresh memory."""

    name: str = "copy"


@dataclass(frozen=True)
class Accumulate(OperatorType):
    """a += b: reads both, writes a."""

    name: str = "accumulate"


@dataclass(frozen=True)
class Release(OperatorType):
    """No work: its inputs are held by somebody (a Python variable, `.grad`) until here, and freed after."""

    name: str = "release"
    launches: int = 0

    def kernels(self, node: object) -> tuple[Kernel, ...]:
        """None."""
        return ()

    def reads(self, node: object) -> Dim:
        """None."""
        return 0

    def writes(self, node: object) -> Dim:
        """None."""
        return 0


for _type in (Copy(), Accumulate(), Release()):
    register(_type)
