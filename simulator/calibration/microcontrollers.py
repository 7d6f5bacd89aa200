"""Fit the few constants of the microcontroller model on measured inferences: cycles per instruction of a core,
instructions executed over those counted of a library, bus clocks of a cache line.

A network's time is linear in them, T = executed·CPI·A + fill·B + C, with A, B and C counted once; the fit minimises the
squared logarithm of predicted/measured, one constant at a time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from peakline.cost.machine import machine
from peakline.cost.mcu import FITTED, Constants, micro_of
from peakline.cost.program import price_program
from peakline.hardware import device as find_device
from peakline.models.catalogue import model_names
from peakline.models.graph import Graph
from peakline.models.workloads import inference

__all__ = ["Inference", "chosen_for_fit", "fit", "network", "predicted"]

_STEPS = (1.1, 1.03, 1.01, 1.003)


class Inference(NamedTuple):
    """One measured inference: catalogue names, number format, seconds."""

    device: str
    runtime: str
    network: str
    dtype: str
    seconds: float


@dataclass(frozen=True)
class _Parts:
    """Seconds at one cycle per instruction (A), of one bus clock per line (B), and of the rest (C)."""

    instructions: float
    lines: float
    rest: float


def chosen_for_fit(row: Inference) -> bool:
    """Half of the rows, chosen by a hash of device, runtime and network: the constants are fitted on these."""
    text = f"{row.device}|{row.runtime}|{row.network}"
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2 == 0


def predicted(row: Inference, constants: Constants = FITTED) -> float:
    """Seconds of the row's inference under the constants."""
    parts = _parts(row.device, row.runtime, row.network, row.dtype)
    core = constants.cores[_core(row.device)]
    executed = constants.libraries[row.runtime].executed if _library_counts(row) else 1.0
    return executed * core.cpi * parts.instructions + constants.fill * parts.lines + parts.rest


def fit(rows: Iterable[Inference], start: Constants = FITTED) -> Constants:
    """The constants that fit `rows` best; those that no row tells about keep their value of `start`."""
    known = list(rows)
    best, loss = start, _loss(known, start)
    names = [("core", name) for name in {_core(row.device) for row in known}]
    names += [("library", row.runtime) for row in {r.runtime: r for r in known if r.runtime != "tinyengine"}.values()]
    names.append(("fill", ""))
    for step in _STEPS:
        moved = True
        while moved:
            moved = False
            for kind, name in sorted(names):
                for factor in (step, 1.0 / step):
                    tried = _scaled(best, kind, name, factor)
                    found = _loss(known, tried)
                    if found < loss - 1e-9:
                        best, loss, moved = tried, found, True
    return best


def _loss(rows: Sequence[Inference], constants: Constants) -> float:
    return sum(math.log(predicted(row, constants) / row.seconds) ** 2 for row in rows)


def _scaled(constants: Constants, kind: str, name: str, factor: float) -> Constants:
    if kind == "fill":
        return replace(constants, fill=constants.fill * factor)
    if kind == "core":
        core = constants.cores[name]
        return replace(constants, cores={**constants.cores, name: replace(core, cpi=core.cpi * factor)})
    library = constants.libraries[name]
    changed = replace(library, executed=library.executed * factor)
    return replace(constants, libraries={**constants.libraries, name: changed})


def network(name: str, dtype: str) -> Graph:
    """An inference of a catalogued network; `-r64` at the end of a name sets the image's side, as the zoo writes it."""
    base, _, side = name.rpartition("-r")
    if base and side.isdigit() and name not in model_names():
        return inference(base, dtype=dtype, image=int(side))
    return inference(name, dtype=dtype)


@lru_cache(maxsize=512)
def _parts(device: str, runtime: str, name: str, dtype: str) -> _Parts:
    target = find_device(device, **{"mcu.runtime": runtime})
    graph = network(name, dtype)
    plain = {name: replace(core, cpi=1.0) for name, core in FITTED.cores.items()}
    counted = {name: replace(library, executed=1.0) for name, library in FITTED.libraries.items()}
    sums = []
    for fill in (0.0, 1.0):
        micro = micro_of(target, Constants(plain, fill, counted))
        cost = price_program(graph, replace(machine(target), micro=micro))  # type: ignore[arg-type]
        sums.append(_limits(cost, target.main.name))
    return _Parts(sums[0][0], sums[1][1] - sums[0][1], sums[0][1])


def _limits(cost: Any, main: str) -> tuple[float, float]:
    """(seconds of instructions, seconds of stalls) of a program."""
    compute = sum(o.executions * c.limits["compute"] for o in cost.operators for c in o.costs)
    stalls = sum(o.executions * c.limits[main] for o in cost.operators for c in o.costs)
    return float(compute), float(stalls)


def _core(device: str) -> str:
    found = find_device(device)
    if found.mcu is None or found.mcu.core is None:
        raise ValueError(f"device: {device} names no microcontroller core")
    return found.mcu.core


def _library_counts(row: Inference) -> bool:
    """Whether the library's own kernels run: integers, on a core with the DSP extension (or reference kernels)."""
    isa = FITTED.cores[_core(row.device)].isa
    return row.dtype != "fp32" and (isa == "dsp" or row.runtime == "tflm")
