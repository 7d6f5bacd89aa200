"""Where a program repeats itself: runs of operators whose kinds and sizes come back with a period.

Every operator becomes a number that says what it does and to tensors of which sizes, but not to which tensors. A layer
executed eighty times is a stretch in which number i equals number i + period. The periods to try are the distances at
which windows of numbers come back; each is tried over the whole program with one comparison of arrays, so the search
is linear in the number of operators. Of runs that overlap those are taken that together fold most operators (weighted
interval scheduling). Runs are *maximal repetitions* (Kolpakov and Kucherov, "Finding maximal repetitions in a word in
linear time", FOCS 1999).
"""

from __future__ import annotations

import marshal
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peakline.models.graph import Operator, Tensor

__all__ = ["Run", "find_runs", "frozen", "numbers", "tensor_kinds"]

LEAST_SAVED = 8
"""Operators that a run must fold away to be worth a family of its own."""

_WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Lengths of the windows whose return suggests a period: a power of two each, hashed from two halves."""

_PERIODS_PER_WINDOW = 48
_MOST_CANDIDATES = 400


@dataclass(frozen=True, slots=True)
class Run:
    """`count` ≥ 2 repetitions of `period` operators, from operator number `start` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """First operator after the run."""
        return self.start + self.period * self.count

    @property
    def saved(self) -> int:
        """Operators that are written once instead of `count` times."""
        return self.period * (self.count - 1)


# ---- operators as numbers --------------------------------------------------------------------------------------------
def tensor_kinds(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, int]]:
    """Two numbers per tensor: of what an operator reads (shape, format, bytes), and of everything but its name."""
    sizes: dict[Any, int] = {}
    kinds: dict[Any, int] = {}
    size_of, kind_of = {}, {}
    for name, t in tensors.items():
        try:
            size = sizes.setdefault((t.shape, t.dtype.name, t.bytes_override), len(sizes))
        except TypeError:  # arrays of a sweep
            size = sizes.setdefault((_plain(t.shape), t.dtype.name, _plain(t.bytes_override)), len(sizes))
        size_of[name] = size
        kind_of[name] = kinds.setdefault((size, t.role, t.trainable, t.storage is None), len(kinds))
    return size_of, kind_of


def numbers(operators: Sequence[Operator], sizes: Mapping[str, int], kinds: Mapping[str, int]) -> NDArray[np.int64]:
    """One number per operator: equal for equal type, phase, attributes, and kinds of tensors in the same places."""
    seen: dict[Any, int] = {}
    found = [
        seen.setdefault(
            (
                o.type,
                o.phase,
                frozen(o.attributes),
                tuple([sizes[n] for n in o.inputs]),
                tuple([kinds[n] for n in o.outputs]),
            ),
            len(seen),
        )
        for o in operators
    ]
    return np.asarray(found, dtype=np.int64)


def frozen(attributes: Mapping[str, Any]) -> Any:
    """A value that is equal for equal attributes, arrays included, and can be hashed."""
    if not attributes:
        return b""
    try:
        return marshal.dumps(dict(attributes), 0)
    except ValueError:
        return repr(_plain(attributes))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return ("array", value.shape, value.tobytes())
    if isinstance(value, Mapping):
        return tuple((k, _plain(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple([_plain(v) for v in value])
    return value


# ---- repetitions -----------------------------------------------------------------------------------------------------
def find_runs(tokens: NDArray[np.int64], modules: Sequence[str], without: Collection[int] = ()) -> list[Run]:
    """Disjoint runs in order, chosen to fold most operators away.

    Args:
        tokens: `numbers` of the operators.
        modules: path of each operator's module. Runs start where the layer's number in the path changes, if it does;
            otherwise where the repetition does.
        without: periods not to use.
    """
    spans: list[tuple[int, int, int]] = []
    for period in _periods(tokens):
        spans.extend(_repetitions(tokens, period))
    spans.sort(key=lambda s: (-((s[1] - s[0]) // s[2] - 1) * s[2], s[2]))
    labels = _Labels(modules)
    runs = {labels.align(*span) for span in sorted(_not_multiples(spans[:_MOST_CANDIDATES])) if span[2] not in without}
    return _schedule([run for run in runs if run.count >= 2 and run.saved >= LEAST_SAVED])


def _periods(tokens: NDArray[np.int64]) -> list[int]:
    """Distances at which windows come back, those that would fold most operators first."""
    total: Counter[int] = Counter()
    hashed = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019)
    length = 1
    for window in _WINDOWS:
        while length < window and len(hashed) > length:
            hashed = hashed[:-length] * np.uint64(0xBF58476D1CE4E5B9) + (hashed[length:] ^ (hashed[length:] >> 29))
            length *= 2
        if length < window or len(hashed) < 2:
            break
        order = np.argsort(hashed, kind="stable")
        same = hashed[order[1:]] == hashed[order[:-1]]
        gaps, counts = np.unique((order[1:] - order[:-1])[same], return_counts=True)
        for at in np.argsort(-counts, kind="stable")[:_PERIODS_PER_WINDOW].tolist():
            total[int(gaps[at])] = max(total[int(gaps[at])], int(counts[at]))
    return sorted(period for period, count in total.items() if count >= 1)


def _repetitions(tokens: NDArray[np.int64], period: int) -> list[tuple[int, int, int]]:
    """(start, stop, period) of the stretches that repeat with this period at least once."""
    equal = np.zeros(len(tokens) - period + 2, dtype=np.int8)
    equal[1:-1] = tokens[:-period] == tokens[period:]
    edges = np.flatnonzero(np.diff(equal))
    starts, stops = edges[::2], edges[1::2]
    long = stops - starts >= max(period, LEAST_SAVED)
    return [(s, e + period, period) for s, e in zip(starts[long].tolist(), stops[long].tolist())]


def _not_multiples(spans: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Without spans that another one contains whose period divides theirs."""
    kept: list[tuple[int, int, int]] = []
    for start, stop, period in sorted(spans, key=lambda s: s[2]):
        if not any(period % p == 0 and s <= start and stop <= e for s, e, p in kept):
            kept.append((start, stop, period))
    return kept


def _schedule(runs: list[Run]) -> list[Run]:
    """The disjoint runs with the largest sum of `saved`."""
    runs = sorted(runs, key=lambda r: (r.stop, r.start, r.period))
    stops = [run.stop for run in runs]
    best: list[tuple[int, int]] = [(0, -1)]  # (saved by the first i runs, the last one taken)
    for i, run in enumerate(runs):
        before = bisect_right(stops, run.start, 0, i)
        best.append(max(best[i], (best[before][0] + run.saved, i), key=lambda entry: entry[0]))
    chosen = []
    i = len(runs)
    while i and best[i][1] >= 0:
        run = runs[best[i][1]]
        chosen.append(run)
        i = bisect_right(stops, run.start, 0, best[i][1])
    return chosen[::-1]


class _Labels:
    """Layer numbers in module paths, to let repetitions start with a layer."""

    def __init__(self, modules: Sequence[str]) -> None:
        self.modules = modules
        self.parts: dict[str, list[str]] = {m: m.split(".") for m in set(modules)}
        self.origin: dict[tuple[str, int], int] = {}

    def align(self, start: int, stop: int, period: int) -> Run:
        """The run within a repetition: whole layers where the modules name them."""
        path = self._path(start, stop, period)
        offset = 0 if path is None else self._boundary(start, stop, period, path)
        return Run(start + offset, period, (stop - start - offset) // period)

    def _path(self, start: int, stop: int, period: int) -> str | None:
        """The path whose number changes from one repetition to the next, by majority."""
        votes: Counter[str] = Counter()
        for at in range(start, min(start + period, stop - period), max(1, period // 256)):
            one, other = self.parts[self.modules[at]], self.parts[self.modules[at + period]]
            for depth, (a, b) in enumerate(zip(one, other)):
                if a != b:
                    if a.isdigit() and b.isdigit():
                        votes[".".join(one[:depth])] += 1
                    break
        return votes.most_common(1)[0][0] if votes else None

    def _number(self, at: int, path: str) -> int | None:
        module = self.modules[at]
        if path and not module.startswith(path + "."):
            return None
        depth = path.count(".") + 1 if path else 0
        parts = self.parts[module]
        return int(parts[depth]) if depth < len(parts) and parts[depth].isdigit() else None

    def _boundary(self, start: int, stop: int, period: int, path: str) -> int:
        """How many operators of a repetition still belong to the layer that began before it."""
        shift = self._shift(start, stop, period, path)
        group = max(1, abs(shift))
        named = (at for at in range(start - 1, max(start - 65, -1), -1) if self.modules[at])
        before = next(named, None)
        last = None if before is None else self._number(before, path)
        first = None
        for at in range(start, start + period):
            number = self._number(at, path)
            if number is not None and number != last:
                low = number if shift >= 0 else number - group + 1
                if first is None:
                    first = at - start
                origin = self.origin.setdefault((path, group), low % group)
                if low % group == origin:
                    return at - start
            last = number if number is not None else last
        return first or 0

    def _shift(self, start: int, stop: int, period: int, path: str) -> int:
        """By how much layer numbers grow from one repetition to the next."""
        steps: Counter[int] = Counter()
        for at in range(start, min(start + period, stop - period), max(1, period // 64)):
            one, other = self._number(at, path), self._number(at + period, path)
            if one is not None and other is not None:
                steps[other - one] += 1
        return steps.most_common(1)[0][0] if steps else 0
