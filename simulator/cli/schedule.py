"""`peakline schedule`: order, residency, addresses and traffic of a graph on a scratchpad, with a certificate."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peakline.cli.estimate import workload_of
from peakline.cli.progress import Meter
from peakline.cli.schedule_levels import bytes_of, counted, over_levels, refuse_beside_levels
from peakline.cli.schedule_parts import best_choice, refuse_mixed, split_words
from peakline.cli.schedule_time import Rates, rates_of, shortest, time_lines
from peakline.files import check_target, written_whole

if TYPE_CHECKING:
    from peakline.solvers.alternatives import Choices
    from peakline.solvers.plan import Plan
    from peakline.solvers.problem import Problem
    from peakline.solvers.replay import Replay

__all__ = ["schedule"]

SCHEMA = "peakline.schedule/1"
_NO = 1
_GRAPH, _SOLVER, _OUTPUT, _TIME = "Graph", "Solver", "Output", "Objective time"


def schedule(
    graph: Annotated[
        str, typer.Argument(help="Catalogue name, config.json, peakline.graph/1 JSON, or tensors and operators.")
    ],
    capacity: Annotated[
        str | None,
        typer.Option(metavar="BYTES", help="Of the scratchpad: 1048576, 1MiB; of several levels: 1MiB,32MiB."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="W,W", help="Of a byte over the link behind each level; default 1 each.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="traffic (non-compulsory bytes), time, or peak (smallest over all orders).")
    ] = "traffic",
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="For time: its kernels, its main memory.", rich_help_panel=_TIME)
    ] = None,
    bandwidth: Annotated[
        str | None, typer.Option(metavar="RATE", help="Of the link: 25GB/s.", rich_help_panel=_TIME)
    ] = None,
    compute: Annotated[
        str | None, typer.Option(metavar="RATE", help="For operators in FLOPs: 2TFLOP/s.", rich_help_panel=_TIME)
    ] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Transfers beside operators.", rich_help_panel=_TIME)
    ] = True,
    time_limit: Annotated[
        float, typer.Option(metavar="SECONDS", help="Best plan and bound by then.", rich_help_panel=_SOLVER)
    ] = 60.0,
    allow: Annotated[
        str | None,
        typer.Option(
            metavar="OPTIONS", help="Of bypass, in-place, recompute: what plans may do.", rich_help_panel=_SOLVER
        ),
    ] = None,
    tile: Annotated[
        bool, typer.Option("--tile", help="Operators that do not fit may run in parts.", rich_help_panel=_SOLVER)
    ] = False,
    seed: Annotated[int, typer.Option(help="The same seed gives the same plan.", rich_help_panel=_SOLVER)] = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Processes of the solvers' contest; 1: none but this.", rich_help_panel=_SOLVER)
    ] = None,
    method: Annotated[
        str, typer.Option(help="auto, search, highs, cbc or cp-sat: the exact part.", rich_help_panel=_SOLVER)
    ] = "auto",
    train: Annotated[bool, typer.Option("--train", help="A training step.", rich_help_panel=_GRAPH)] = False,
    prefill: Annotated[bool, typer.Option("--prefill", help="Fill the KV cache.", rich_help_panel=_GRAPH)] = False,
    decode: Annotated[bool, typer.Option("--decode", help="One token each.", rich_help_panel=_GRAPH)] = False,
    infer: Annotated[bool, typer.Option("--infer", help="One forward pass.", rich_help_panel=_GRAPH)] = False,
    batch: Annotated[int | None, typer.Option(help="Sequences or images.", rich_help_panel=_GRAPH)] = None,
    seq: Annotated[int | None, typer.Option(help="Tokens per sequence.", rich_help_panel=_GRAPH)] = None,
    image: Annotated[int | None, typer.Option(help="Height and width in pixels.", rich_help_panel=_GRAPH)] = None,
    dtype: Annotated[str | None, typer.Option(help="Parameters and activations.", rich_help_panel=_GRAPH)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="With --train: adamw, sgd, …; default none.", rich_help_panel=_GRAPH)
    ] = None,
    scope: Annotated[
        str, typer.Option(help="all, or activations (parameters stream from elsewhere).", rich_help_panel=_GRAPH)
    ] = "all",
    only: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Operators whose names start so: a layer.", rich_help_panel=_GRAPH),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="PLAN.json", help="The plan, peakline.plan/1.", rich_help_panel=_OUTPUT)
    ] = None,
    capacity_sweep: Annotated[
        bool,
        typer.Option("--capacity-sweep", help="Traffic from the largest working set to the smallest peak."),
    ] = False,
    points: Annotated[int, typer.Option(help="Of the sweep.", rich_help_panel=_SOLVER)] = 9,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The plan's addresses, or the sweep's curve: .png, .svg, .pdf.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUTPUT)] = False,
) -> int:
    """Order, residency, replacement and addresses with the least off-chip traffic, or the smallest peak.

    A problem written by hand is {"tensors": [{"name", "bytes", "role"}], "operators": [{"name", "inputs", "outputs"}]}
    with the roles input, parameter, activation and output. Every plan is replayed before it is reported. Ctrl-C ends
    the work and keeps the best plan so far.

    Exit codes: 0 a plan, 1 none exists or none was found, 2 bad input.
    """
    from peakline.solvers.replay import replay
    from peakline.solvers.replay_time import replay_time
    from peakline.solvers.schedule import Infeasible, NotFound
    from peakline.solvers.schedule import schedule as solve

    if objective not in ("traffic", "time", "peak"):
        raise ValueError(f"--objective: must be one of traffic, time, peak, got {objective!r}")
    sizes = {"batch": batch, "seq": seq, "image": image, "dtype": dtype, "optimizer": optimizer}
    asked = {"training": train, "prefill": prefill, "decode": decode, "inference": infer}
    rates = rates_of(objective, device, bandwidth, compute, overlap)
    given = {k: v for k, v in sizes.items() if v is not None}
    problem, tiled = _problem(graph, asked, given, scope, only, rates, tile)
    if plot is not None:
        from peakline.plot import file_format

        file_format(plot)
    for option, target in (("--out", out), ("--plot", plot)):
        if target is not None:
            check_target(target)
            if target.exists() and Path(graph).exists() and target.samefile(graph):
                raise ValueError(f"{option} {target}: is the graph itself; give another file")
    elsewhere = {
        "--objective time": rates is not None,
        "--allow": allow is not None,
        "--tile": tile,
        "--capacity-sweep": capacity_sweep,
        "several levels": "," in (capacity or ""),
    }
    _refuse_a_contest(jobs, method, [name for name, asked_for in elsewhere.items() if asked_for])
    if allow is not None and objective != "traffic":
        raise ValueError(f"--allow: options change what traffic is least; with --objective {objective} there are none")
    if capacity_sweep:
        chosen = {
            "--allow": allow,
            "--capacity": capacity,
            "--out": out,
            "--objective": None if objective == "traffic" else objective,
        }
        for option, value in chosen.items():
            if value is not None:
                raise ValueError(
                    f"{option}: a capacity sweep chooses the capacities and minimises traffic; got {value}"
                )
        refuse_mixed(tiled(None), tile, "--capacity-sweep", objective, None)
        return _sweep(problem, points, time_limit, seed, plot, json_)
    if capacity is not None and "," in capacity:
        refuse_beside_levels(tiled(None), objective, {"--allow": allow, "--tile": tile, "--plot": plot})
        return over_levels(problem, capacity, weights, time_limit, seed, out, json_)
    if weights is not None:
        raise ValueError("--weights: several levels have them; give as many capacities, such as 1MiB,32MiB")
    size = None if capacity is None else bytes_of(capacity)
    if size is None and objective in ("traffic", "time"):
        raise ValueError(f"--capacity: the least {objective} needs one; --objective peak does not")
    choices = tiled(size) if tile and size is not None else tiled(None)
    refuse_mixed(choices, tile, allow, objective, size)
    try:
        with Meter(_seconds if rates is not None else _bytes, time_limit) as meter:
            if choices.alternatives and size is not None:
                plan = best_choice(choices, size, rates, time_limit, seed, meter)
                problem = choices.expand(plan.alternatives)
            elif rates is not None and size is not None:
                plan = shortest(problem, size, rates, time_limit, seed, meter)
            elif allow is not None and size is not None:
                from peakline.solvers.schedule.allowing import schedule_allowing

                options = tuple(name.strip() for name in allow.split(","))
                plan = schedule_allowing(problem, size, options, time_limit=time_limit, seed=seed, progress=meter)
            else:
                plan = solve(
                    problem,
                    size,
                    objective=objective,  # type: ignore[arg-type]
                    time_limit=time_limit,
                    seed=seed,
                    jobs=jobs,
                    method=method,
                    progress=meter,
                )
    except ImportError as error:
        raise ValueError(str(error)) from error
    except (Infeasible, NotFound) as error:
        _refuse(error, size, json_)
        return _NO
    done = replay(problem, plan)
    if plan.time is not None:
        replay_time(problem, plan)
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(plan.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        from peakline.plot_schedule import plot_addresses, save_axes

        save_axes(plot_addresses(problem, plan), plot)
    if json_:
        print(json.dumps(_document(problem, plan, done, objective)))
    else:
        print("\n".join(_lines(problem, plan, done, out)))
    return 0


def _sweep(problem: Problem, points: int, time_limit: float, seed: int, plot: Path | None, as_json: bool) -> int:
    """The curve as a table, JSON of schema `peakline.capacity-sweep/1` (bytes), and a picture."""
    from peakline.hardware.units import format_bytes
    from peakline.solvers.schedule.sweep import capacity_sweep

    with Meter(_bytes, time_limit) as meter:
        meter.tell("the smallest peak")
        curve = capacity_sweep(
            problem, points=points, time_limit=time_limit, seed=seed,
            progress=lambda done, total: meter.tell(f"{done} of {total} capacities"),
        )  # fmt: skip
    if plot is not None:
        from peakline.plot_schedule import plot_capacity, save_axes

        save_axes(plot_capacity(curve), plot)
    if as_json:
        print(json.dumps({"schema": "peakline.capacity-sweep/1", **asdict(curve)}))
        return 0
    print(f"{'capacity':>14} {'non-compulsory':>16} {'bound':>16} {'gap':>7}  compulsory {curve.compulsory:,} B")
    names = {curve.largest_working_set: "largest working set", curve.smallest_peak: "smallest peak"}
    for n, point in enumerate(curve.points):
        gap = (point.non_compulsory - point.bound) / point.non_compulsory if point.non_compulsory else 0.0
        notes = [names[point.capacity]] if point.capacity in names else []
        notes += [f"knee ({format_bytes(point.capacity)})"] if n == curve.knee else []
        line = f"{point.capacity:14,} {point.non_compulsory:16,} {point.bound:16,} {gap:7.1%}  {', '.join(notes)}"
        print(line.rstrip())
    if curve.points[-1].capacity < curve.smallest_peak:
        print(f"interrupted before the smallest peak, {curve.smallest_peak:,}")
    return 0


def _refuse_a_contest(jobs: int | None, method: str, elsewhere: list[str]) -> None:
    """`--jobs` and `--method` say who competes over plain traffic or peak; nowhere else do solvers compete."""
    if elsewhere and (jobs is not None or method != "auto"):
        option = "--jobs" if jobs is not None else "--method"
        raise ValueError(f"{option}: solvers compete over plain traffic and peak only, not with {elsewhere[0]}")


def _problem(
    graph: str,
    asked: dict[str, bool],
    options: dict[str, Any],
    scope: str,
    only: str | None,
    rates: Rates | None,
    tile: bool,
) -> tuple[Problem, Callable[[int | None], Choices]]:
    """What the argument names, as a scheduling problem, and its alternatives for a capacity (None: those of a file)."""
    from peakline.scheduling import part_of, problem_of, read_problem
    from peakline.solvers.alternatives import Choices

    path = Path(graph)
    if path.suffix == ".json" and not path.exists():
        raise ValueError(f"{graph}: no such file")
    found = read_problem(path) if path.suffix == ".json" and path.is_file() else None
    if found is not None and (options or any(asked.values())):
        raise ValueError(f"{graph}: a graph in a file is scheduled as it is; workload options apply to models")
    if found is None:
        if asked["training"]:
            options = {"optimizer": "none", **options}
        found = workload_of(graph, asked, options)
    if isinstance(found, Choices):
        if scope != "all":
            raise ValueError(f"--scope {scope}: a file lists its own tensors; leave the others out there")
        if only is not None and found.alternatives:
            raise ValueError(f"--only {only}: a part of a file that offers alternatives is not taken; give the part")
        given = Choices(found.problem if only is None else part_of(found.problem, only), found.alternatives)

        def stated(capacity: int | None) -> Choices:
            if capacity is not None and not given.alternatives:  # a capacity is asked for with --tile alone
                raise ValueError(f"--tile: {graph} says nothing of how operators split; give them alternatives there")
            return given

        return given.problem, stated
    made = found
    problem = problem_of(made, scope=scope, work=rates.work if rates is not None else None)  # type: ignore[arg-type]
    problem = problem if only is None else part_of(problem, only)

    def tilings(capacity: int | None) -> Choices:
        from peakline.tilings import with_tilings

        return Choices(problem) if capacity is None else with_tilings(made, problem, capacity)

    return problem, tilings


def _document(problem: Problem, plan: Plan, done: Replay, objective: str) -> dict[str, Any]:
    """The JSON of schema `peakline.schedule/1`: the plan's figures, without its steps; bytes and seconds."""
    stated = plan.to_dict()
    return {
        "schema": SCHEMA,
        "status": stated["time" if "time" in stated else "certificate"]["status"],
        "objective": objective,
        "operators": len(problem.operators),
        "tensors": len(problem.tensors),
        "capacity": plan.capacity,
        **({"alternatives": stated["alternatives"]} if "alternatives" in stated else {}),
        "traffic": stated["traffic"],
        "peak": plan.peak,
        "arena": done.arena,
        "certificate": stated["certificate"],
        **({"used": _used(plan)} if plan.allow else {}),
        **({"time": {k: v for k, v in stated["time"].items() if k != "queue"}} if "time" in stated else {}),
    }


def _used(plan: Plan) -> dict[str, int]:
    """How often the plan does what `--allow` lets it do: operands bypassed, outputs in place, runs beyond the first."""
    return {
        "bypass": sum(len(step.bypass) for step in plan.steps),
        "in-place": sum(len(step.in_place) for step in plan.steps),
        "recompute": len(plan.steps) - len({step.operator for step in plan.steps}),
    }


def _refuse(error: Exception, capacity: int | None, as_json: bool) -> None:
    """Say why there is no plan, and what capacity would do."""
    from peakline.solvers.schedule import Infeasible

    proven = isinstance(error, Infeasible)
    if as_json:
        document = {"schema": SCHEMA, "status": "infeasible" if proven else "unknown", "capacity": capacity}
        if isinstance(error, Infeasible):
            document |= {"smallest_capacity": error.smallest, "forced_by": error.operator}
        print(json.dumps({**document, "reason": str(error)}))
    else:
        print(error)


def _lines(problem: Problem, plan: Plan, done: Replay, out: Path | None) -> list[str]:
    """The answer in words."""
    from peakline.hardware.units import format_bytes

    proof, moved = plan.certificate, plan.traffic
    timed = time_lines(plan.time) if plan.time is not None else []
    used = {name: n for name, n in _used(plan).items() if name in plan.allow}
    proven = f"objective {_bytes(proof.objective)}, bound {_bytes(proof.lower_bound)}, gap {proof.gap:.1%}"
    lines = [
        f"{counted(problem)}, capacity {format_bytes(plan.capacity)}",
        f"traffic   {format_bytes(moved.load + moved.store)}: load {format_bytes(moved.load)}, "
        f"store {format_bytes(moved.store)}; compulsory {format_bytes(moved.compulsory)}, "
        f"non-compulsory {format_bytes(moved.non_compulsory)} ({_bytes(moved.non_compulsory)})",
        f"peak      {format_bytes(plan.peak)} resident, addresses up to {format_bytes(done.arena)}",
        *([f"in parts  {split_words(plan.alternatives)}"] if plan.alternatives else []),
        *([f"used      {', '.join(f'{n} × {name}' for name, n in used.items())}"] if used else []),
        *(timed or [f"proven    {proof.status}: {proven}"]),
        f"method    {plan.time.method if plan.time is not None else proof.method} ({proof.seconds:.2f} s)",
    ]
    return [*lines, f"written   {out}"] if out is not None else lines


def _bytes(count: float) -> str:
    return f"{count:,.0f} B"


def _seconds(time: float) -> str:
    from peakline.hardware.units import format_time

    return format_time(time)
