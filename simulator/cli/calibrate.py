"""`peakline calibrate`: fit a device's constants on measured kernels."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["calibrate"]


def calibrate(
    device: Annotated[
        str, typer.Argument(help="A GPU: name, alias or YAML file; or local, for this machine.", metavar="DEVICE")
    ],
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

    if device == "local":
        return _local(list(sources or ()), write, as_json)
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


def _local(sources: list[str], write: Path | None, as_json: bool) -> int:
    """Fit this machine on a recording of it, or on one made now."""
    from rich.console import Console
    from rich.table import Table

    from peakline.calibration.local import calibrate_local
    from peakline.files import check_target

    if len(sources) > 1:
        raise ValueError(f"local: one recording at most, got {len(sources)}")
    if write is not None:
        check_target(write)
    if not sources:
        Console(stderr=True).print("recording operators on this machine for about a minute and a half …", style="dim")
    found = calibrate_local(sources[0] if sources else None)
    if write is not None:
        found.write(write)
    if as_json:
        rows = found.table.to_dict(orient="records")
        print(json.dumps({"schema": "peakline.calibration/1", "device": dict(found.tree), "held_out": rows}, indent=2))
        return 0
    console = Console()
    memory, compute = found.tree["memory"]["dram"], found.tree["compute"]
    console.print(f"{found.tree['title']}, {compute['units']} cores", markup=False)
    for name, entry in compute["matrix"].items():
        console.print(f"  products in {name}: {entry['value']}", markup=False)
    console.print(f"  scalar operations: {compute['vector']['fp32']['value']}", markup=False)
    console.print(f"  main memory: {memory['bandwidth']['value']}", markup=False)
    console.print(f"  starting an operator: {found.tree['software']['launch']['value']}", markup=False)
    table = Table("operator", "format", "held-out rows", "median |error|", "p90")
    for row in found.table.to_dict(orient="records"):
        errors = f"{row['median']:.0%}", f"{row['p90']:.0%}"
        table.add_row(str(row["operator"]), str(row["dtype"]), str(row["rows"]), *errors)
    console.print(table)
    for reason, count in found.left_out.items():
        console.print(f"left out: {count} × {reason}", style="dim", markup=False)
    if write is not None:
        print(f"wrote {write}")
    return 0
