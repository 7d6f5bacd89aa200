"""Sequential models: which stages to run again, by dynamic programming over (first stage, last stage, memory).

A chain of stages is run forward and backward. A forward run of a stage may keep nothing but its output, or all that its
backward run needs. To run stages s…t with m bytes, either keep all of stage s and go on behind it, or run s…j forward,
keep stage j's output alone, treat j+1…t with what is left, and then s…j again from the start:

    opt(s, t, m) = min( uf[s] + opt(s+1, t, m − all[s]) + ub[s],
                        min over j < t:  Σ uf[s…j] + opt(j+1, t, m − out[j]) + opt(s, j, m − Σ left[j+1…t]) )

where left[i] is what the backward run of stage i leaves behind for good (gradients of its parameters); the gradient
that stage t waits with is held meanwhile.

It is the best of all schedules in which what is kept stays until its backward run (*persistent* schedules); one that
drops and makes it again in between may be better in rare cases. Bytes are counted in grains: rounded up a schedule
fits, rounded down its seconds are a lower bound of every persistent schedule.

Source: O. Beaumont et al., "Optimal checkpointing for heterogeneous chains: how to train deep neural networks with
limited memory" (Rotor), arXiv:1911.13214, theorem 1 and §5.2 (memory in 500 slots).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRAINS", "Run", "Schedule", "Stage", "Table", "checkpoint_chain", "least_seconds", "replay"]

FOREVER = float("inf")

GRAINS = 500
"""Grains that the budget is cut into at most (as in the paper)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a chain.

    Attributes:
        forward, backward: seconds.
        output: bytes of what the next stage reads.
        saved: bytes of all that its backward run needs, the output included.
        forward_work, backward_work: further bytes while it runs.
        left: bytes that its backward run leaves behind until the end.
        incoming: bytes of the gradient that its successor hands it, held until its backward run (and counted in
            `backward_work` there).
    """

    forward: float
    backward: float
    output: int
    saved: int
    forward_work: int = 0
    backward_work: int = 0
    left: int = 0
    incoming: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a stage: `forward` (keeps its output), `forward all` (keeps what is saved) or `backward`.

    Attributes:
        drops: stages whose output alone is dropped after it.
    """

    kind: str
    stage: int
    drops: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """Runs in order, and their seconds."""

    runs: tuple[Run, ...]
    seconds: float


class Table:
    """opt(s, t, m) for every m in grains up to `top`, and where to cut (−1: keep all of stage s)."""

    def __init__(self, stages: tuple[Stage, ...], budget: int, grain: int, *, up: bool = True) -> None:
        """Fill the table; sizes are rounded up to whole grains, or down for a bound."""

        def grains(size: int) -> int:
            return -(-size // grain) if up else size // grain

        self.stages, self.top = stages, budget // grain if up else -(-budget // grain)
        self.output = [grains(stage.output) for stage in stages]
        self.saved = [grains(stage.saved) for stage in stages]
        self.forward_work = [grains(stage.forward_work) for stage in stages]
        self.backward_work = [grains(stage.backward_work) for stage in stages]
        self.left = [grains(stage.left) for stage in stages]
        self.incoming = [grains(stage.incoming) for stage in stages]
        self.best: dict[tuple[int, int], NDArray[np.float64]] = {}
        self.cut: dict[tuple[int, int], NDArray[np.int16]] = {}
        for length in range(len(stages)):
            for s in range(len(stages) - length):
                self._fill(s, s + length)

    def behind(self, first: int, last: int) -> int:
        """Grains that the backward runs of these stages leave."""
        return sum(self.left[first : last + 1])

    def _shifted(self, s: int, t: int, by: int) -> NDArray[np.float64]:
        """opt(s, t, m − by) for every m."""
        found = np.full(self.top + 1, FOREVER)
        if by <= self.top:
            found[by:] = self.best[s, t][: self.top + 1 - by]
        return found

    def _fill(self, s: int, t: int) -> None:
        stage, m = self.stages[s], np.arange(self.top + 1)
        work = max(self.forward_work[s] + self.incoming[t], self.backward_work[s] + self.behind(s + 1, t))
        rest = self._shifted(s + 1, t, self.saved[s]) if s < t else np.zeros(self.top + 1)
        best = np.where(m >= self.saved[s] + work, stage.forward + rest + stage.backward, FOREVER)
        cut = np.full(self.top + 1, -1, dtype=np.int16)
        run, need = 0.0, 0
        for j in range(s, t):
            before = self.output[j - 1] if j > s else 0
            need = max(need, before + self.output[j] + self.forward_work[j] + self.incoming[t])
            if need > self.top:
                break
            run += self.stages[j].forward
            right, again = self._shifted(j + 1, t, self.output[j]), self._shifted(s, j, self.behind(j + 1, t))
            found = np.where(m >= need, run + right + again, FOREVER)
            better = found < best
            best[better], cut[better] = found[better], j
        self.best[s, t], self.cut[s, t] = best, cut

    def schedule(self, m: int) -> Schedule | None:
        """The fastest schedule of the whole chain in m grains; None where none fits."""
        t = len(self.stages) - 1
        seconds = float(self.best[0, t][m])
        return None if seconds == FOREVER else Schedule(tuple(self.runs(0, t, m)), seconds)

    def runs(self, s: int, t: int, m: int) -> list[Run]:
        """The schedule of opt(s, t, m)."""
        cut = int(self.cut[s, t][m])
        if cut < 0:
            rest = self.runs(s + 1, t, m - self.saved[s]) if s < t else []
            return [Run("forward all", s), *rest, Run("backward", s)]
        ahead = [Run("forward", i, (i - 1,) if i > s else ()) for i in range(s, cut + 1)]
        right = self.runs(cut + 1, t, m - self.output[cut])
        right[-1] = Run(right[-1].kind, right[-1].stage, (*right[-1].drops, cut))
        return [*ahead, *right, *self.runs(s, cut, m - self.behind(cut + 1, t))]


def checkpoint_chain(stages: tuple[Stage, ...], budget: int, *, grains: int = GRAINS) -> Schedule | None:
    """The fastest persistent schedule within `budget` bytes beside the chain's input; None where none fits.

    O(stages³ · grains), vectorised over the grains. It is exact where the budget has no more bytes than grains.
    """
    if not stages:
        return Schedule((), 0.0)
    if budget <= 0:
        return None
    table = Table(stages, budget, max(-(-budget // grains), 1))
    return table.schedule(table.top)


def least_seconds(stages: tuple[Stage, ...], budget: int, *, grains: int = GRAINS) -> float:
    """Seconds that no persistent schedule within `budget` bytes can beat; infinite where none fits."""
    if not stages:
        return 0.0
    table = Table(stages, max(budget, 0), max(-(-budget // grains), 1), up=False)
    return float(table.best[0, len(stages) - 1][table.top])


def replay(stages: tuple[Stage, ...], schedule: Schedule) -> tuple[float, int]:
    """Seconds and peak bytes of a schedule, checking that every run finds what it reads.

    Raises:
        ValueError: a run without its input, a backward run out of turn, or one left out.
    """
    outputs: set[int] = set()
    saved: set[int] = set()
    seconds, peak, left, turn = 0.0, 0, 0, len(stages) - 1
    for run in schedule.runs:
        i, stage = run.stage, stages[run.stage]
        if i and i - 1 not in outputs | saved:
            raise ValueError(f"{run.kind} of stage {i} finds no output of stage {i - 1}")
        if run.kind == "backward":
            if i != turn or i not in saved:
                raise ValueError(f"backward of stage {i} comes out of turn or without what it needs")
            work, took, turn = stage.backward_work, stage.backward, turn - 1
        else:
            (saved if run.kind == "forward all" else outputs).add(i)
            work, took = stage.forward_work + stages[turn].incoming, stage.forward
        held = sum(stages[k].output for k in outputs) + sum(stages[k].saved for k in saved)
        seconds, peak = seconds + took, max(peak, held + left + work)
        outputs -= set(run.drops)
        if run.kind == "backward":
            saved.remove(i)
            left += stage.left
    if turn != -1:
        raise ValueError(f"stage {turn} is never run backward")
    return seconds, peak
