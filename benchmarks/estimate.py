"""How fast estimates are: import, one training step, a million-configuration sweep, the allocator's replay.

    python benchmarks/estimate.py            # prints the table of benchmarks/README.md

Every figure is printed as wall seconds and as the process's own CPU seconds (`time.process_time`), which other load on
the machine does not move. The sweep runs in a process of its own so that its peak resident memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

MODEL, DEVICE = "llama-3.1-8b", "h100-sxm"
BATCHES, LENGTHS = 1000, 1000


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds, result) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def repeated(run: Callable[[], Any], times: int) -> tuple[float, float]:
    """Median (wall, CPU) seconds of `times` calls after two to warm up."""
    run(), run()
    measured = [timed(run)[:2] for _ in range(times)]
    return median(wall for wall, _ in measured), median(cpu for _, cpu in measured)


def import_seconds(statement: str) -> tuple[float, float]:
    """(wall, CPU) seconds of a statement in a fresh interpreter, without the interpreter's own start; best of five."""
    code = (
        "import time; w, c = time.perf_counter(), time.process_time()\n"
        f"{statement}\n"
        "print(time.perf_counter() - w, time.process_time() - c)"
    )
    found = []
    for _ in range(5):
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        wall, cpu = map(float, out.split())
        found.append((wall, cpu))
    return min(found)


def training_estimate(times: int) -> dict[str, tuple[float, float]]:
    """A Llama-3.1-8B training step, graph and replay included, warm."""
    import peakline as pk

    def run(**how: Any) -> Any:
        step = pk.training_step(MODEL, batch=1, seq=8192, dtype="bf16", optimizer="adamw", **how)
        return pk.estimate(step, DEVICE)

    return {
        "training estimate": repeated(run, times),
        "training estimate, full recompute": repeated(lambda: run(recompute="full"), times),
    }


def allocator_events(times: int) -> tuple[float, float, int]:
    """(wall, CPU, events) of replaying two steps' requests, without writing them down."""
    import peakline as pk
    from peakline.memory.caching_allocator import Allocator
    from peakline.memory.footprint import request_history
    from peakline.memory.lifetimes import unroll
    from peakline.memory.options import AllocatorOptions

    step = pk.training_step(MODEL, batch=1, seq=8192, dtype="bf16", optimizer="adamw")
    streams = request_history(unroll(step), pk.device(DEVICE))

    def replay() -> None:
        allocator = Allocator(None, AllocatorOptions())
        for stream in streams:
            allocator.run(stream.events)

    return (*repeated(replay, times), sum(len(stream.events.ops) for stream in streams))


def sweep() -> dict[str, float]:
    """A million prefill configurations at once, and a sample of them one by one."""
    import numpy as np

    import peakline as pk

    def estimate(batch: Any, seq: Any) -> Any:
        return pk.estimate(pk.prefill(MODEL, batch=batch, seq=seq), DEVICE)

    batch, seq = np.arange(1, BATCHES + 1)[:, None], 8 * np.arange(1, LENGTHS + 1)
    estimate(1, 8)
    wall, cpu, result = timed(lambda: estimate(batch, seq))
    assert result.time.shape == result.memory.live.shape == (BATCHES, LENGTHS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rng = np.random.default_rng(0)
    sample = [(int(rng.integers(1, BATCHES + 1)), 8 * int(rng.integers(1, LENGTHS + 1))) for _ in range(100)]
    loop_wall, loop_cpu, singles = timed(lambda: [estimate(*pair) for pair in sample])
    for (b, s), one in zip(sample, singles):
        assert result.time[b - 1, s // 8 - 1] == one.time
        assert result.memory.live[b - 1, s // 8 - 1] == one.memory.live
    return {
        "wall": wall,
        "cpu": cpu,
        "peak_rss": peak,
        "one_wall": loop_wall / len(sample),
        "one_cpu": loop_cpu / len(sample),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=15, help="repetitions of the short measurements")
    parser.add_argument("--sweep", action="store_true", help="only the sweep, as JSON (used by the program itself)")
    options = parser.parse_args()
    if options.sweep:
        print(json.dumps(sweep()))
        return
    rows: list[tuple[str, str, str, str]] = []

    def row(name: str, wall: float, cpu: float, target: str, unit: str = "ms", scale: float = 1e3) -> None:
        rows.append((name, f"{wall * scale:.3g} {unit}", f"{cpu * scale:.3g} {unit}", target))

    row("`import peakline`", *import_seconds("import peakline"), "< 500 ms")
    row(
        "… and its estimator", *import_seconds("import peakline; peakline.estimate, peakline.training_step"), "< 500 ms"
    )
    for name, seconds in training_estimate(options.times).items():
        row(f"{MODEL} {name}", *seconds, "< 100 ms")
    wall, cpu, events = allocator_events(options.times)
    row(f"allocator, per event ({events} events)", wall / events, cpu / events, "", "µs", 1e6)
    run = subprocess.run([sys.executable, __file__, "--sweep"], capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    count = BATCHES * LENGTHS
    row(f"{count:,} prefill configurations", found["wall"], found["cpu"], "< 10 s", "s", 1.0)
    row("one such configuration by itself", found["one_wall"], found["one_cpu"], "")
    ratio = found["one_wall"] * count / found["wall"], found["one_cpu"] * count / found["cpu"]
    rows.append(("loop over them / sweep", f"{ratio[0]:,.0f} ×", f"{ratio[1]:,.0f} ×", ""))
    rows.append(("peak resident memory of the sweep", f"{found['peak_rss'] / 1e9:.2f} GB", "", "< 2 GB"))
    print(f"Python {platform.python_version()}, {platform.machine()}\n")
    print("| what | wall | CPU | target |\n| --- | --- | --- | --- |")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
