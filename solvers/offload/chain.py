"""Sequential models: which stages to run again, by dynamic programming over (first stage, last stage, memory).

A chain of stages is run forward and backward. A forward run of a stage may keep nothing but its output, or all that its
backward run needs. To run stages s…t with m bytes, either keep all of stage s and go on behind it, or run s…j forward,
keep stage j's output alone, treat j+1…t with what is left, and then s…j again from the start:

    opt(s, t, m) = min( uf[s] + opt(s+1, t, m − all[s]) + ub[s],
                        min over j < t:  Σ uf[s…j] + opt(j+1, t, m − out[j]) + opt(s, j, m) )

It is the best of all schedules in which what is kept stays until its backward run (*persistent* schedules); one that
drops and makes it again in between may be better in rare cases.

Source: O. Beaumont et al., "Optimal checkpointing for heterogeneous chains: how to train deep neural networks with
limited memory" (Rotor), arXiv:1911.13214, theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

__all__ = ["Run", "Schedule", "Stage", "checkpoint_chain", "replay"]

FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of a chain.

    Attributes:
        forward, backward: seconds.
        output: bytes of what the next stage reads.
        saved: bytes of all that its backward run needs, the output included.
        forward_work, backward_work: further bytes while it runs.
    """

    forward: float
    backward: float
    output: int
    saved: int
    forward_work: int = 0
    backward_work: int = 0


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


def checkpoint_chain(stages: tuple[Stage, ...], budget: int) -> Schedule | None:
    """The fastest persistent schedule within `budget` bytes beside the chain's input; None where none fits.

    O(stages³ · distinct memories); meant for chains of tens of stages and coarse bytes.
    """

    @cache
    def best(s: int, t: int, m: int) -> tuple[float, int]:
        """(seconds, where to cut); −1 for keeping all of stage s."""
        stage = stages[s]
        found = (FOREVER, -1)
        if stage.saved + max(stage.forward_work, stage.backward_work) <= m:
            rest = best(s + 1, t, m - stage.saved)[0] if s < t else 0.0
            found = (stage.forward + rest + stage.backward, -1)
        run = 0.0
        for j in range(s, t):
            before = stages[j - 1].output if j > s else 0
            if before + stages[j].output + stages[j].forward_work > m:
                break
            run += stages[j].forward
            right = best(j + 1, t, m - stages[j].output)[0]
            if run + right < found[0]:
                found = min(found, (run + right + best(s, j, m)[0], j))
        return found

    def runs(s: int, t: int, m: int) -> list[Run]:
        cut = best(s, t, m)[1]
        if cut < 0:
            rest = runs(s + 1, t, m - stages[s].saved) if s < t else []
            return [Run("forward all", s), *rest, Run("backward", s)]
        ahead = [Run("forward", i, (i - 1,) if i > s else ()) for i in range(s, cut + 1)]
        right = runs(cut + 1, t, m - stages[cut].output)
        right[-1] = Run(right[-1].kind, right[-1].stage, (*right[-1].drops, cut))
        return [*ahead, *right, *runs(s, cut, m)]

    if not stages:
        return Schedule((), 0.0)
    seconds = best(0, len(stages) - 1, budget)[0]
    return None if seconds == FOREVER else Schedule(tuple(runs(0, len(stages) - 1, budget)), seconds)


def replay(stages: tuple[Stage, ...], schedule: Schedule) -> tuple[float, int]:
    """Seconds and peak bytes of a schedule, checking that every run finds what it reads.

    Raises:
        ValueError: a run without its input, a backward run out of turn, or one left out.
    """
    outputs: set[int] = set()
    saved: set[int] = set()
    seconds, peak, turn = 0.0, 0, len(stages) - 1
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
            work, took = stage.forward_work, stage.forward
        held = sum(stages[k].output for k in outputs) + sum(stages[k].saved for k in saved)
        seconds, peak = seconds + took, max(peak, held + work)
        outputs -= set(run.drops)
        if run.kind == "backward":
            saved.remove(i)
    if turn != -1:
        raise ValueError(f"stage {turn} is never run backward")
    return seconds, peak
