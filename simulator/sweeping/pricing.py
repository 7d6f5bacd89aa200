"""Prices of programs on one device after another; every figure is the one a single estimate gives, to the last bit.

Programs of few configurations are priced together, kernels of a kind in one array (`stacks`); a program of many is
walked through by itself (`passes`). Both add up in program order, as `peakline.cost.program` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

from peakline.cost.machine import machine
from peakline.hardware import Device
from peakline.sweeping.passes import Pass
from peakline.sweeping.reduced import Program, RunCost
from peakline.sweeping.stacks import Stack, price_stacks, stacked

__all__ = ["Pricer"]

MANY = 1024
"""Configurations from which on a program is priced by itself: calls then cost less than what they compute."""


class Pricer:
    """Programs to be priced; what no device changes is worked out once."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs
        self.small = [p for p in programs if math.prod(p.shape) < MANY]

    @cached_property
    def _stacks(self) -> list[Stack]:
        return stacked(self.small)

    @cached_property
    def _passes(self) -> dict[int, Pass]:
        return {i: Pass(p) for i, p in enumerate(self.programs) if math.prod(p.shape) >= MANY}

    def on(self, device: Device, *, cuda_graph: bool = False) -> list[RunCost | Exception]:
        """Each program's price on `device`, or why it has none."""
        try:
            target = machine(device)
        except ValueError as error:
            return [error for _ in self.programs]
        small = iter(price_stacks(self.small, self._stacks, target, cuda_graph=cuda_graph))
        return [
            self._passes[i].price(target, cuda_graph=cuda_graph) if i in self._passes else next(small)
            for i in range(len(self.programs))
        ]
