"""The tables of docs/scheduling-further.md: time, operators in parts, levels, options; `--write` puts them there."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import peakline as pk
from peakline.cost.machine import machine
from peakline.hardware import device
from peakline.models.graph import Graph
from peakline.scheduling import part_of, problem_of
from peakline.solvers.bounds import largest_working_set
from peakline.solvers.dag import Dag
from peakline.solvers.levels import Level, schedule_levels
from peakline.solvers.makespan import fastest
from peakline.solvers.makespan.choosing import fastest_choosing
from peakline.solvers.order import smallest_peak
from peakline.solvers.plan import ALLOWED
from peakline.solvers.problem import Problem
from peakline.solvers.replay import replay
from peakline.solvers.replay_levels import replay_levels
from peakline.solvers.replay_time import replay_time
from peakline.solvers.schedule import Infeasible, schedule
from peakline.solvers.schedule.allowing import schedule_allowing
from peakline.solvers.schedule.choosing import smallest_capacity
from peakline.tilings import with_tilings

PAGE = Path(__file__).parents[1] / "docs" / "scheduling-further.md"
SECONDS = 30.0


def _layer_of_training() -> Graph:
    return pk.training_step("bert-base-uncased", seq=128, batch=1, optimizer="none")


def time_table() -> list[str]:
    """Makespan, its bound, and the time without overlap, at M_R and M_P."""
    layer = "bert.encoder.layer.0."
    cases = [
        ("ResNet-50 int8", pk.inference("resnet-50", dtype="int8"), None, "ethos-u55-256"),
        ("MobileNetV2 int8", pk.inference("mobilenet-v2", dtype="int8"), None, "ethos-u55-256"),
        ("BERT-base layer int8", pk.inference("bert-base-uncased", seq=128, dtype="int8"), layer, "ethos-u55-256"),
        ("BERT-base layer, forward and backward", _layer_of_training(), layer, "a100-40gb"),
    ]
    rows = [
        "| network (operators), device | capacity, KiB | compute, ms | one at a time "
        "| makespan, ms | bound | gap | s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, graph, only, target in cases:
        found = device(target)
        problem = problem_of(graph, work=found)
        problem = part_of(problem, only) if only else problem
        dag = Dag.of(problem)
        least, peak = largest_working_set(dag)[0], smallest_peak(dag, time_limit=10).peak
        for capacity in sorted({least, peak}):
            began = time.perf_counter()
            link = machine(found).supply
            plan = fastest(problem, capacity, bandwidth=link, time_limit=SECONDS)
            spent = time.perf_counter() - began
            replay_time(problem, plan)
            alone = fastest(problem, capacity, bandwidth=link, overlap=False, time_limit=SECONDS)
            assert plan.time is not None
            assert alone.time is not None
            rows.append(
                f"| {name} ({len(problem.operators)}), {target} | {capacity / 1024:,.1f} "
                f"| {1e3 * plan.time.compute:.4g} | {1e3 * alone.time.makespan:.4g} "
                f"| **{1e3 * plan.time.makespan:.4g}** | {1e3 * plan.time.lower_bound:.4g} "
                f"| {plan.time.gap:.1%} | {spent:.0f} |"
            )
    return rows


def parts_table() -> list[str]:
    """Time with operators in parts, at shares of the largest working set."""
    found = device("ethos-u55-256")
    rows = [
        "| network | capacity, KiB | of M_R | operators in parts | non-compulsory | makespan, ms | bound | gap |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, model in (("ResNet-18 int8", "resnet-18"), ("MobileNetV2 int8", "mobilenet-v2")):
        graph = pk.inference(model, dtype="int8")
        problem = problem_of(graph, work=found)
        largest = largest_working_set(Dag.of(problem))[0]
        for share in (1.0, 0.75, 0.5, 0.4):
            capacity = int(share * largest)
            choices = with_tilings(graph, problem, capacity)
            if smallest_capacity(choices)[0] > capacity:
                continue
            plan = fastest_choosing(choices, capacity, bandwidth=machine(found).supply, time_limit=SECONDS)
            replay_time(choices.expand(plan.alternatives), plan)
            assert plan.time is not None
            rows.append(
                f"| {name} | {capacity / 1024:,.0f} | {share:.0%} | {len(plan.alternatives)} "
                f"| {plan.traffic.non_compulsory:,} | {1e3 * plan.time.makespan:.4g} "
                f"| {1e3 * plan.time.lower_bound:.4g} | {plan.time.gap:.1%} |"
            )
    return rows


def levels_table() -> list[str]:
    """Two and three levels, weights growing by 8 outwards."""
    cases = [
        ("ResNet-50 int8", pk.inference("resnet-50", dtype="int8"), None, "all"),
        ("Inception-v3, Mixed_5", pk.inference("inception-v3", dtype="int8"), "Mixed_5", "activations"),
        ("BERT-base layer, forward and backward", _layer_of_training(), "bert.encoder.layer.0.", "activations"),
        ("BERT-base encoder, forward and backward", _layer_of_training(), "bert.encoder.", "activations"),
    ]
    rows = [
        "| network (operators) | levels, KiB | non-compulsory bytes by link | objective | bound | gap | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, graph, only, scope in cases:
        problem = problem_of(graph, scope=scope)  # type: ignore[arg-type]
        problem = part_of(problem, only) if only else problem
        first = largest_working_set(Dag.of(problem))[0]
        for sizes in ((first, 4 * first), (first, 4 * first, 16 * first)):
            levels = [Level(size, 8.0**n) for n, size in enumerate(sizes)]
            began = time.perf_counter()
            plan = schedule_levels(problem, levels, time_limit=2 * SECONDS)
            spent = time.perf_counter() - began
            done = replay_levels(problem, plan)
            moved = ", ".join(f"{done.non_compulsory(n + 1):,}" for n in range(len(sizes)))
            rows.append(
                f"| {name} ({len(problem.operators)}) | {', '.join(f'{size / 1024:,.0f}' for size in sizes)} | {moved} "
                f"| {done.cost:.6g} | {plan.certificate.lower_bound:.6g} | {plan.certificate.gap:.1%} | {spent:.0f} |"
            )
    return rows


def options_table() -> list[str]:
    """Non-compulsory bytes without options, with each, and with all, at the largest working set, or below it."""
    two = ("bert.encoder.layer.0.", "bert.encoder.layer.1.")
    encoder = problem_of(_layer_of_training(), scope="activations")
    renamed = [replace(o, name=f"two: {o.name}") if o.name.startswith(two) else o for o in encoder.operators]
    both = Problem(encoder.tensors, tuple(renamed))
    inception = problem_of(pk.inference("inception-v3", dtype="int8"), scope="activations")
    images = problem_of(pk.inference("resnet-50", dtype="int8"), scope="activations")
    cases = [
        ("ResNet-50 int8", problem_of(pk.inference("resnet-50", dtype="int8")), 1.0),
        ("ResNet-50 int8, activations", images, 1.0),
        ("ResNet-50 int8, activations", images, 2 / 3),
        ("Inception-v3, Mixed_5", part_of(inception, "Mixed_5"), 1.0),
        ("BERT-base layer, forward and backward", part_of(encoder, two[0]), 1.0),
        ("two layers, forward and backward", part_of(both, "two: "), 1.0),
        ("BERT-base encoder, forward and backward", part_of(encoder, "bert.encoder."), 1.0),
    ]
    rows = [
        "| network (operators) | capacity, KiB | of M_R | none | bypass | in-place | recompute (runs) | all (runs) |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, problem, share in cases:
        largest = largest_working_set(Dag.of(problem))[0]
        capacity = int(share * largest)
        cells = [_plan_cell(problem, capacity, allow) for allow in ((), *((option,) for option in ALLOWED), ALLOWED)]
        count = len(problem.operators)
        rows.append(f"| {name} ({count}) | {capacity / 1024:,.0f} | {share:.0%} | {' | '.join(cells)} |")
    return rows


def _plan_cell(problem: Problem, capacity: int, allow: tuple[str, ...]) -> str:
    """Non-compulsory bytes with the bound, if it is another, and how many operators run if some run again."""
    try:
        if allow:
            plan = schedule_allowing(problem, capacity, allow, time_limit=SECONDS / 2)
        else:
            plan = schedule(problem, capacity, time_limit=SECONDS / 2)
    except Infeasible:
        return "does not fit"
    moved = replay(problem, plan).non_compulsory
    bound = plan.certificate.lower_bound
    text = f"{moved:,}" if moved == bound else f"{moved:,} (≥ {bound:,})"
    return text + (f" ({len(plan.steps)} runs)" if "recompute" in allow else "")


def main() -> None:
    """Print the tables named on the command line (all without a name), and with --write put them into the page.

    --seconds N: for each solve (twice that over levels, half for options) in place of 30, as on a loaded machine.
    """
    global SECONDS
    if "--seconds" in sys.argv:
        SECONDS = float(sys.argv[sys.argv.index("--seconds") + 1])
    tables = {"time": time_table, "parts": parts_table, "levels": levels_table, "options": options_table}
    asked = [name for name in sys.argv[1:] if name in tables] or list(tables)
    for name in asked:
        text = "\n".join(tables[name]())
        print(text, flush=True)
        if "--write" in sys.argv:
            page = PAGE.read_text(encoding="utf-8")
            head, rest = page.split(f"<!-- {name} -->\n", 1)
            tail = rest.split(f"<!-- /{name} -->", 1)[1]
            PAGE.write_text(f"{head}<!-- {name} -->\n{text}\n<!-- /{name} -->{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
