"""The report's page: headline, figures, tables and assumptions in one HTML file that asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from os import PathLike
from typing import TYPE_CHECKING, Any

from peakline.files import check_target, written_whole
from peakline.palette import ALARM, CYCLE, INK

if TYPE_CHECKING:
    from peakline.planning.plan import OffloadPlan
    from peakline.result import Estimate
    from peakline.text import Table

__all__ = ["MOST", "page", "report"]

MOST = 2500
"""Allocations in the map: the largest ones. More make a phone slow, and are thinner than a pixel."""

_STYLE = f"""
:root {{ color-scheme: light; }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 68rem; padding: 1rem; color: {INK}; background: #fff; line-height: 1.45;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1.5rem; margin: 0.2rem 0 0.6rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 0.2rem; border-top: 1px solid #ddd; padding-top: 1rem; }}
p, ul {{ margin: 0.3rem 0; }}
.about {{ color: #555; font-size: 0.92rem; max-width: 48rem; }}
.verdict {{ display: inline-block; padding: 0.15rem 0.6rem; border-radius: 0.5rem; color: #fff; font-weight: 600; }}
.yes {{ background: {CYCLE[0]}; }} .no {{ background: {ALARM}; }}
dl {{ margin: 0.8rem 0; }} dt {{ font-weight: 600; }} dd {{ margin: 0 0 0.5rem; }}
.figure {{ width: 100%; margin-top: 0.5rem; }}
.wide {{ overflow-x: auto; }}
details {{ margin: 0.4rem 0; }} summary {{ cursor: pointer; padding: 0.25rem 0; font-weight: 600; }}
table {{ border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }}
th, td {{ text-align: right; padding: 0.15rem 0.7rem 0.15rem 0; white-space: nowrap; vertical-align: top; }}
th {{ color: #555; font-weight: 500; border-bottom: 1px solid #ccc; }}
.left {{ text-align: left; }}
.long {{ white-space: normal; min-width: 9rem; overflow-wrap: anywhere; }}
footer {{ margin-top: 2.5rem; color: #555; font-size: 0.85rem; border-top: 1px solid #ddd; padding-top: 0.6rem; }}
@media (min-width: 48rem) {{ dl {{ display: grid; grid-template-columns: 8.5rem 1fr; }} dd {{ margin: 0; }} }}
@media (max-width: 30rem) {{ body {{ padding: 0.7rem; }} h1 {{ font-size: 1.25rem; }} }}
"""

_TOUCH = """<script>
// On a touch screen a drag scrolls the page; a tap shows what is under it, and the buttons zoom.
if (matchMedia("(pointer: coarse)").matches)
  document.querySelectorAll(".plotly-graph-div").forEach(figure => Plotly.relayout(figure, {dragmode: false}));
</script>"""

_CONFIGURATION = {
    "responsive": True,
    "displaylogo": False,
    "scrollZoom": False,
    "plotlyServerURL": "",
    "showSendToCloud": False,  # no button that would send anything anywhere
    "modeBarButtonsToRemove": ["lasso2d", "select2d", "toImage"],
}


def report(est: Estimate, path: str | PathLike[str], *, plan: OffloadPlan | None = None) -> None:
    """Write an estimate, and a plan that makes it fit, as one HTML file to send around.

    The file holds everything it shows, the plotting library included (about 5 MB), and asks the network for nothing.
    Needs plotly: `pip install peakline[report]`.

    Args:
        est: one configuration.
        path: of the file; written whole or not at all.
        plan: of `peakline.plan` for the same workload and device.

    Raises:
        ValueError: for a sweep, a plan of another workload or device, or a place that cannot be written.
        ModuleNotFoundError: plotly is not installed.
    """
    check_target(path)
    text = page(est, plan=plan)
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(est: Estimate, *, plan: OffloadPlan | None = None) -> str:
    """The report as HTML text; arguments and errors as for `report`."""
    if est.graph.is_sweep:
        raise ValueError("a sweep has no single report; estimate one configuration")
    if plan is not None and (plan.graph.name, plan.device.name) != (est.graph.name, est.device.name):
        raise ValueError(
            f"plan: it is for {plan.graph.name} on {plan.device.name}, the estimate for {est.graph.name} on "
            f"{est.device.name}"
        )
    try:
        from plotly.offline import get_plotlyjs  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a report is drawn with plotly: pip install peakline[report]") from error
    from peakline import __version__
    from peakline.text import headline, tables

    title = escape(f"{est.graph.name} on {est.device.name}")
    verdict = '<span class="verdict yes">fits</span>' if est.fits else '<span class="verdict no">does not fit</span>'
    parts = [
        f"<header><h1>{title} {verdict}</h1>{_lines(headline(est))}</header>",
        *_memory(est),
        *(_plan(plan) if plan is not None else _operators(est)),
        *_roofline(est),
        '<section id="tables"><h2>In figures</h2>',
        *(_table(table, opened=i == 0) for i, table in enumerate(tables(est))),
        "</section>",
        _assumptions(est, plan),
        f"<footer>peakline {escape(__version__)}: predicted from the workload and the device's published figures, not "
        "measured. Everything shown is in this file.</footer>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title}</title><link rel="icon" href="data:,"><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head>\n<body>\n" + "\n".join(parts) + f"\n{_TOUCH}\n</body></html>\n"
    )


# ---- the sections ---------------------------------------------------------------------------------------------------
def _memory(est: Estimate) -> list[str]:
    from peakline.allocations import allocations
    from peakline.hardware.units import format_bytes
    from peakline.reporting import figures

    shown, left, largest = allocations(est).largest(MOST)
    about = (
        f"Every block where it lies, from when it is made to its last use: {shown.method}. Drag over a part to zoom "
    )
    about += "in, double-click to return; point at a block for its operator, module and bytes."
    if left:
        about += f" The {MOST:,} largest blocks are drawn; {left:,} of at most {format_bytes(largest, 3)} are left out."
    about += "".join(f" {note[0].upper()}{note[1:]}." for note in shown.notes)
    return [
        _section("memory", "Memory over the run", "Live bytes by role; the pointer names the operator under way.",
                 figures.memory(est)),
        _section("allocations", "Every allocation", about, figures.allocation_map(shown)),
    ]  # fmt: skip


def _operators(est: Estimate) -> list[str]:
    from peakline.reporting import figures

    about = "Operators one after the other, coloured by what limits them; neighbours too short to see are joined."
    return [_section("timeline", "Time line", about, figures.operators(est))]


def _plan(plan: OffloadPlan) -> list[str]:
    from peakline.planning.text import headline, tables
    from peakline.reporting import figures

    about = "What every stream does under the plan; neighbours too short to see are joined."
    return [
        f'<section id="plan"><h2>The plan</h2>{_lines(headline(plan))}',
        *(_table(table, opened=True) for table in tables(plan)),
        "</section>",
        _section("timeline", "Time line of the plan", about, figures.streams(plan)),
        _section("plan-memory", "Memory under the plan", "Bytes of tensors on the device, and the room they may take.",
                 figures.plan_memory(plan)),
    ]  # fmt: skip


def _roofline(est: Estimate) -> list[str]:
    from peakline.reporting import figures
    from peakline.roofline import roofline

    found = roofline(est)
    if not found.points or not any(not roof.slanted for roof in found.roofs):
        return []
    about = (
        "Each operator type at the arithmetic it does per byte it moves, at each level of memory; a larger point takes "
        "more of the time. Nothing lies above the roofs: below a slope the memory limits, below a flat line the "
        "arithmetic."
    )
    return [_section("roofline", "Roofline", about, figures.roofline(found))]


def _assumptions(est: Estimate, plan: OffloadPlan | None) -> str:
    notes = dict.fromkeys([*est.notes, *(plan.notes if plan is not None else ())])
    general = (
        "Operators run one after another as tiled: the time that a good library attains; “io” and “bound” in the "
        "tables are what no schedule and no machine of these rates can beat.",
        "Memory is the process's own: other processes on the device are not counted.",
    )
    listed = "".join(f"<li>{escape(note)}</li>" for note in [*notes, *general])
    return f'<section id="assumptions"><h2>Assumptions</h2><ul>{listed}</ul></section>'


# ---- pieces ---------------------------------------------------------------------------------------------------------
def _section(name: str, title: str, about: str, figure: Any) -> str:
    drawn = figure.to_html(
        full_html=False, include_plotlyjs=False, div_id=f"figure-{name}", config=_CONFIGURATION, default_width="100%"
    )
    return (
        f'<section id="{name}"><h2>{escape(title)}</h2><p class="about">{escape(about)}</p>'
        f'<div class="figure">{drawn}</div></section>'
    )


def _lines(lines: Sequence[str]) -> str:
    """Lines of the form `Peak: 12 GiB …` as a list of terms."""
    pairs = [line.partition(":") for line in lines]
    terms = "".join(f"<dt>{escape(head)}</dt><dd>{escape(rest.strip())}</dd>" for head, _, rest in pairs)
    return f"<dl>{terms}</dl>"


def _table(table: Table, *, opened: bool) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        out = []
        for cell, left in zip(cells, table.left):
            kind = " ".join(["left"] * left + ["long"] * (left and len(cell) > 24))
            mark = f' class="{kind}"' if kind else ""
            text = escape(cell).replace(".", ".<wbr>") if left else escape(cell)  # long names break after dots
            out.append(f"<{tag}{mark}>{text}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "".join(row(cells, "td") for cells in table.rows)
    return (
        f"<details{' open' if opened else ''}><summary>{escape(table.title)}</summary>"
        f'<div class="wide"><table><thead>{row(table.headings, "th")}</thead><tbody>{body}</tbody></table></div>'
        "</details>"
    )
