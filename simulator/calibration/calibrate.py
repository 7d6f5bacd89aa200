"""`calibrate(device, *sources)`: fit a device's constants on measurements, and keep them in a device file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from peakline.calibration.device import (
    SHARE,
    Residual,
    calibrated,
    fit_constants,
    held_out,
    is_quantised,
    residual_of,
    uncalibrated,
)
from peakline.calibration.parameters import PARAMETERS
from peakline.cost.machine import machine
from peakline.cost.samples import Sample
from peakline.files import check_target, written_whole
from peakline.hardware import Device, device
from peakline.hardware.index import file_of

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Fitted", "calibrate"]

DIGITS = 4


@dataclass(frozen=True)
class Fitted:
    """A calibration of one device.

    Attributes:
        base: the device as it was.
        constants: `kind.constant` → value, in the constant's unit (`peakline.cost.gpu.GpuConstants`).
        residuals: kind of kernel → what the fit leaves on shapes it did not see.
        fitted_on: the measurements, in words.
    """

    base: Device
    constants: Mapping[str, float]
    residuals: Mapping[str, Residual]
    fitted_on: str

    @property
    def section(self) -> dict[str, Any]:
        """The `calibration` section of a device file."""
        attainable: dict[str, float] = {}
        constants: dict[str, float] = {}
        for key, value in self.constants.items():
            kind, _, name = key.rpartition(".")
            (attainable if PARAMETERS[kind][name].share else constants)[key] = _rounded(value)
        residual = {
            f"{kind}.{name}": value
            for kind, r in self.residuals.items()
            for name, value in (
                ("rows", float(r.rows)), ("median", _rounded(r.median)), ("low", _rounded(r.low)),
                ("high", _rounded(r.high)), ("share", SHARE),
            )
        }  # fmt: skip
        return {"fitted_on": self.fitted_on, "attainable": attainable, "constants": constants, "residual": residual}

    @property
    def device(self) -> Device:
        """The device with this calibration: hand it to `estimate` in place of the name."""
        from peakline.hardware.sections import Calibration

        return self.base.model_copy(update={"calibration": Calibration(**self.section)})

    @property
    def table(self) -> pd.DataFrame:
        """One row per kind of kernel: rows held out, median errors before and after, 90 % quantile, interval."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "kind": kind, "held-out rows": r.rows, "median |error| before": r.before, "after": r.median,
                    "p90 after": r.p90, "low": r.low, "high": r.high,
                }
                for kind, r in self.residuals.items()
            ]
        )  # fmt: skip

    def write(self, path: str | PathLike[str]) -> None:
        """Keep the calibration in a device file: an existing one of it, or a new one, a copy of the catalogue's.

        Everything else in the file stays as it is, comments included.

        Raises:
            ValueError: if the file cannot be written, or describes another device.
        """
        target = Path(path)
        check_target(target)
        source = target if target.exists() else _file_of(self.base)
        if target.exists() and (there := device(target)).name != self.base.name:
            raise ValueError(f"{target} describes {there.name!r}, and the calibration is of {self.base.name!r}")
        text = source.read_text(encoding="utf-8")
        with written_whole(target) as temporary:
            temporary.write_text(with_section(text, self.section), encoding="utf-8")
            device_text_is_valid(temporary)


def calibrate(
    device_name: str | PathLike[str] | Device, *sources: Any, write: str | PathLike[str] | None = None
) -> Fitted:
    """Fit the constants of a GPU on measured kernels of it.

    Half of the shapes fit the constants, by a checksum of the shape; the residuals are those of the other half.

    Args:
        device_name: a device by name, file or object.
        sources: where measurements are: `"aiconfigurator"` (the installed package), its `systems/data` folder, a folder
            of published tables, or traces of `peakline record`; nothing: aiconfigurator.
        write: also keep the calibration in this device file.

    Raises:
        ValueError: for an unknown source, one without rows of this device, too few rows, or a device that is no GPU.
    """
    from peakline.calibration.sources import samples_of

    base = device_name if isinstance(device_name, Device) else device(str(device_name))
    if base.kind != "gpu":
        raise ValueError(f"device: {base.name} is a {base.kind}; only the GPU model has constants to calibrate")
    if write is not None:
        check_target(write)
    samples, words = samples_of(sources or ("aiconfigurator",), base)
    fitted = fit(base, samples, words)
    if write is not None:
        fitted.write(write)
    return fitted


def fit(base: Device, samples: Sequence[Sample], words: str) -> Fitted:
    """The calibration of a device on samples, with residuals on their held-out halves."""
    start = uncalibrated(machine(base))
    halves = [(sample, held_out(sample)) for sample in samples]
    constants = fit_constants([sample.take(~out) for sample, out in halves], start)
    if not constants:
        rows = sum(len(sample) for sample in samples)
        raise ValueError(f"{base.name}: {rows} rows measured, too few of any kind of kernel to fit its constants")
    after = calibrated(start, constants)
    residuals = {}
    for kind in PARAMETERS:
        kept = [
            sample.take(out) for sample, out in halves if sample.kind == kind and out.any() and not is_quantised(sample)
        ]
        if kept and any(key.startswith(f"{kind}.") for key in constants):
            residuals[kind] = residual_of(kept, start, after)
    return Fitted(base, constants, residuals, words)


def with_section(text: str, section: Mapping[str, Any]) -> str:
    """A device file's text with its `calibration` section replaced, or added at the end."""
    body = "calibration:\n" + f"  fitted_on: {yaml.safe_dump(section['fitted_on'], width=10_000).splitlines()[0]}\n"
    for name in ("attainable", "constants", "residual"):
        body += f"  {name}:\n"
        kinds = dict.fromkeys(key.rpartition(".")[0] for key in section[name])
        for kind in kinds:
            body += "".join(
                f"    {key}: {value!r}\n" for key, value in section[name].items() if key.startswith(f"{kind}.")
            )
    kept = re.sub(r"(?ms)^calibration:.*?(?=^\S|\Z)", "", text).rstrip("\n")
    return f"{kept}\n\n{body}"


def device_text_is_valid(path: Path) -> None:
    """Read the file back before it takes its place. Raises DeviceFileError."""
    from peakline.hardware.files import read_device

    read_device(path)


def _file_of(base: Device) -> Path:
    name = base.name.partition("[")[0]
    try:
        return Path(file_of(name))
    except (KeyError, ValueError, OSError):
        raise ValueError(f"{base.name}: has no file to add a calibration to; name an existing device file") from None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
