"""Solve allocation instances and print the table of `docs/allocation.md`.

    python benchmarks/allocation.py DIRECTORY [--fit 10] [--minimise 60] [--seed 0]

For every CSV file in DIRECTORY (minimalloc's format; the number before `.csv` is its capacity): the best of the
baselines, the time to a placement within the capacity, and the smallest arena and bound found in a longer run. Every
placement is checked by the validator. One process, one thread.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from peakline.solvers.allocation import Allocation, Instance, allocate, liveness_bound, read_csv, validate

HEADINGS = (
    "instance",
    "buffers",
    "live bytes",
    "greedy, best fit",
    "within",
    "seconds",
    "smallest arena",
    "bound",
    "gap",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--fit", type=float, default=10.0, help="seconds to find a placement within the capacity")
    parser.add_argument("--minimise", type=float, default=60.0, help="seconds to find the smallest arena")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| " + " | ".join(HEADINGS) + " |")
    print("|---|" + "---:|" * (len(HEADINGS) - 1))
    for path in sorted(options.directory.glob("*.csv")):
        item = read_csv(path)
        named = re.search(r"\.(\d+)$", path.stem)
        capacity = int(named[1]) if named else liveness_bound(item.buffers)
        baseline = checked(item, allocate(item, method="heuristics"))
        fit = checked(item, allocate(item, capacity, time_limit=options.fit, seed=options.seed), capacity)
        best = checked(item, allocate(item, time_limit=options.minimise, seed=options.seed))
        row = (
            path.stem,
            len(item.buffers),
            f"{liveness_bound(item.buffers):,}",
            f"{baseline.smallest_found:,}",
            f"{capacity:,}",
            f"{fit.seconds:.2f}" if fit.offsets is not None else fit.status,
            f"{best.smallest_found:,}",
            f"{best.lower_bound:,}",
            f"{best.gap:.2%}",
        )
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def checked(item: Instance, answer: Allocation, capacity: int | None = None) -> Allocation:
    """The answer, once the validator has seen it."""
    if answer.offsets is not None:
        assert validate(item, answer.offsets, capacity) == answer.peak
    return answer


if __name__ == "__main__":
    main()
