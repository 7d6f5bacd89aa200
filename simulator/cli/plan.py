"""`peakline plan`: make a training step fit, and say what it costs."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.cli.estimate import device_of, graph_of, with_workload

if TYPE_CHECKING:
    from peakline.hardware import Device
    from peakline.models.graph import Graph
    from peakline.planning.plan import OffloadPlan

__all__ = ["plan"]

_PLAN, _OUTPUT = "What may be done", "Output"

_NOT_HERE = (
    "train", "prefill", "decode", "infer", "context", "kv_dtype", "weight_dtype", "recompute", "allocator",
    "cuda_graph", "runtime", "patches", "patch_stage",
)  # fmt: skip
"""Of `peakline estimate`: other phases than training, what the plan decides, and how kernels are run."""


@partial(with_workload, without=_NOT_HERE)
def plan(
    model: Annotated[
        str, typer.Argument(help="Catalogue name, path of a config.json or its folder, or your MODULE:FUNCTION.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Catalogue name, or path of a YAML file.")],
    budget: Annotated[str | None, typer.Option(help="Bytes of the device: 24GiB.", rich_help_panel=_PLAN)] = None,
    host: Annotated[str | None, typer.Option(help="Pinned host memory: 64GiB.", rich_help_panel=_PLAN)] = None,
    ssd: Annotated[str | None, typer.Option(help="A drive behind it: 1TB.", rich_help_panel=_PLAN)] = None,
    allow: Annotated[
        str,
        typer.Option(
            help="Of recompute,swap,offload-optimizer,offload-params,quantise-activations.", rich_help_panel=_PLAN
        ),
    ] = "recompute,swap",
    host_device: Annotated[
        str, typer.Option(help="The host's memory, by name or file.", rich_help_panel=_PLAN)
    ] = "host-ddr5-8ch",
    ssd_device: Annotated[
        str, typer.Option(help="The drive, by name or file.", rich_help_panel=_PLAN)
    ] = "samsung-pm1743-7.68tb",
    gpudirect: Annotated[
        bool, typer.Option("--gpudirect", help="The drive bypasses host memory.", rich_help_panel=_PLAN)
    ] = False,
    objective: Annotated[
        str, typer.Option(help="time, or memory: the smallest budget.", rich_help_panel=_PLAN)
    ] = "time",
    slowdown: Annotated[
        float | None, typer.Option(help="With memory: 1.1 is a tenth longer at most.", rich_help_panel=_PLAN)
    ] = None,
    fit: Annotated[
        str, typer.Option(help="allocated, or reserved: fragmentation counted.", rich_help_panel=_PLAN)
    ] = "allocated",
    quantise: Annotated[
        str, typer.Option(help="Compressed activations: int8, int4, fp8.", rich_help_panel=_PLAN)
    ] = "int8",
    optimizer: Annotated[
        str | None,
        typer.Option(help="adamw-fused by default: one pass, as offloading it needs.", rich_help_panel="Training"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="PLAN.json", help="The plan.", rich_help_panel=_OUTPUT)
    ] = None,
    curve: Annotated[
        int | None, typer.Option(metavar="N", help="Plans at N budgets, down to the floor.", rich_help_panel=_PLAN)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="The timeline, or the curve.", rich_help_panel=_OUTPUT)
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The timeline, for Perfetto.", rich_help_panel=_OUTPUT)
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
    **flags: Any,
) -> int:
    """Keep, recompute, move: make a training step fit in the least time, and prove how good that is."""
    import peakline as pk
    from peakline.files import check_target, written_whole
    from peakline.program import names_function

    for path in (out, trace, plot):
        if path is not None:
            check_target(path)
    if plot is not None:
        from peakline.plot import file_format

        file_format(plot)
    if objective == "memory" and (budget is not None or curve is not None):
        raise ValueError("--objective memory finds the budget itself; leave out --budget and --curve")
    if curve is not None and (budget is not None or trace is not None):
        raise ValueError("--curve plans at many budgets; leave out --budget and --trace")
    where = device_of(device, flags.pop("set_"))
    own = names_function(model)  # its optimizer is its own, unless one is named
    graph = graph_of(model, where, train=True, optimizer=optimizer or (None if own else "adamw-fused"), **flags)
    words = [word.strip() for word in allow.split(",") if word.strip()]
    around: dict[str, Any] = {
        "host": host, "ssd": ssd, "allow": words, "host_device": host_device, "ssd_device": ssd_device,
        "gpudirect": gpudirect, "fit": fit, "quantise": quantise,
    }  # fmt: skip
    if curve is not None:
        return _curve(graph, where, curve, around, plot, out, json_)
    try:
        found = pk.plan(graph, where, budget=budget, objective=objective, slowdown=slowdown, **around)
    except pk.NothingFits as error:
        if json_:
            print(json.dumps({"schema": "peakline.offload/1", "fits": False, "floor_bytes": error.floor}))
        else:
            print(error)
        return 1
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(found.to_json(), encoding="utf-8")
    if trace is not None:
        with written_whole(trace) as temporary:
            temporary.write_text(json.dumps(found.timeline.trace()), encoding="utf-8")
    if plot is not None:
        _save(found.plot()[0].figure, plot)
    if json_:
        print(found.to_json())
    else:
        _show(found)
    return 0


def _curve(
    graph: Graph, device: Device, count: int, around: dict[str, Any], plot: Path | None, out: Path | None, json_: bool
) -> int:
    """Plans at many budgets, each printed when it is found."""
    from peakline.files import written_whole
    from peakline.hardware.units import format_bytes, format_time
    from peakline.planning.curve import Curve, curve

    if not 2 <= count <= 1000:
        raise ValueError(f"--curve: {count} budgets; accepted: 2 to 1000")
    pairs = []
    if not json_:
        print(f"{'budget':>12}  {'peak':>12}  {'time':>10}  {'overhead':>8}  {'gap':>6}")
    for budget, found in curve(graph, device, count, **around):
        pairs.append((budget, found))
        if json_:
            continue
        if found is None:
            print(f"{format_bytes(budget):>12}  nothing fits")
        else:
            overhead = round(found.overhead, 3) + 0.0  # no minus before a zero
            cells = (format_bytes(found.peak), format_time(found.seconds), f"{overhead:.1%}", f"{found.gap:.2%}")
            print(
                f"{format_bytes(budget):>12}  {cells[0]:>12}  {cells[1]:>10}  {cells[2]:>8}  {cells[3]:>6}", flush=True
            )
    done = Curve(tuple(b for b, _ in reversed(pairs)), tuple(p for _, p in reversed(pairs)))
    rows = done.table.to_json(orient="records")
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(rows, encoding="utf-8")
    if plot is not None:
        from peakline.planning.pictures import plot_curve

        _save(plot_curve(done).figure, plot)
    if json_:
        print(rows)
    return 0


def _save(figure: Any, path: Path) -> None:
    from peakline.files import written_whole
    from peakline.plot import file_format

    with written_whole(path) as temporary:
        figure.savefig(temporary, format=file_format(path), dpi=130)


def _show(found: OffloadPlan) -> None:
    from rich.console import Console

    from peakline.planning.text import lines

    console = Console()
    for line in lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
