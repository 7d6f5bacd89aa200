"""A validation of sources as Markdown: by GPU, by stratum, the worst misses, what was not predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from peakline.validation.markdown import markdown, percent
from peakline.validation.validate import MISS, WORST, Validation

__all__ = ["percentages", "sources_report"]

GOAL = 0.01
"""What the report counts as a wrong peak: predictions are meant to be nearer."""

_COLUMNS = """`calibrated` is the median of |predicted/measured − 1| with the device's calibration, on shapes that took
no part in its fit, `p90` its 90 % quantile and `signed` its median; `uncalibrated` is the median with the constants
that GPUs of one build share, `left out` the same when they come from the other GPUs alone, `roofline` that of the
datasheet's roofline. `within` is the share of rows inside the calibration's interval, which is made to hold 80 %."""


def sources_report(validation: Validation, sources: Sequence[object]) -> str:
    """The report's Markdown."""
    parts = [f"# Predictions beside {', '.join(str(source).rstrip('/').split('/')[-1] for source in sources)}\n"]
    parts.append(
        f"Written by `peakline validate {' '.join(str(s).rstrip('/').split('/')[-1] for s in sources)} --write FILE`.\n"
    )
    table = validation.table
    if len(table):
        parts += [
            f"{len(table):,} measured kernels. {_COLUMNS}\n",
            f"## By GPU\n\n{percentages(validation.by_gpu)}\n",
            f"## By size\n\n{percentages(validation.strata)}\n",
            f"## By what bounds\n\n{percentages(_bound(validation))}\n",
        ]
    if len(validation.memory):
        parts.append(f"## Peak memory\n\n{_memory(validation.memory)}\n")
    if len(validation.host):
        text = percent(float(validation.host["error"].abs().median()), sign=False)
        parts.append(
            f"## Operators on a CPU\n\n{len(validation.host):,} operators, cold, by rates fitted on others of the same "
            f"recording (docs/calibration.md): median |error| {text}.\n\n{_shares(validation.by_operator)}\n"
        )
    if len(validation.traffic):
        exact = int((validation.traffic["error"] == 0).sum())
        parts.append(
            f"## Bytes that Triton kernels move\n\nCounted under Triton's interpreter, beside the formulas of their "
            f"tiles: {exact} of {len(validation.traffic)} match to the byte.\n\n{_shares(validation.by_kernel)}\n"
        )
    missed = validation.misses
    if len(missed):
        counts = missed.groupby(["source", "gpu"]).size().rename("misses").reset_index()
        worst = missed.groupby(["source", "gpu"], sort=False).head(3).head(WORST * 3)
        shown = worst.assign(error=[percent(e) for e in worst["error"]])[
            ["source", "gpu", "shape", "error", "explanation"]
        ]
        parts.append(
            f"## Misses\n\n{len(missed):,} predictions are more than {MISS:.0%} wrong "
            "(`--misses FILE` lists them all):\n\n"
            f"{markdown(counts)}\n\nThe worst of each:\n\n{markdown(shown)}\n"
        )
    if len(validation.left_out):
        parts.append(f"## Not predicted\n\n{markdown(validation.left_out)}\n")
    return "\n".join(parts)


def _bound(validation: Validation) -> pd.DataFrame:
    from peakline.validation.kernels import strata

    return strata(validation.table, ["source", "gpu", "dtype", "bound_by"])


def percentages(table: pd.DataFrame) -> str:
    """A pipe table of strata, errors as percentages; empty where there is no calibration."""
    shares = ["calibrated", "p90", "signed", "uncalibrated", "left out", "roofline", "within"]

    def text(value: float, name: str) -> str:
        return "" if np.isnan(value) else f"{value * 100:+.1f} %" if name == "signed" else f"{value * 100:.1f} %"

    return markdown(table.assign(**{name: [text(v, name) for v in table[name]] for name in shares}))


def _shares(table: pd.DataFrame) -> str:
    """A pipe table whose errors are percentages."""
    shares = [name for name in ("median", "p90", "worst") if name in table]
    return markdown(table.assign(**{name: [percent(v, sign=False) for v in table[name]] for name in shares}))


def _memory(memory: pd.DataFrame) -> str:
    known = memory[memory["error"].notna()]
    head = ""
    if len(known):
        size = known["error"].abs()
        over = int((size > GOAL).sum())
        head = (
            f"{len(known)} of {len(memory)} runs predicted: median |error| {percent(float(size.median()), sign=False)}"
            f", 95th percentile {percent(float(size.quantile(0.95)), sign=False)}; "
            f"{over} more than {GOAL:.0%} wrong.\n\n"
        )
    shown = memory.assign(
        measured=[_mib(v) for v in memory["measured"]],
        predicted=[_mib(v) for v in memory["predicted"]],
        error=["" if pd.isna(e) else percent(e) for e in memory["error"]],
    ).rename(columns={"measured": "measured MiB", "predicted": "predicted MiB"})
    return head + markdown(shown[["case", "device", "what", "measured MiB", "predicted MiB", "error", "reason"]])


def _mib(value: object) -> str:
    return "" if value is None or pd.isna(value) else f"{float(value) / 2**20:,.2f}"  # type: ignore[call-overload, arg-type]
