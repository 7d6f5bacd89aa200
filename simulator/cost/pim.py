"""Matrix products beside the memory banks: what a bank opens, streams and reduces, and what crosses the pins.

Each unit beside a bank holds whole rows of the matrix: an output is the dot product of one of them with the input
vector. The vector is broadcast over the pins to every channel, piece by piece where a channel's buffer is smaller;
every piece leaves a partial sum per output to be read back. A bank streams its rows one opened row after the other,
and opening one costs a precharge and an activation. While units work, the pins carry commands and operands of nothing
else.

For m input vectors the matrix is read ⌈m/v⌉ times, because units keep no matrix but v vectors:

    t = ⌈m/v⌉ · max( ⌈n/U⌉·k·e / (B/U) · (1 + switch/t_row),  n·k·e/row/C/4 · tFAW )  +  m · (k·e + n/C·p·s) / (P/C)

with U units, C channels, in-bank bandwidth B, pin bandwidth P, e bytes per element, p = ⌈k·e/buffer⌉ pieces, s bytes of
a partial sum, and t_row the time in which a unit streams one opened row. All banks of a channel open a row each in the
meantime; where their power supply allows four in a window of tFAW (a device that opens all at once names none), that
may be what they wait for.

References:
    [1] S. Lee et al., "Hardware architecture and software stack for PIM based on commercial DRAM technology", ISCA
        2021.
    [2] S. Lee et al., "A 1ynm 1.25V 8Gb, 16Gb/s/pin GDDR6-based accelerator-in-memory supporting 1TFLOPS MAC
        operation", ISSCC 2022; Y. Kwon et al., Hot Chips 2022: broadcast into a global buffer, outputs read from the
        units' registers.
    [3] JEDEC JESD235 (HBM2) and JESD250 (GDDR6): row timing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from peakline.cost.numeric import Real, ops_for
from peakline.models.dtypes import DType

if TYPE_CHECKING:
    from peakline.cost.machine import Machine

__all__ = ["PARTIAL_SUM", "ROW_SWITCH", "Banks", "banks_of", "product_seconds"]

ROW_SWITCH = 28e-9
"""Seconds of a precharge and an activation, tRP + tRCD: 14 ns each ([3])."""

PARTIAL_SUM = 4.0
"""Bytes of a partial sum that leaves a unit: float32 accumulation [2]."""


@dataclass(frozen=True)
class Banks:
    """What a product beside the banks depends on; bytes, bytes/s, seconds.

    Attributes:
        units: processing units of the device.
        channels: channels, each with its own pins and input buffer.
        inside: bytes/s between all banks and their units.
        outside: bytes/s at all pins.
        row: bytes of one opened row, 0 where unknown (then opening rows costs nothing).
        buffer: bytes of a channel's input buffer, 0 where unknown (then a vector is one piece).
        window: seconds in which a channel may open four rows, 0 where that is no limit.
        vectors: input vectors that one reading of the matrix serves.
    """

    units: float
    channels: float
    inside: float
    outside: float
    row: float = 0.0
    buffer: float = 0.0
    window: float = 0.0
    vectors: float = 1.0

    @property
    def opening(self) -> float:
        """Time of streaming with rows to open in all banks, as a multiple of the time without."""
        if not self.row:
            return 1.0
        return max(self.switching, self.units / self.channels / 4.0 * self.window / self.row_seconds)

    @property
    def row_seconds(self) -> float:
        """Time in which a unit streams one opened row."""
        return self.row * self.units / self.inside

    @property
    def switching(self) -> float:
        """Time of streaming with a row to open after each, as a multiple of the time without."""
        return (self.row_seconds + ROW_SWITCH) / self.row_seconds if self.row else 1.0


def banks_of(pim: Any, pins: float | None, units: int) -> Banks | None:
    """The figures of a device's `pim` section; None where its in-bank or pin bandwidth is unknown."""
    outside = pim.external_bandwidth or pins
    if not pim.in_bank_bandwidth or not outside:
        return None
    channels = pim.channels or 1
    count = channels * pim.units_per_channel if pim.units_per_channel else units
    return Banks(
        float(count), float(channels), pim.in_bank_bandwidth, outside, float(pim.row or 0),
        float(pim.input_buffer or 0), pim.four_activates or 0.0, float(pim.vectors or 1),
    )  # fmt: skip


def product_seconds(machine: Machine, batch: Real, m: Real, n: Real, k: Real, kind: DType) -> Real:
    """Seconds of `batch` products [m,k]·[k,n]: the slower of the units' arithmetic and the banks, see the module.

    Without bank figures, m passes over the matrix at the main memory's bandwidth. The `batch` products lie beside each
    other in the banks, so that units are shared out over all of them.
    """
    peak, _, _ = machine.rate(kind)
    element = kind.bits / 8.0
    ops = ops_for(batch, m, n, k)
    arithmetic = 2.0 * batch * m * n * k / peak
    banks = machine.banks
    if banks is None:
        return ops.maximum(arithmetic, batch * m * n * k * element / machine.supply)
    rows = ops.ceil(batch * n / banks.units)
    streaming = rows * k * element / (banks.inside / banks.units) * banks.switching
    if banks.row:  # the windows of four count rows that are opened, however many units share them
        opened = batch * n * k * element / banks.row / banks.channels
        streaming = ops.maximum(streaming, opened / 4.0 * banks.window)
    pieces = ops.ceil(k * element / banks.buffer) if banks.buffer else 1.0
    # vectors of independent products go to different channels as long as there are channels for them
    shared = ops.maximum(batch / banks.channels, 1.0)
    crossing = (shared * k * element + batch * n / banks.channels * pieces * PARTIAL_SUM) / (
        banks.outside / banks.channels
    )
    return ops.maximum(arithmetic, ops.ceil(m / banks.vectors) * streaming + m * crossing)
