"""What a step really allocates on the CPU, by torch's own profiler, and how a captured graph compares.

`measure` runs a step for real under `torch.profiler` with memory events and returns every allocation and free of the
last step with the operators they happened in; `compare` sets a captured graph's beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile, record_function

from peakline.memory.lifetimes import unroll
from peakline.models.graph import Graph

STEP = "peakline step"


@dataclass(frozen=True)
class Event:
    """An allocation (positive bytes) or a free (negative), and the operators that were running, innermost last."""

    bytes: int
    within: tuple[str, ...]


@dataclass(frozen=True)
class Truth:
    """Bytes alive when the last step began, the highest during it, and its events."""

    before: int
    peak: int
    events: list[Event]


@dataclass(frozen=True)
class Prediction:
    """The same of a captured graph: bytes of each event with the operator that makes it."""

    before: int
    peak: int
    events: list[Event]


def measure(make_step: Callable[[], Callable[[], None]], steps: int = 3) -> Truth:
    """Build a program and run its steps, all under the profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step = make_step()
        for _ in range(steps):
            with record_function(STEP):
                step()
    kineto = profiler.profiler.kineto_results
    found = sorted(_events(kineto.experimental_event_tree(), ()), key=lambda e: e[0])
    begins = [start for start, _, _, name in found if name == STEP]
    last = begins[-1]
    live = before = 0
    sizes: dict[int, int] = {}
    events, peak = [], 0
    for start, size, within, name in found:
        if name == STEP:
            if start == last:
                before = peak = live
            continue
        live += size
        if STEP not in within and start < last:
            continue
        if start > last:
            if STEP not in within:
                break
            peak = max(peak, live)
            events.append(Event(size, tuple(w for w in within if w != STEP)))
    del sizes
    return Truth(before, peak, events)


def _events(nodes: Any, within: tuple[str, ...]) -> Iterator[tuple[int, int, tuple[str, ...], str]]:
    for node in nodes:
        if node.tag == _EventType.Allocation:
            fields = node.extra_fields
            yield node.start_time_ns, fields.alloc_size, within, ""
            continue
        name = node.name
        if name == STEP:
            yield node.start_time_ns, 0, within, STEP
        yield from _events(node.children, (*within, name))


def predict(graph: Graph) -> Prediction:
    """Events and peak of a captured graph."""
    program = unroll(graph)
    sizes = [int(s) for s in program.sizes]
    live = before = sum(sizes[key] for key in program.resident)
    events, peak = [], live
    for step, dying in zip(program.steps, program.dying):
        within = (step.operator.type, step.name)
        inside = [int(s) for s in program.workspaces.get(id(step.operator), ())]
        born = [sizes[k] for k in step.makes]
        live += sum(born)
        peak = max(peak, live + sum(inside))
        ended = [sizes[k] for k in dying]
        live -= sum(ended)
        passing = [int(s) for s in step.operator.attributes.get("passing", inside)]
        early = step.operator.attributes.get("before", 0)
        moved = [*passing[:early], *born, *passing[early:], *(-s for s in passing), *(-s for s in ended)]
        events += [Event(size, within) for size in moved if size]
    return Prediction(before, peak, events)


@dataclass(frozen=True)
class Comparison:
    """Measured against predicted.

    Attributes:
        peak_error: relative error of the peak.
        unexplained: share of the measured allocations without a counterpart of the same size, or the other way round.
        out_of_order: share of the measured allocations outside of the longest common order.
        missing, invented: sizes measured but not predicted, and the reverse, with the operators.
    """

    truth: Truth
    prediction: Prediction
    peak_error: float
    unexplained: float
    out_of_order: float
    missing: Counter[tuple[int, str]]
    invented: Counter[tuple[int, str]]

    def report(self) -> str:
        """For a person who looks for a rule."""
        lines = [
            f"before {self.truth.before:,} predicted {self.prediction.before:,}",
            f"peak {self.truth.peak:,} predicted {self.prediction.peak:,} error {self.peak_error:+.3%}",
            f"unexplained {self.unexplained:.2%}, out of order {self.out_of_order:.2%} of {_count(self.truth)}",
        ]
        for title, found in (("missing", self.missing), ("invented", self.invented)):
            lines += [f"  {title} {n} x {size:,} in {where}" for (size, where), n in found.most_common(25)]
        return "\n".join(lines)


def compare(truth: Truth, prediction: Prediction) -> Comparison:
    """Match allocations by size."""
    measured = [e for e in truth.events if e.bytes > 0]
    predicted = [e for e in prediction.events if e.bytes > 0]
    have, want = Counter(e.bytes for e in predicted), Counter(e.bytes for e in measured)
    missing, invented = want - have, have - want
    wrong = max(missing.total(), invented.total())
    common = in_order([e.bytes for e in measured], [e.bytes for e in predicted])
    return Comparison(
        truth,
        prediction,
        (prediction.peak - truth.peak) / truth.peak,
        wrong / max(len(measured), 1),
        1 - common / max(len(measured), 1),
        _named(missing, measured),
        _named(invented, predicted),
    )


def in_order(one: list[int], other: list[int]) -> int:
    """Length of the longest common subsequence, by the rows of its table."""
    row = [0] * (len(other) + 1)
    for a in one:
        diagonal = 0
        for place, b in enumerate(other, 1):
            above = row[place]
            row[place] = diagonal + 1 if a == b else max(above, row[place - 1])
            diagonal = above
    return row[-1]


def _named(sizes: Counter[int], events: list[Event]) -> Counter[tuple[int, str]]:
    places: dict[int, Counter[str]] = {}
    for event in events:
        if event.bytes in sizes:
            places.setdefault(event.bytes, Counter())[" > ".join(event.within[-4:])] += 1
    return Counter(
        {(size, "; ".join(f"{where} ({n})" for where, n in places[size].most_common(3))): count
         for size, count in sizes.items()}
    )  # fmt: skip


def _count(truth: Truth) -> int:
    return sum(1 for event in truth.events if event.bytes > 0)
