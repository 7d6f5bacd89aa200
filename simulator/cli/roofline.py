"""`peakline roofline`: every operator's intensity at every level of memory, the ridges, and what binds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.cli.estimate import device_of, estimated, with_workload

if TYPE_CHECKING:
    pass

__all__ = ["roofline"]

SCHEMA = "peakline.roofline/1"

_OUTPUT = "Output"


@with_workload
def roofline(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, path of a config.json or its folder, or your MODULE:FUNCTION.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="The picture.", rich_help_panel=_OUTPUT)] = None,
    energy: Annotated[
        bool,
        typer.Option("--energy", help="Operations per joule too; --plot draws these.", rich_help_panel=_OUTPUT),
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
    **flags: Any,
) -> int:
    """How much arithmetic each operator does for the bytes it moves, and what binds it."""
    from peakline.energy_roofline import energy_roofline
    from peakline.roofline import roofline as roofline_of

    if plot is not None:
        from peakline.files import check_target
        from peakline.plot import file_format

        check_target(plot)
        file_format(plot)
    est = estimated(model, device_of(device, flags.pop("set_")), **flags)
    found, joules = roofline_of(est), energy_roofline(est) if energy else None
    if plot is not None:
        from peakline.plot_roofline import plot_energy, plot_roofline
        from peakline.plot_schedule import save_axes

        save_axes(plot_roofline(found) if joules is None else plot_energy(joules), plot)
    if json_:
        more = {} if joules is None else {"energy": joules.to_dict()}
        print(json.dumps({"schema": SCHEMA, **found.to_dict(), **more}, indent=2))
        return 0
    from peakline.cli.report import print_tables

    print(found.title)
    print_tables([*found.tables(), *([joules.table()] if joules else [])])
    return 0
