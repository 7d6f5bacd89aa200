"""`peakline plan`: make a training step fit, and say what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from peakline.planning.plan import OffloadPlan

__all__ = ["plan"]

_WORK, _PLAN, _OUTPUT = "Workload", "What may be done", "Output"


def plan(
    model: Annotated[str, typer.Argument(help="Catalogue name, or path of a config.json or its folder.")],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    budget: Annotated[str | None, typer.Option(help="Bytes of the device: 24GiB.", rich_help_panel=_PLAN)] = None,
    host: Annotated[str | None, typer.Option(help="Pinned host memory: 64GiB.", rich_help_panel=_PLAN)] = None,
    ssd: Annotated[str | None, typer.Option(help="A drive behind it: 1TB.", rich_help_panel=_PLAN)] = None,
    allow: Annotated[
        str, typer.Option(help="Of recompute,swap,offload-optimizer,offload-params.", rich_help_panel=_PLAN)
    ] = "recompute,swap",
    host_device: Annotated[
        str, typer.Option(help="The host's memory, by name or file.", rich_help_panel=_PLAN)
    ] = "host-ddr5-8ch",
    ssd_device: Annotated[
        str, typer.Option(help="The drive, by name or file.", rich_help_panel=_PLAN)
    ] = "samsung-pm1743-7.68tb",
    batch: Annotated[int, typer.Option(help="Sequences or images.", rich_help_panel=_WORK)] = 1,
    seq: Annotated[int | None, typer.Option(help="Tokens per sequence.", rich_help_panel=_WORK)] = None,
    image: Annotated[int | None, typer.Option(help="Height and width in pixels.", rich_help_panel=_WORK)] = None,
    dtype: Annotated[str | None, typer.Option(help="Parameters and activations.", rich_help_panel=_WORK)] = None,
    autocast: Annotated[
        str | None, typer.Option(help="Matrix products, mixed precision.", rich_help_panel=_WORK)
    ] = None,
    optimizer: Annotated[
        str, typer.Option(help="In one pass where it is to be offloaded.", rich_help_panel=_WORK)
    ] = "adamw-fused",
    lora: Annotated[int | None, typer.Option(help="Rank of adapters; base frozen.", rich_help_panel=_WORK)] = None,
    loss: Annotated[str | None, typer.Option(help="unfused, native, fused, chunked.", rich_help_panel=_WORK)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PLAN.json", help="The plan.", rich_help_panel=_OUTPUT)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The timeline, for Perfetto.", rich_help_panel=_OUTPUT)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
) -> int:
    """Keep, recompute, move: make a training step fit in the least time, and prove how good that is."""
    import peakline as pk
    from peakline.files import check_target, written_whole

    for path in (out, trace):
        if path is not None:
            check_target(path)
    options: dict[str, Any] = {
        "batch": batch, "seq": seq, "image": image, "dtype": dtype, "autocast": autocast, "optimizer": optimizer,
        "lora": lora, "loss": loss,
    }  # fmt: skip
    graph = pk.training_step(model, **{name: value for name, value in options.items() if value is not None})
    words = [word.strip() for word in allow.split(",") if word.strip()]
    try:
        found = pk.plan(
            graph, device, budget=budget, host=host, ssd=ssd, allow=words, host_device=host_device,
            ssd_device=ssd_device,
        )  # fmt: skip
    except pk.NothingFits as error:
        if json_:
            print(json.dumps({"schema": "peakline.offload/1", "fits": False, "floor_bytes": error.floor}))
        print(error)
        return 1
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(found.to_json(), encoding="utf-8")
    if trace is not None:
        with written_whole(trace) as temporary:
            temporary.write_text(json.dumps(found.timeline.trace()), encoding="utf-8")
    if json_:
        print(found.to_json())
    else:
        _show(found)
    return 0


def _show(found: OffloadPlan) -> None:
    from rich.console import Console

    from peakline.planning.text import lines

    console = Console()
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
