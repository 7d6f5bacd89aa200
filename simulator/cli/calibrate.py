"""`peakline calibrate`: fit a device's constants on measured kernels."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["calibrate"]


def calibrate(
    device: Annotated[str, typer.Argument(help="A GPU: name, alias or YAML file.", metavar="DEVICE")],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Measurements of it: aiconfigurator (installed), its systems/data folder, a folder of published "
            "tables, or a trace of `peakline record`. Default: aiconfigurator.",
            metavar="[SOURCE]...",
        ),
    ] = None,
    write: Annotated[
        Path | None, typer.Option("--write", help="Keep the calibration in this device file (made if absent).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Fit a handful of physical constants of a GPU on measured kernels, and say what the fit leaves unexplained."""
    from peakline.calibration.calibrate import calibrate as fit

    found = fit(device, *(sources or ()), write=write)
    if as_json:
        residuals = {kind: asdict(residual) for kind, residual in found.residuals.items()}
        out = {"device": found.base.name, "fitted_on": found.fitted_on, "constants": dict(found.constants)}
        print(json.dumps({"schema": "peakline.calibration/1", **out, "residuals": residuals}, indent=2))
        return 0
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{found.base.name}, fitted on {found.fitted_on}", markup=False)
    table = Table("kind", "held-out rows", "before", "after", "p90", "80 % lie within", "constants")
    for kind, r in found.residuals.items():
        constants = ", ".join(
            f"{key.rpartition('.')[2]} {value:.3g}" for key, value in found.constants.items() if key.startswith(kind)
        )
        table.add_row(
            kind, f"{r.rows:,}", f"{r.before:.1%}", f"{r.median:.1%}", f"{r.p90:.1%}", f"{r.low:.2f}–{r.high:.2f}",
            constants,
        )  # fmt: skip
    console.print(table)
    if write is not None:
        print(f"wrote {write}")
    return 0
