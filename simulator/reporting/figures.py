"""The report's figures, with plotly: memory over time, the allocator's map, the roofline, the time line.

Every function returns a `plotly.graph_objects.Figure`. Text that comes from the user (names of models, tensors and
modules) is escaped, since plotly reads a little HTML in what it shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.hardware.units import format_bytes, format_time
from peakline.palette import ALARM, BINDS, BYTES, CYCLE, GREY, INK, KINDS, ROLES, SECONDS, unit_of
from peakline.timeline import executions

if TYPE_CHECKING:
    from peakline.allocations import AllocationMap
    from peakline.planning.plan import OffloadPlan
    from peakline.result import Estimate
    from peakline.roofline import Roofline

__all__ = ["Span", "allocation_map", "memory", "merged", "operators", "plan_memory", "roofline", "streams"]

MOMENTS = 1500
"""Points of a curve of memory; of the steps between two of them the one with most bytes is drawn."""
FINEST = 1500
"""Runs shorter than this fraction of a time line are drawn together with their neighbours."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a time line: its row, what gives its colour, seconds, and what the pointer shows."""

    row: str
    kind: str
    start: float
    end: float
    text: str


def memory(est: Estimate) -> Any:
    """Live bytes over the run, stacked by role, with the operator under way; lines for the capacity and the device."""
    timeline = {role: np.asarray(amounts) for role, amounts in est.memory.timeline().items()}
    runs = list(executions(est))
    positions = np.asarray([run.position for run in runs])
    total = np.sum(list(timeline.values()), axis=0)[positions]
    shown = _moments(total)
    unit, scale = unit_of(float(total.max(initial=1)), BYTES)
    clock, tick = unit_of(est.time, SECONDS)
    starts = [runs[i].start / tick for i in shown]
    x = [*starts, est.time / tick]
    figure = _figure(f"time in {clock}", f"live bytes in {unit}", hovermode="x unified")
    for role in (role for role in ROLES if role in timeline):
        held = timeline[role][positions][shown]
        if not held.any():
            continue
        figure.add_scatter(
            x=x, y=[*(held / scale), held[-1] / scale], name=role.replace("_", " "), stackgroup="live", mode="lines",
            line={"width": 0, "shape": "hv"}, fillcolor=ROLES[role],
            customdata=[format_bytes(int(b), 4) for b in [*held, held[-1]]], hovertemplate="%{customdata}",
        )  # fmt: skip
    named = [f"{escape(runs[i].step.name)} ({runs[i].step.operator.phase})" for i in shown]
    figure.add_scatter(
        x=x, y=[*(total[shown] / scale), total[shown][-1] / scale], name="operator", mode="lines", showlegend=False,
        line={"width": 0.8, "color": INK, "shape": "hv"}, customdata=[*named, "the end"],
        hovertemplate="%{customdata}",
    )  # fmt: skip
    levels = [("capacity", est.memory.capacity, ALARM)]
    if est.memory.device is not None:
        levels.append(("device", int(est.memory.device), INK))
    for name, level, colour in levels:
        if level <= 2.5 * float(total.max(initial=1)):
            _level(figure, level / scale, f"{name} {format_bytes(level)}", colour, x[-1])
    figure.update_xaxes(range=[0, x[-1]])
    figure.update_yaxes(rangemode="tozero")
    return figure


def allocation_map(shown: AllocationMap) -> Any:
    """Address × time, a rectangle for each allocation; the pointer shows its operator, module and bytes."""
    unit, scale = unit_of(shown.top, BYTES)
    clock, tick = unit_of(shown.seconds, SECONDS)
    figure = _figure(f"time in {clock}", f"address in {unit}", hovermode="closest", barmode="overlay")
    for role, colour in ROLES.items():
        blocks = [a for a in shown.allocations if a.role == role]
        if not blocks:
            continue
        figure.add_bar(
            orientation="h", name=role.replace("_", " "),
            base=_rounded(a.start / tick for a in blocks), x=_rounded((a.end - a.start) / tick for a in blocks),
            y=_rounded((a.address + a.bytes / 2) / scale for a in blocks),
            width=_rounded(a.bytes / scale for a in blocks),
            marker={"color": colour, "line": {
                "width": [0.5 if 80 * a.bytes > shown.top else 0 for a in blocks],  # small ones would be all edge
                "color": "white",
            }},
            customdata=[
                [*map(escape, (a.tensor, a.operator, a.module or "-")), format_bytes(a.bytes), f"{a.bytes:,}",
                 format_time(a.start, 3), format_time(a.end, 3)]
                for a in blocks
            ],
            hovertemplate="<b>%{customdata[0]}</b><br>operator %{customdata[1]}<br>module %{customdata[2]}"
            "<br>%{customdata[3]} (%{customdata[4]} bytes)<br>%{customdata[5]} to %{customdata[6]}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[0, shown.seconds / tick])
    figure.update_yaxes(range=[0, 1.02 * shown.top / scale])
    return figure


def roofline(found: Roofline) -> Any:
    """Rate against intensity, both logarithmic: slopes of the levels, peaks of the units, operators as points."""
    figure = _figure("operations per byte", "operations per second", hovermode="closest")
    levels = found.levels
    colour = dict(zip(reversed(levels), CYCLE))
    total = sum(p.seconds for p in found.points) or 1.0
    finite = [x for p in found.points for level in p.bytes if 0 < (x := p.intensity(level)) < float("inf")] or [1.0]
    ridges = [found.ridge(level) for level in levels]
    low, high = min(finite) / 3, max(*finite, *ridges, 1.0) * 3
    peaks = [roof for roof in found.roofs if not roof.slanted]
    top = max((roof.rate for roof in peaks), default=1.0)
    for roof in found.roofs:
        if roof.slanted:
            ridge = min(max(top / roof.rate, low), high)
            figure.add_scatter(
                x=[low, ridge, high], y=[min(low * roof.rate, top), min(ridge * roof.rate, top), top], mode="lines",
                name=f"{roof.name} {_engineering(roof.rate)}B/s", hoverinfo="skip",
                line={"color": colour.get(roof.name, GREY), "dash": "solid" if roof.name in colour else "dot"},
            )  # fmt: skip
    for roof in peaks:
        figure.add_scatter(
            x=[low, high], y=[roof.rate] * 2, mode="lines", name=f"{roof.name} {_engineering(roof.rate)}op/s",
            line={"color": INK, "width": 1, "dash": "solid" if "matrix" in roof.name else "dash"}, hoverinfo="skip",
        )  # fmt: skip
    for level in levels:
        points = [p for p in found.points if level in p.bytes]
        figure.add_scatter(
            x=[p.intensity(level) for p in points], y=[p.rate for p in points], mode="markers", name=f"at {level}",
            marker={"color": colour[level], "opacity": 0.8, "line": {"width": 0.6, "color": "white"},
                    "size": [6 + 34 * (p.seconds / total) ** 0.5 for p in points]},
            customdata=[
                [escape(p.operator), p.phase, format_time(p.seconds, 3), f"{p.seconds / total:.1%}", escape(p.bound_by),
                 _engineering(p.rate), f"{p.intensity(level):.3g}"]
                for p in points
            ],
            hovertemplate="<b>%{customdata[0]}</b> (%{customdata[1]})<br>%{customdata[2]}, %{customdata[3]} of the time"
            "<br>%{customdata[5]}op/s at %{customdata[6]} op/B<br>bound by %{customdata[4]}<extra></extra>",
        )  # fmt: skip
    floor = min((p.rate for p in found.points), default=top / 1e3) / 4
    figure.update_xaxes(type="log", range=[np.log10(low), np.log10(high)], exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", range=[np.log10(floor), np.log10(top * 3)], exponentformat="power", dtick=1)
    return figure


def operators(est: Estimate) -> Any:
    """The run's operators on a time line, a row for each phase, coloured by the resource that limits them."""

    def bind(run: Any) -> str:
        costs = run.price.costs
        return str(max(costs, key=lambda c: float(c.tiled)).limited_by) if costs else "compute"

    spans = [
        Span(
            run.step.operator.phase,
            bind(run),
            run.start,
            run.start + run.seconds,
            f"<b>{escape(run.step.name)}</b><br>{escape(run.step.operator.type)} in {escape(run.price.module or '-')}"
            f"<br>{format_time(run.seconds, 3)}",
        )
        for run in executions(est)
        if run.price is not None and run.seconds > 0
    ]
    kinds = list(dict.fromkeys(span.kind for span in spans))
    colours = {kind: BINDS.get(kind, ALARM if kind in ("host", "ssd") else BINDS["main"]) for kind in kinds}
    return _bars(merged(spans, est.time / FINEST), est.time, colours, "bound by ")


def streams(plan: OffloadPlan) -> Any:
    """What every stream of a plan does over the step, coloured by kind."""
    timeline = plan.timeline
    spans = [
        Span(
            run.task.stream,
            run.task.kind,
            run.start,
            run.end,
            f"<b>{escape(run.task.name)}</b><br>{escape(run.task.kind)}, {format_time(run.seconds, 3)}"
            + (f"<br>{format_bytes(run.task.moves)} moved" if run.task.moves else ""),
        )
        for run in timeline.runs
        if run.seconds > 0
    ]
    return _bars(merged(spans, timeline.makespan / FINEST), timeline.makespan, KINDS, "")


def plan_memory(plan: OffloadPlan) -> Any:
    """Bytes on the device over the planned step, with the room that they may take."""
    level = plan.timeline.levels["device"]
    held = np.asarray([amount for _, amount in level], dtype=np.int64)
    shown = _moments(held)
    unit, scale = unit_of(float(max(plan.room, held.max())), BYTES)
    clock, tick = unit_of(plan.seconds, SECONDS)
    x = [*(level[i][0] / tick for i in shown), plan.seconds / tick]
    figure = _figure(f"time in {clock}", f"bytes on the device in {unit}", hovermode="x unified")
    amounts = [*held[shown], held[-1]]
    figure.add_scatter(
        x=x, y=[amount / scale for amount in amounts], mode="lines", name="tensors", fill="tozeroy",
        line={"shape": "hv", "width": 1, "color": ROLES["parameter"]}, fillcolor=ROLES["activation"],
        customdata=[format_bytes(int(amount), 4) for amount in amounts], hovertemplate="%{customdata}",
    )  # fmt: skip
    _level(figure, plan.room / scale, f"room {format_bytes(plan.room)}", ALARM, x[-1])
    figure.update_xaxes(range=[0, x[-1]])
    return figure


def merged(spans: Iterable[Span], least: float) -> list[Span]:
    """Spans shorter than `least` seconds drawn together with the short ones of their kind and row right after them.

    The gaps between them, each shorter than `least` too, count as busy; the text says how many runs there are.
    """
    out: list[Span] = []
    count: list[int] = []
    last: dict[str, int] = {}
    for span in sorted(spans, key=lambda s: s.start):
        at = last.get(span.row)
        if at is not None:
            before = out[at]
            short = span.end - span.start < least and before.end - before.start < least
            if short and span.kind == before.kind and span.start - before.end < least:
                count[at] += 1
                first = before.text.split("<br>and ")[0]
                taken = format_time(span.end - before.start, 3)
                text = f"{first}<br>and {count[at]} more of {escape(span.kind)} in {taken}"
                out[at] = Span(span.row, span.kind, before.start, span.end, text)
                continue
        last[span.row] = len(out)
        out.append(span)
        count.append(0)
    return out


def _bars(spans: Sequence[Span], seconds: float, colours: dict[str, str], prefix: str) -> Any:
    clock, tick = unit_of(seconds, SECONDS)
    rows = list(dict.fromkeys(span.row for span in spans))
    figure = _figure(f"time in {clock}", "", hovermode="closest", barmode="overlay", height=150 + 46 * len(rows))
    for kind in dict.fromkeys(span.kind for span in spans):
        part = [span for span in spans if span.kind == kind]
        figure.add_bar(
            orientation="h", name=f"{prefix}{kind}", y=[span.row for span in part],
            base=_rounded(span.start / tick for span in part),
            x=_rounded((span.end - span.start) / tick for span in part), width=0.8,
            marker={"color": colours.get(kind, GREY), "line": {"width": 0}},
            customdata=[span.text for span in part], hovertemplate="%{customdata}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(range=[0, seconds / tick])
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1], fixedrange=True)
    return figure


# ---- small things ---------------------------------------------------------------------------------------------------
def _figure(x: str, y: str, *, height: int = 430, **layout: Any) -> Any:
    from plotly import graph_objects  # type: ignore[import-untyped, unused-ignore]

    figure = graph_objects.Figure()
    figure.update_layout(
        template="plotly_white", height=height, margin={"l": 8, "r": 8, "t": 34, "b": 8},
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK}, dragmode="zoom",
        legend={"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0, "font": {"size": 12}},
        hoverlabel={"align": "left", "font": {"size": 12}, "namelength": 20}, bargap=0, **layout,
    )  # fmt: skip
    figure.update_xaxes(title={"text": x, "standoff": 6}, automargin=True, zeroline=False)
    figure.update_yaxes(title={"text": y, "standoff": 6}, automargin=True, zeroline=False)
    return figure


def _level(figure: Any, y: float, text: str, colour: str, end: float) -> None:
    """A horizontal line named in the legend."""
    figure.add_scatter(
        x=[0, end], y=[y, y], mode="lines", name=text, line={"color": colour, "width": 1.4}, hoverinfo="skip"
    )


def _moments(total: Any) -> list[int]:
    """Indices to draw: the highest of each of `MOMENTS` stretches, the first and the last."""
    count = len(total)
    if count <= MOMENTS:
        return list(range(count))
    edges = np.linspace(0, count, MOMENTS + 1).astype(int)
    highest = [int(low + np.argmax(total[low:high])) for low, high in pairwise(edges) if high > low]
    return sorted({0, count - 1, *highest})


def _rounded(values: Iterable[float]) -> list[float]:
    """Seven digits: a pixel of any screen, even zoomed a thousandfold, in half the bytes."""
    return [float(f"{value:.7g}") for value in values]


def _engineering(value: float) -> str:
    for prefix, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {prefix}"
    return f"{value:.3g} "
