"""Pictures of plans: the streams over time with the memory they leave, and time against budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from peakline.palette import ALARM, CYCLE, INK, KINDS, SECONDS, axes_or_new, dressed, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from peakline.planning.curve import Curve
    from peakline.planning.plan import OffloadPlan

__all__ = ["plot_curve", "plot_timeline"]

_GIB = float(1 << 30)


def plot_timeline(plan: OffloadPlan, axes: tuple[Axes, Axes] | None = None) -> tuple[Axes, Axes]:
    """What every stream does over the step (above), and bytes on the device with the room they may take (below)."""
    if axes is None:
        from matplotlib.figure import Figure

        grid: Any = Figure(figsize=(10, 5.6), layout="constrained").subplots(2, 1, sharex=True, height_ratios=(1, 1.4))
        axes = (grid[0], grid[1])
    above, below = axes
    timeline = plan.timeline
    clock, tick = unit_of(timeline.makespan, SECONDS)
    streams = [stream for stream in timeline.streams if timeline.busy(stream)]
    for row, stream in enumerate(streams):
        for kind, colour in KINDS.items():
            spans = [
                (run.start / tick, run.seconds / tick)
                for run in timeline.runs
                if run.task.stream == stream and run.task.kind == kind and run.seconds > 0
            ]
            if spans:
                above.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour, label=kind, linewidth=0)
    above.set_yticks(range(len(streams)), streams)
    above.invert_yaxis()
    seen: dict[str, Any] = {}
    for handle, label in zip(*above.get_legend_handles_labels()):
        seen.setdefault(label, handle)
    above.legend(seen.values(), seen.keys(), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    above.set_title(
        f"{plan.graph.name} in {plan.budget / _GIB:.3g} GiB of {plan.device.name}: "
        f"{timeline.makespan / tick:.4g} {clock} a step, {plan.overhead:+.1%}",
        loc="left",
    )
    level = dict(timeline.levels["device"])
    times, held = [t / tick for t in level], [amount / _GIB for amount in level.values()]
    below.fill_between(times, held, step="post", color=CYCLE[4], alpha=0.6, linewidth=0, label="tensors")
    below.axhline(plan.room / _GIB, color=ALARM, linewidth=1.3, label=f"room {plan.room / _GIB:.4g} GiB")
    if plan.baseline_peak < 2.5 * plan.room:
        below.axhline(
            plan.baseline_peak / _GIB, color=INK, linewidth=1, linestyle=(0, (4, 2)),
            label=f"peak without a plan {plan.baseline_peak / _GIB:.4g} GiB",
        )  # fmt: skip
    below.set(xlim=(0, timeline.makespan / tick), ylim=(0, None), xlabel=f"time in {clock}", ylabel="memory in GiB")
    below.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    for ax in axes:
        dressed(ax, legend=False)
    return axes


def plot_curve(curve: Curve, ax: Axes | None = None) -> Axes:
    """Time of a step against budget: the plans, the bound below them, and where nothing fits any more."""
    ax = axes_or_new(ax, 7.5, 4.4)
    pairs = [(b / _GIB, p) for b, p in zip(curve.budgets, curve.plans) if p is not None]
    if not pairs:
        raise ValueError("no plan fits any of the budgets, so there is nothing to draw")
    longest = max(p.seconds for _, p in pairs)
    clock, tick = unit_of(longest, SECONDS)
    budgets = [b for b, _ in pairs]
    ax.plot(budgets, [p.seconds / tick for _, p in pairs], "o-", color=CYCLE[0], label="plan, as simulated")
    ax.plot(budgets, [p.lower_bound / tick for _, p in pairs], "--", color=INK, linewidth=1, label="lower bound")
    ax.axhline(pairs[0][1].baseline_seconds / tick, color=CYCLE[2], linewidth=1, label="with memory enough")
    ax.set(
        xlabel="budget in GiB", ylabel=f"seconds a step in {clock}" if clock == "s" else f"time of a step in {clock}"
    )
    ax.set_title(f"{pairs[0][1].graph.name} on {pairs[0][1].device.name}", loc="left")
    dressed(ax, legend=False)
    ax.legend(frameon=False)
    return ax
