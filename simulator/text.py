"""An estimate in words and tables: for a terminal, for a pipe, for a notebook.

`headline` answers in five lines; `tables` breaks the answer down. Both are plain data, so that the command line can
colour them, `explain` can join them into text, and `html` into a page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from peakline.hardware.units import format_bytes, format_energy, format_power, format_rate, format_time

if TYPE_CHECKING:
    from peakline.cost.program import OperatorCost
    from peakline.result import Estimate

__all__ = ["Table", "explain", "fragment", "headline", "html", "operator_table", "tables"]

_BAR_WIDTH = 24
_TOP = 10


@dataclass(frozen=True)
class Table:
    """A small table of finished text.

    Attributes:
        title: one line.
        columns: headings; a heading that starts with `<` is set flush left, others flush right.
        rows: cells, as text.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def headings(self) -> tuple[str, ...]:
        """Headings without their alignment marks."""
        return tuple(column.removeprefix("<") for column in self.columns)

    @property
    def left(self) -> tuple[bool, ...]:
        """Which columns are flush left."""
        return tuple(column.startswith("<") for column in self.columns)

    def lines(self) -> list[str]:
        """The table as aligned text, title first."""
        cells = [self.headings, *self.rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        out = [self.title]
        for row in cells:
            parts = [c.ljust(w) if left else c.rjust(w) for c, w, left in zip(row, widths, self.left)]
            out.append(("  " + "  ".join(parts)).rstrip())
        return out


def explain(est: Estimate) -> str:
    """The estimate as plain text: five lines that answer, tables that break it down, notes."""
    parts = ["\n".join(headline(est))]
    parts += ["\n".join(table.lines()) for table in tables(est)]
    if est.notes:
        parts.append("\n".join(["Notes", *(f"  - {note}" for note in est.notes)]))
    return "\n\n".join(parts)


def html(est: Estimate) -> str:
    """The same as an HTML fragment, for notebooks."""
    return fragment(headline(est), tables(est), est.notes)


def fragment(head: Sequence[str], tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Lines, tables to fold out, and notes as an HTML fragment without scripts, styles or links of its own."""
    first, *rest = head
    out = [f"<div class='peakline'><p><b>{escape(first)}</b><br>{'<br>'.join(map(escape, rest))}</p>"]
    for table in tables:
        out.append(f"<details><summary>{escape(table.title)}</summary><table><thead><tr>")
        out += [f"<th>{escape(heading)}</th>" for heading in table.headings]
        out.append("</tr></thead><tbody>")
        for row in table.rows:
            cells = (
                f"<td style='text-align:{'left' if left else 'right'}'>{escape(cell)}</td>"
                for cell, left in zip(row, table.left)
            )
            out.append(f"<tr>{''.join(cells)}</tr>")
        out.append("</tbody></table></details>")
    if notes:
        out.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>")
    return "".join([*out, "</div>"])


# ---- the five lines -------------------------------------------------------------------------------------------------
def headline(est: Estimate) -> list[str]:
    """Five lines: does it fit, where is the peak, what dominates it, how long does it take, what bounds that."""
    if est.graph.is_sweep:
        return _sweep_headline(est)
    return [_fits_line(est), _peak_line(est), _dominates_line(est), _time_line(est), _bounds_line(est)]


def _fits_line(est: Estimate) -> str:
    memory = est.memory
    peak, capacity = int(est.peak), memory.capacity
    verdict = "Fits" if est.fits else "Does not fit"
    line = f"{verdict}: {format_bytes(peak)} of {format_bytes(capacity)} ({peak / capacity:.0%}) on {est.device.name}"
    if not est.fits and peak > capacity:
        line += f", {format_bytes(peak - capacity)} too much"
    for name, (used, room) in memory.stores.items():
        line += f"; {name} {format_bytes(used)} of {format_bytes(room)}"
    return line + f"  [{est.graph.name}, {_workload_words(est.graph.workload)}]"


def _peak_line(est: Estimate) -> str:
    memory = est.memory
    return f"Peak: {format_bytes(memory.live)} live while {memory.peak_operator} runs ({memory.peak_phase})"


def _dominates_line(est: Estimate) -> str:
    shares = [
        f"{_words(role)} {format_bytes(held, 3)} ({held / est.memory.live:.0%})"
        for role, held in _descending(est.memory.by_role)[:3]
    ]
    return f"Dominated by: {', '.join(shares)}"


def _time_line(est: Estimate) -> str:
    cost = est.cost
    line = (
        f"Time: {format_time(cost.tiled, 3)}{_interval(est)} tiled (io {format_time(cost.io, 3)}, "
        f"bound {format_time(cost.bound, 3)})"
    )
    rate = _throughput(est)
    if rate is not None:
        line += f", {rate[0]:,.{0 if rate[0] >= 100 else 1}f} {rate[1]}/s"
    if cost.flops and cost.tiled:
        line += f", {format_rate(cost.flops / cost.tiled, 3, 'FLOP' if est.device.kind != 'mcu' else 'OP')}"
    return line


def _interval(est: Estimate) -> str:
    """` (52–63 ms)` where the device carries a calibration."""
    interval = est.time_interval
    return "" if interval is None else f" ({format_time(interval[0], 3)}–{format_time(interval[1], 3)})"


def _bounds_line(est: Estimate) -> str:
    shares = [f"{name} {share:.0%}" for name, share in est.shares.items() if share >= 0.005][:4]
    return f"Bounded by: {', '.join(shares)} of the time"


def _sweep_headline(est: Estimate) -> list[str]:
    memory, cost = est.memory, est.cost
    fits = np.asarray(est.fits)
    dominant = [f"{_words(role)} {_range(held, format_bytes)}" for role, held in _descending(memory.by_role)[:3]]
    bounds = [f"{name} {float(np.mean(share)):.0%}" for name, share in est.shares.items() if np.mean(share) >= 0.005]
    return [
        f"Fits: {int(fits.sum()):,} of {fits.size:,} configurations on {est.device.name}"
        f"  [{est.graph.name}, {_workload_words(est.graph.workload)}]",
        f"Peak: {_range(est.peak, format_bytes)} of {format_bytes(memory.capacity)}",
        f"Dominated by: {', '.join(dominant)}",
        f"Time: {_range(cost.tiled, format_time)} tiled (io {_range(cost.io, format_time)}, "
        f"bound {_range(cost.bound, format_time)})",
        f"Bounded by: {', '.join(bounds[:4])} of the time, on average",
    ]


def _workload_words(workload: Mapping[str, Any]) -> str:
    """`training, batch 1, seq 8192, bf16, adamw, recompute full` from the workload's plain values."""
    named = ("batch", "seq", "context", "image", "accumulation", "autocast", "kv_dtype", "weight_dtype", "lora_rank")
    parts = [str(workload[key]) for key in ("phase",) if key in workload]
    for key in named:
        if key in workload:
            value = workload[key]
            parts.append(f"{_words(key)} {_range(value, str) if np.ndim(value) else value}")
    parts += [str(workload[key]) for key in ("dtype", "optimizer") if workload.get(key) not in (None, "none")]
    if workload.get("recompute", "none") != "none":
        parts.append(f"recompute {workload['recompute']}")
    return ", ".join(parts) or "a graph"


def _throughput(est: Estimate) -> tuple[float, str] | None:
    """Tokens, sequences or images per second, as the workload counts them."""
    if est.produced is None or not est.cost.tiled:
        return None
    unit, count = est.produced
    return int(count) / float(est.cost.tiled), unit


# ---- the breakdown --------------------------------------------------------------------------------------------------
def tables(est: Estimate) -> list[Table]:
    """The breakdown: memory by role, the four sizes, the largest tensors, time by phase and kind, traffic."""
    if est.graph.is_sweep:
        return []
    found = [_roles_table(est), _sizes_table(est), _largest_table(est), _phase_table(est)]
    operators = est.cost.operators
    found.append(_time_table(est, "Time by operator type", "type", operators, lambda o: o.type))
    found.append(_time_table(est, "Time by module", "module", operators, lambda o: o.module or "(none)"))
    found.append(_traffic_table(est))
    found += _energy_tables(est)
    if est.memory.arena is not None:
        found.insert(3, _arena_table(est))
    return found


def operator_table(est: Estimate) -> Table:
    """Every operator of the program in order, layers together: executions, time, FLOPs, bytes and what limits it."""
    rows = [
        (
            o.name,
            o.phase,
            f"{o.executions}",
            format_time(o.executions * o.seconds("tiled"), 3),
            _scientific(o.executions * o.flops),
            format_bytes(int(o.executions * (o.reads + o.writes)), 3),
            _limit([o]),
        )
        for o in est.cost.operators
    ]
    return Table("Operators", ("<operator", "<phase", "times", "time", "FLOPs", "bytes", "<limited by"), tuple(rows))


def _roles_table(est: Estimate) -> Table:
    live = est.memory.live
    rows = [
        (_words(role), format_bytes(held), f"{held / live:.1%}", _bar(held / live))
        for role, held in _descending(est.memory.by_role)
    ]
    return Table("Memory at the live peak", ("<role", "bytes", "share", "<"), tuple(rows))


def _sizes_table(est: Estimate) -> Table:
    memory = est.memory
    meaning = {
        "live": "tensors alive at once",
        "allocated": "with rounding, in the allocator's blocks",
        "reserved": "held by the allocator from the driver",
        "context": "context and libraries outside the allocator",
        "device": "what the device must hold",
        "capacity": "what it has",
    }
    rows = [
        (name, format_bytes(value), f"{value / memory.capacity:.1%}", words)
        for name, words in meaning.items()
        if (value := getattr(memory, name)) is not None
    ]
    rows += [(name, format_bytes(used), f"{used / room:.1%}", f"of {format_bytes(room)}")
             for name, (used, room) in memory.stores.items()]  # fmt: skip
    if memory.retries:
        rows.append(("retries", str(memory.retries), "", "cached memory given back to the driver to go on"))
    return Table("Peaks", ("<measure", "bytes", "share", "<meaning"), tuple(rows))


def _largest_table(est: Estimate) -> Table:
    rows = [(t.tensor, _words(t.role), str(t.count), format_bytes(t.bytes)) for t in est.memory.largest]
    return Table("Largest tensors at the live peak", ("<tensor", "<role", "alive", "bytes"), tuple(rows))


def _arena_table(est: Estimate) -> Table:
    arena = est.memory.arena
    assert arena is not None
    largest = sorted(arena.lifetimes, key=lambda t: -t.size)[:_TOP]
    rows = [(t.name, str(arena.offsets[t.name]), str(t.size), f"{t.first}–{t.last}") for t in largest]
    title = f"Arena by {_words(arena.rule)}: {arena.size:,} bytes, {arena.overhead:.1%} above the most alive at once"
    return Table(title, ("<tensor", "offset", "size", "operators"), tuple(rows))


def _phase_table(est: Estimate) -> Table:
    total = est.cost.tiled or 1.0
    rows = []
    for phase, members in _grouped(est.cost.operators, lambda o: o.phase).items():
        tiled, io, bound = (sum(o.executions * o.seconds(f) for o in members) for f in ("tiled", "io", "bound"))
        rows.append((phase, *(format_time(t, 3) for t in (tiled, io, bound)), f"{tiled / total:.1%}", _limit(members)))
    return Table("Time by phase", ("<phase", "tiled", "io", "bound", "share", "<limited by"), tuple(rows))


def _time_table(
    est: Estimate, title: str, heading: str, operators: Iterable[OperatorCost], key: Callable[[OperatorCost], str]
) -> Table:
    total = est.cost.tiled or 1.0
    groups = _grouped(operators, key)
    seconds = {name: sum(o.executions * o.seconds("tiled") for o in members) for name, members in groups.items()}
    rows = [
        (
            name,
            format_time(seconds[name], 3),
            f"{seconds[name] / total:.1%}",
            _scientific(sum(o.executions * o.flops for o in groups[name])),
            _limit(groups[name]),
        )
        for name, _ in _descending(seconds)[:_TOP]
    ]
    if len(groups) > _TOP:
        title += f" (top {_TOP} of {len(groups)})"
    return Table(title, (f"<{heading}", "time", "share", "FLOPs", "<limited by"), tuple(rows))


def _traffic_table(est: Estimate) -> Table:
    cost = est.cost
    rows = []
    for level, moved in cost.traffic.items():
        least = cost.io_lower_bound.get(level)
        ratio = f"{moved / least:.2f}×" if least else ""
        rows.append((level, format_bytes(moved), format_bytes(least) if least is not None else "", ratio))
    return Table(
        "Traffic against the least that any schedule moves", ("<level", "tiled", "least", "ratio"), tuple(rows)
    )


def _energy_tables(est: Estimate) -> list[Table]:
    """Joules by part, and what a token or an image takes; nothing where they are not known."""
    energy = est.energy
    if energy is None:
        return []
    total = float(energy.total)
    rows = [
        (_words(name), format_energy(joules, 3), f"{joules / total:.1%}", "derived" if name in energy.derived else "")
        for name, joules in _descending(energy.parts)
    ]
    rows.append(("together", format_energy(total, 3), format_power(energy.watts, 3), "on average"))
    if energy.at_limit is not None:
        rows.append(("at the limit", format_energy(energy.at_limit, 3), format_power(energy.tdp or 0.0, 3), "at most"))
    if est.produced is not None:
        one = est.produced[0][:-1]
        rows.append(
            (f"{'an' if one[0] in 'aeiou' else 'a'} {one}", format_energy(total / est.produced[1], 3), "", "at least")
        )
    title = "Energy" if "active" in energy.parts else "Energy, at least"
    return [Table(title, ("<part", "joules", "share", "<"), tuple(rows))]


# ---- small things ---------------------------------------------------------------------------------------------------
def _grouped(operators: Iterable[OperatorCost], key: Callable[[OperatorCost], str]) -> dict[str, list[OperatorCost]]:
    groups: dict[str, list[OperatorCost]] = {}
    for operator in operators:
        groups.setdefault(key(operator), []).append(operator)
    return groups


def _limit(members: Sequence[OperatorCost]) -> str:
    """The resource that limits most of these operators' time."""
    seconds: dict[str, float] = {}
    for operator in members:
        for cost in operator.costs:
            name = str(cost.limited_by)
            seconds[name] = seconds.get(name, 0.0) + operator.executions * float(cost.tiled)
    return max(seconds, key=lambda name: seconds[name]) if seconds else ""


def _descending(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(values.items(), key=lambda item: -float(np.mean(item[1])))


def _range(values: Any, write: Callable[[Any], str]) -> str:
    """`12 GiB to 90 GiB`; one value where they agree."""
    low, high = write(np.min(values).item()), write(np.max(values).item())
    return low if low == high else f"{low} to {high}"


def _bar(share: float) -> str:
    eighths = round(share * _BAR_WIDTH * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _scientific(count: Any) -> str:
    return f"{float(count):.3g}" if count else "0"
