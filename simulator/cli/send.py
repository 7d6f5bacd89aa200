"""`peakline report`: an estimate, and a plan, as one HTML file to send around."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from peakline.cli.estimate import device_of, estimated, with_workload

__all__ = ["report"]

_PLAN, _OUTPUT = "Plan", "Output"


@with_workload
def report(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, path of a config.json or its folder, or your MODULE:FUNCTION.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="REPORT.html", help="The file.", rich_help_panel=_OUTPUT)],
    plan: Annotated[
        bool, typer.Option("--plan", help="Also a plan that makes a training step fit.", rich_help_panel=_PLAN)
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Bytes of the device that the plan may use: 24GiB.", rich_help_panel=_PLAN)
    ] = None,
    allow: Annotated[
        str, typer.Option(help="Of recompute,swap,offload-optimizer,offload-params.", rich_help_panel=_PLAN)
    ] = "recompute,swap",
    **flags: Any,
) -> int:
    """Memory, allocations, time line, roofline and assumptions in one HTML file that needs no network."""
    import peakline as pk
    from peakline.files import check_target

    check_target(out)
    result = estimated(model, device_of(device, flags.pop("set_")), **flags)
    found = None
    if plan or budget is not None:
        words = [word.strip() for word in allow.split(",") if word.strip()]
        found = pk.plan(result.graph, result.device, budget=budget, allow=words)
    pk.report(result, out, plan=found)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
    return 0 if bool(result.fits) or found is not None else 1
