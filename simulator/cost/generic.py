"""Kernels on devices other than GPUs: one resource of arithmetic beside one of memory.

Each kind of device has a module that says how long its arithmetic takes for a matrix product (`npu`, `cpu`, `mcu`,
`fpga`, `pim`); everything else is common. Devices with software-managed or prefetched memories overlap arithmetic and
memory; an in-order microcontroller does not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from peakline.cost import cpu, fpga, mcu, npu, pim
from peakline.cost.gpu import Tiled
from peakline.cost.machine import Machine
from peakline.cost.numeric import Real, ops_for
from peakline.cost.tiling import blocked_traffic
from peakline.models.dtypes import DType

__all__ = ["Products", "generic_tiled", "micro_tiled"]

Products: TypeAlias = tuple[Real, Real, Real, Real]
"""(batch, m, n, k) of one or several equal matrix products."""

Widths: TypeAlias = tuple[Real, Real, Real]
"""Bytes of one element of A, B and C."""

_ARITHMETIC: dict[str, Callable[[Machine, Real, Real, Real, Real, DType], Real]] = {
    "npu": npu.product_seconds,
    "cpu": cpu.product_seconds,
    "mcu": mcu.product_seconds,
    "fpga": fpga.product_seconds,
    "pim": pim.product_seconds,
}


def generic_tiled(
    machine: Machine,
    products: tuple[Products, ...],
    scalar_work: Real,
    kind: DType,
    launches: Real,
    reads: Real,
    writes: Real,
    widths: Widths | None = None,
) -> Tiled:
    """Seconds and traffic of `products` followed by `scalar_work` operations, over `reads` + `writes` bytes.

    T = launches·launch + max(arithmetic, memory), or their sum where nothing overlaps them (`mcu`); on a CPU, operands
    are packed before (`cpu.packing_seconds`). With `widths`, what
    does not fit in on-chip memory is blocked (`tiling`), and moves more than once; half of the memory holds the tiles
    at work, the other half those on their way.
    """
    arithmetic = scalar_work / machine.vector_rate(kind)
    seconds_of = _ARITHMETIC.get(machine.kind, cpu.product_seconds)
    packed: Real = 0.0
    for batch, m, n, k in products:
        arithmetic = arithmetic + seconds_of(machine, batch, m, n, k, kind)
        if machine.kind == "cpu" and widths is not None:
            packed = packed + cpu.packing_seconds(machine, batch, m, n, k, *widths, kind)
    moved = reads + writes
    ops = ops_for(arithmetic, moved)
    if widths is not None and machine.onchip_bytes:
        blocked: Real = 0.0
        for batch, m, n, k in products:
            blocked = blocked + batch * blocked_traffic(m, n, k, machine.onchip_bytes / 2.0, *widths)
        moved = ops.maximum(moved, blocked)
    if machine.kind == "cpu" and products and widths is not None:
        memory = cpu.streamed_seconds(machine, moved, products[0][1], products[0][2])
        launch: Real = launches * cpu.start_seconds(machine, kind)
    else:
        memory, launch = moved / machine.supply, launches * (machine.launch or 0.0)
    both = arithmetic + memory if machine.kind == "mcu" else ops.maximum(arithmetic, memory)
    both = both + packed
    main = machine.main.name
    return Tiled(launch + both, launch, {main: moved}, {"compute": arithmetic, main: memory})


def micro_tiled(machine: Machine, cycles: tuple[Real, Real], moved: Real) -> Tiled:
    """Seconds of a microcontroller's kernel from its (instruction, stall) cycles; `moved` bytes of main memory.

    The clock is the one behind the stated rate: a device with twice the rate runs every cycle in half the time.
    """
    assert machine.micro is not None
    clock = machine.vector["int8"] / (2.0 * machine.micro.core.macs)
    arithmetic, stalls = cycles[0] / clock, cycles[1] / clock
    main = machine.main.name
    return Tiled(arithmetic + stalls, 0.0, {main: moved}, {"compute": arithmetic, main: stalls})
