"""`peakline io`: least traffic, best tiling found, and the distance between them, level by level."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.cli.estimate import _HOW, _WAYS, _assignments, device_of, with_workload, workload_of

if TYPE_CHECKING:
    from peakline.hardware import Device
    from peakline.io_complexity.report import IoReport
    from peakline.models.graph import Graph

__all__ = ["io"]

SCHEMA = "peakline.io/1"

_OUTPUT, _MEMORY = "Output", "Memory"


@with_workload
def io(
    what: Annotated[
        str, typer.Argument(metavar="MODEL|OPERATOR", help="As for estimate, or matmul, attention, convolution, mlp, …")
    ],
    sizes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Sizes of an operator: m=4096 n=4096 k=4096.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")
    ] = None,
    capacity: Annotated[
        str | None, typer.Option(metavar="BYTES", help="One fast memory: 192KiB.", rich_help_panel=_MEMORY)
    ] = None,
    level: Annotated[
        str | None, typer.Option(help="Only what comes out of this level.", rich_help_panel=_MEMORY)
    ] = None,
    schedule: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Also a plan of whole tensors, found by then.", rich_help_panel=_MEMORY),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Traffic against capacity.", rich_help_panel=_OUTPUT)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
    **flags: Any,
) -> int:
    """How few bytes it could move through each level of memory, and how few a tiling was found to move."""
    import peakline as pk
    from peakline.io_complexity.operators import operator_from_words, operator_names

    if plot is not None:
        from peakline.files import check_target
        from peakline.plot import file_format

        check_target(plot)
        file_format(plot)
    variant = flags.pop("set_")
    where: Device | None = None if device is None else device_of(device, variant)
    work: Any
    if what in operator_names():
        work = operator_from_words(what, sizes or [])
    elif sizes:
        raise ValueError(f"{what}: is no operator, so it takes no sizes; operators are: {', '.join(operator_names())}")
    else:
        work = _workload(what, flags)
    found = pk.io(work, where, capacity=capacity, level=level, schedule=schedule)
    if plot is not None:
        from peakline.plot_schedule import save_axes

        save_axes(found.plot(), plot)
    _print(found, json_)
    return 0


def _workload(model: str, flags: dict[str, Any]) -> Graph:
    """The graph that the workload's flags ask for; how it would run on a device plays no part."""
    for name in _HOW:
        flags.pop(name)
    asked = {phase: bool(flags.pop(flag)) for flag, phase in _WAYS.items()}
    given = {name: value for name, value in flags.items() if value not in (None, False)}
    if given.pop("no_dropout", False):
        given["dropout"] = False
    if overrides := _assignments("--override", given.pop("override", None)):
        given["overrides"] = overrides
    return workload_of(model, asked, given)


def _print(found: IoReport, json_: bool) -> None:
    if json_:
        print(json.dumps({"schema": SCHEMA, **found.to_dict()}, indent=2))
        return
    from peakline.cli.report import print_tables

    print(found.title)
    print_tables(found.tables())
