"""Fitting a device: measured kernels in, constants and residuals by kind of kernel out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.calibration.fit import robust_fit
from peakline.calibration.parameters import PARAMETERS
from peakline.cost.gpu import GpuConstants, constants
from peakline.cost.machine import Machine, machine
from peakline.cost.samples import Sample

__all__ = [
    "MOST_ROWS",
    "Residual",
    "calibrated",
    "fit_constants",
    "fit_kind",
    "held_out",
    "is_quantised",
    "residual_of",
    "uncalibrated",
]

MOST_ROWS = 4000
"""Rows a fit looks at: more change no constant by a per cent and only take time."""
FEWEST_ROWS = 30
"""Fewer rows than this do not determine a kind's constants."""
SHARE = 0.8
"""Share of held-out rows that an interval covers: between the 10 % and the 90 % quantile of measured/predicted."""

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Residual:
    """What a fit leaves unexplained, on rows that took no part in it.

    Attributes:
        rows: how many.
        before, median: median of |predicted/measured − 1| with the shared constants, and with the fitted ones.
        p90: its 90 % quantile, fitted.
        low, high: quantiles of measured/predicted between which `SHARE` of the rows lie.
    """

    rows: int
    before: float
    median: float
    p90: float
    low: float
    high: float


def held_out(sample: Sample) -> NDArray[np.bool_]:
    """Which rows of a sample are kept from the fit: half of the shapes, by a checksum of the shape alone.

    The same shape falls on the same side on every GPU and in every table.
    """
    words = sample.shapes.astype(str).agg(",".join, axis=1)
    return np.array([zlib.crc32(word.encode()) & 1 == 1 for word in words], dtype=bool)


def uncalibrated(device: Any) -> Machine:
    """The machine with the shared constants, whatever its device file was fitted to."""
    found = machine(device)
    return replace(found, attainable={}) if found.attainable else found


def calibrated(target: Machine, fitted: Mapping[str, float]) -> Machine:
    """The machine with fitted constants (`gemm.main_share` and so on)."""
    return replace(target, attainable=dict(fitted))


def start_of(target: Machine, kind: str, names: Sequence[str]) -> Vector:
    """ln of the shared constants of a kind on a machine."""
    shared = constants(target, kind)
    start: Vector = np.log(np.array([_shared(shared, name, target) for name in names], dtype=np.float64))
    return start


def _shared(shared: GpuConstants, name: str, target: Machine) -> float:
    if name == "launch_fixed":  # fitted as one figure: seconds
        return shared.launch_fixed + shared.launch_cycles / target.clock
    if name == "issue":
        return target.launch or shared.launch_fixed
    if name == "sustained" and not shared.sustained:
        return target.sustained
    return float(getattr(shared, name))


def fit_kind(
    kind: str,
    samples: Sequence[Sample],
    target: Machine,
    known: Mapping[str, float] | None = None,
    only: Sequence[str] = (),
) -> dict[str, float]:
    """Constants of one kind of kernel that explain the samples best, as `kind.constant` → value.

    `known` are constants of other kinds, fitted before; `only` names the constants to fit (all of the kind).

    Raises:
        ValueError: if there are too few rows.
    """
    chosen = [thinned(sample, MOST_ROWS // max(len(samples), 1)) for sample in samples]
    rows = sum(len(sample) for sample in chosen)
    if rows < FEWEST_ROWS:
        raise ValueError(f"calibrating {kind!r} on {target.name} needs at least {FEWEST_ROWS} rows, got {rows}")
    graph = all(sample.graph for sample in chosen) or "issue" not in PARAMETERS[kind]
    names = [name for name in only or PARAMETERS[kind] if not (graph and name == "issue")]
    low = np.log([PARAMETERS[kind][name].low for name in names])
    high = np.log([PARAMETERS[kind][name].high for name in names])
    measured = np.log(np.concatenate([sample.measured for sample in chosen]))

    def log_model(x: Vector) -> Vector:
        there = calibrated(target, {**(known or {}), **_named(kind, names, x)})
        found: Vector = np.log(np.concatenate([sample.predicted(there) for sample in chosen]))
        return found

    start = start_of(target, kind, names)
    if not graph:  # a floor below every row would never be felt: begin at the fastest tenth
        start[names.index("issue")] = np.quantile(measured, 0.1)
    found = robust_fit(log_model, measured, start, low, high)
    return _named(kind, names, found)


def fit_constants(samples: Sequence[Sample], target: Machine) -> dict[str, float]:
    """Constants of every kind of kernel that has enough rows among the samples.

    Streams go first where they were measured, because the other kinds' samples contain some; else what starting them
    takes is known from layers that quantise their input, once the products are.
    """
    fitted: dict[str, float] = {}
    quantised = [sample for sample in samples if is_quantised(sample) and len(sample)]
    for kind in ("stream", "gemm", "prefill", "decode"):
        if kind == "prefill" and quantised and "stream.launch_fixed" not in fitted and "gemm.launch_fixed" in fitted:
            fitted |= fit_kind("stream", quantised, target, fitted, ("launch_fixed",))
        mine = [sample for sample in samples if sample.kind == kind and len(sample) and not is_quantised(sample)]
        if sum(len(sample) for sample in mine) >= FEWEST_ROWS:
            fitted |= fit_kind(kind, mine, target, fitted)
    return fitted


def is_quantised(sample: Sample) -> bool:
    """Whether a sample is of products that come with kernels of another kind: fp8 layers that quantise their input."""
    return sample.kind == "gemm" and len(sample.parts) > 1


def residual_of(samples: Sequence[Sample], before: Machine, after: Machine) -> Residual:
    """How far off predictions are on the rows of the samples."""
    measured = np.concatenate([sample.measured for sample in samples])
    first = np.concatenate([sample.predicted(before) for sample in samples])
    second = np.concatenate([sample.predicted(after) for sample in samples])
    error = np.abs(second / measured - 1.0)
    low, high = np.quantile(measured / second, [(1.0 - SHARE) / 2.0, (1.0 + SHARE) / 2.0])
    return Residual(
        len(measured), float(np.median(np.abs(first / measured - 1.0))), float(np.median(error)),
        float(np.quantile(error, 0.9)), float(low), float(high),
    )  # fmt: skip


def thinned(sample: Sample, most: int) -> Sample:
    """At most `most` rows of a sample, spread evenly over its checksums."""
    if len(sample) <= most:
        return sample
    order = np.argsort([zlib.crc32(str(i).encode()) for i in range(len(sample))], kind="stable")
    return sample.take(np.sort(order[:most]))


def _named(kind: str, names: Sequence[str], x: Vector) -> dict[str, float]:
    return {f"{kind}.{name}": float(value) for name, value in zip(names, np.exp(x))}
