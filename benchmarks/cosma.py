"""COSMA's protocol (arXiv:2311.18246) on its fourteen networks: writes a table of docs/scheduling.md.

    python benchmarks/cosma.py [--time-limit 30] [--networks human|searched|all] [--write]

Scratchpads of M_R (largest working set), M_P (smallest peak) and their mean M_H; activations alone, and with
parameters. Four baselines: a linear allocator (each arrival at the lowest address that is free) under the given and
under the smallest-peak order, replacing by furthest next use (Belady) or by the cheapest run of neighbours that makes
room (the greedy optimum of one step). Ours: `schedule`. Every plan, of the baselines too, is replayed. Where M_R = M_P
there is nothing to choose, but baselines may still lose by fragmentation.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from cosma_networks import HUMAN, SEARCHED, without_parameters

from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.order import smallest_peak
from peakline.solvers.plan import Certificate
from peakline.solvers.problem import Problem
from peakline.solvers.replay import replay
from peakline.solvers.schedule import schedule
from peakline.solvers.schedule.episodes import Schedule, episodes, to_plan, traffic
from peakline.solvers.schedule.residents import Residents

PAGE = Path(__file__).parents[1] / "docs" / "scheduling.md"
HEAD = (
    "| network (operators) | scope | capacity, KiB | given order: Belady | greedy | smallest-peak order: Belady "
    "| greedy | ours | bound | gap | s |\n|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"
)


class LinearAllocator(Residents):
    """A fixed order under a capacity: first fit, and evictions where nothing is free."""

    def __init__(self, dag: Dag, order: tuple[int, ...], capacity: int, *, greedy: bool) -> None:
        super().__init__(dag, order, capacity)
        self.order, self.greedy = order, greedy

    def run(self) -> tuple[Schedule, list[int]]:
        """The schedule and the offsets of its episodes."""
        for step, i in enumerate(self.order):
            touched = set(self.dag.inputs[i]) | set(self.dag.outputs[i])
            arrivals = [a for a in (*self.dag.inputs[i], *self.dag.outputs[i]) if a not in self.at]
            if not all(self._arrive(a, step, touched) for a in arrivals):
                self.side_by_side(step, sorted(touched))
            self.pass_step(touched)
        found = Schedule(self.order, frozenset(self.dropped))
        return found, [self.offsets[e.tensor, e.first] for e in episodes(self.dag, found)]

    def _arrive(self, a: int, step: int, touched: set[int]) -> bool:
        size = self.dag.size
        while (bottom := self._lowest_free(size[a])) is None:
            idle = [b for b in self.at if b not in touched]
            if not idle:
                return False
            if self.greedy:
                run = self._cheapest_run(size[a], touched)
                if run is None:
                    return False
                for b in run:
                    self.drop(b)
            else:
                self.drop(max(idle, key=lambda b: (self.events[b][self.used[b]], size[b], -b)))
        self.place(a, step, bottom)
        return True

    def _lowest_free(self, size: int) -> int | None:
        bottom = 0
        for b, low in sorted(self.at.items(), key=lambda item: item[1]):
            if low - bottom >= size:
                break
            bottom = max(bottom, low + self.dag.size[b])
        return bottom if bottom + size <= self.capacity else None

    def _cheapest_run(self, needed: int, touched: set[int]) -> list[int] | None:
        """Idle residents whose leaving frees `needed` contiguous bytes at the least traffic."""
        size = self.dag.size
        best: tuple[int, int, list[int]] | None = None
        for bottom in {0, *(low + size[b] for b, low in self.at.items()), *(self.at.values())}:
            if bottom + needed > self.capacity:
                continue
            inside = [b for b, low in self.at.items() if low < bottom + needed and bottom < low + size[b]]
            if not touched.intersection(inside):
                key = (sum(self.price(b) for b in inside), bottom, inside)
                if best is None or key[:2] < best[:2]:
                    best = key
        return None if best is None else best[2]


def baseline(problem: Problem, dag: Dag, order: tuple[int, ...], capacity: int, *, greedy: bool) -> int:
    """Non-compulsory bytes of a baseline, replayed."""
    found, offsets = LinearAllocator(dag, order, capacity, greedy=greedy).run()
    cost = traffic(dag, found.dropped)
    return replay(problem, to_plan(dag, found, offsets, capacity, Certificate(cost, 0, "", 0.0))).non_compulsory


def rows(name: str, whole: Problem, time_limit: float) -> Iterator[tuple[str, str, list[int], int, str]]:
    """(label of the capacity, scope, the four baselines, ours, the table's row) for each capacity and scope."""
    for scope, problem in (("activations", without_parameters(whole)), ("all", whole)):
        dag = Dag.of(problem)
        order = smallest_peak(dag, time_limit=time_limit)
        least = largest_working_set(dag)[0]
        points = {"M_R": least, "M_H": (least + order.peak) // 2, "M_P": order.peak}
        if least == order.peak:
            points = {"M_R = M_P": least}
        for label, capacity in points.items():
            others = [
                baseline(problem, dag, taken, capacity, greedy=greedy)
                for taken in (dag.problem.given_order, order.operators)
                for greedy in (False, True)
            ]
            plan = schedule(problem, capacity, time_limit=time_limit)
            ours, proof = replay(problem, plan).non_compulsory, plan.certificate
            yield (
                label, scope, others, ours,
                f"| {name} ({len(dag)}) | {scope} | {capacity / 1024:,.1f} ({label}) | "
                + " | ".join(f"{other:,}" for other in others)
                + f" | **{ours:,}** | {proof.lower_bound:,} | {proof.gap:.1%} | {proof.seconds:.1f} |",
            )  # fmt: skip


def summary(results: list[tuple[str, str, str, list[int], int]]) -> list[str]:
    """Average reductions by group, capacity and baseline: 1 − ours / baseline over the networks that it spills on."""
    lines = [
        "| networks | capacity | cases | given order: Belady | greedy | smallest-peak order: Belady | greedy "
        "| all four |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    capacities = {
        "M_R, all": {"M_R", "M_R = M_P"},
        "M_R < M_P": {"M_R"},
        "M_H": {"M_H"},
        "M_P, all": {"M_P", "M_R = M_P"},
    }
    for group in ("human-designed", "found by search"):
        for name, labels in capacities.items():
            cases = [r for r in results if r[0] == group and r[1] in labels]
            cuts = [[1 - ours / o[n] for _, _, _, o, ours in cases if o[n]] for n in range(4)]
            cells = [f"{sum(c) / len(c):.0%} ({len(c)})" if c else "–" for c in (*cuts, [x for c in cuts for x in c])]
            if cases:
                lines.append(f"| {group} | {name} | {len(cases)} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Solve and print, or write into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--time-limit", type=float, default=30.0)
    parser.add_argument("--networks", choices=("human", "searched", "all"), default="all")
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    groups = {"human-designed": HUMAN, "found by search": SEARCHED}
    chosen = {"human": ["human-designed"], "searched": ["found by search"], "all": list(groups)}[given.networks]
    lines, results = [], []
    for group in chosen:
        for name, build in groups[group].items():
            for label, scope, others, ours, line in rows(name, build(), given.time_limit):
                print(line, flush=True)
                lines.append(line)
                results.append((group, label, scope, others, ours))
    short = summary(results)
    print("\n".join(short))
    if given.write:
        table = "<!-- cosma -->\n" + "\n".join(short) + "\n\n" + HEAD + "\n".join(lines) + "\n<!-- end of cosma -->"
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(re.sub(r"<!-- cosma -->.*?<!-- end of cosma -->", lambda _: table, text, flags=re.DOTALL))


if __name__ == "__main__":
    main()
