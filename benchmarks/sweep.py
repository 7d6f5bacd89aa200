"""How fast sweeps are: configurations of sizes, structural groups, rows on disk, the overhead of a part on Dask.

    python benchmarks/sweep.py               # prints the table of docs/sweep.md
    python benchmarks/sweep.py --rows 1e8    # streams that many rows to Parquet and says how much memory it took

Every figure is wall seconds and the process's own CPU seconds, which other load on the machine does not move; each
measurement runs in a process of its own, on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

MODEL, DEVICE = "llama-3.1-8b", "h100-sxm"
DEVICES = ("a100-80gb", "h100-sxm", "h200", "b200", "l40s")


def timed(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds, result) of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def sizes(phase: str, model: str = MODEL) -> dict[str, Any]:
    """A million configurations of two sizes, as a DataFrame."""
    import peakline as pk

    length = "context" if phase == "decode" else "seq"
    step = 8 if model == MODEL else 1  # positions are 1024 in GPT-2, 512 in BERT
    axes: dict[str, Any] = {"batch": range(1, 1001), length: range(step, 1000 * step + 1, step)}
    if model == "bert-base-uncased":
        axes = {"batch": range(1, 2001), length: range(1, 501)}
    pk.sweep(model, device=DEVICE, phase=phase, batch=[1, 2], progress=False, replay=False, **{length: [8, 16]})
    wall, cpu, df = timed(lambda: pk.sweep(model, device=DEVICE, phase=phase, progress=False, **axes))
    assert df["error"].isna().all()
    return {"rows": len(df), "wall": wall, "cpu": cpu}


def groups(count: int, again: bool, phase: str = "decode") -> dict[str, Any]:
    """Every catalogued language model, two formats of its cache, `count` devices; six configurations each.

    `again`: the same sweep once more in the same process, on the same devices.
    """
    import peakline as pk
    from peakline.models.catalogue import entry

    models = [name for name in pk.model_names() if "decode" in entry(name).family.phases]
    axes: dict[str, Any] = {"batch": [1, 8, 64], "replay": False}
    axes |= {"dtype": ["bf16", "fp16"]} if phase == "training" else {"kv_dtype": ["bf16", "fp8"]}
    length = "context" if phase == "decode" else "seq"

    def run(lengths: list[int]) -> Any:
        chosen = list(DEVICES[:count])
        return pk.sweep(models, device=chosen, phase=phase, progress=False, **axes | {length: lengths})

    run([1024, 2000] if again else [512, 1536])  # warm: lifetimes and devices are known, other sizes unless `again`
    wall, cpu, df = timed(lambda: run([1024, 2000]))
    assert df["error"].isna().all()
    return {"rows": len(df) // 6, "wall": wall, "cpu": cpu}


def disk(rows: int) -> dict[str, Any]:
    """Rows streamed to a folder of parts, and the most memory that the process ever held."""
    import peakline as pk

    side = round(rows**0.5)
    axes = {"batch": range(1, side + 1), "context": range(1, rows // side + 1)}
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu, done = timed(
            lambda: pk.sweep_to(f"{folder}/parts", MODEL, device=DEVICE, phase="decode", progress=False, **axes)
        )
        size = sum(path.stat().st_size for path in Path(folder, "parts").iterdir())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"rows": done.rows, "wall": wall, "cpu": cpu, "peak": peak, "bytes": size / done.rows}


def overhead() -> dict[str, Any]:
    """Seconds that a small part takes beyond its evaluation when a Dask worker on this machine computes it."""
    from dask.distributed import Client, LocalCluster

    from peakline.sweeping.axes import plan_of
    from peakline.sweeping.distributed import executor_of
    from peakline.sweeping.evaluate import evaluate
    from peakline.sweeping.run import mapped

    plan = plan_of(MODEL, device=DEVICE, phase="decode", batch=[1, 8], context=[64], replay=False)
    parts = [(i, plan.part(0)) for i in range(500)]
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, host="127.0.0.1") as cluster,
        Client(cluster) as client,
    ):
        executor = executor_of(client)
        list(mapped(evaluate, iter(parts[:5]), executor))
        wall, _, _ = timed(lambda: list(mapped(evaluate, iter(parts), executor)))
    evaluate(plan.part(0))
    alone, _, _ = timed(lambda: [evaluate(plan.part(0)) for _ in range(20)])
    return {"parts": len(parts), "per_part": wall / len(parts), "alone": alone / 20}


MEASUREMENTS: dict[str, tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = {
    "decode": (sizes, ("decode",)),
    "prefill": (sizes, ("prefill",)),
    "training": (sizes, ("training",)),
    "training-gpt2": (sizes, ("training", "gpt2")),
    "training-bert": (sizes, ("training", "bert-base-uncased")),
    "groups-1": (groups, (1, False)),
    "groups-5": (groups, (5, False)),
    "groups-again": (groups, (1, True)),
    "groups-prefill": (groups, (1, False, "prefill")),
    "groups-training": (groups, (1, False, "training")),
    "disk": (disk, (10_000_000,)),
    "dask": (overhead, ()),
}


def measured(name: str, times: int, rows: int | None) -> dict[str, Any]:
    """A measurement in processes of its own; the run of median CPU time."""
    command = [sys.executable, __file__, "--only", name, *(["--rows", str(rows)] if rows else [])]
    one_core = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    runs = []
    for _ in range(times):
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=one_core).stdout
        runs.append(json.loads(out.splitlines()[-1]))
    middle = median(sorted(run.get("cpu", run.get("per_part")) for run in runs)[: len(runs) | 1])
    return min(runs, key=lambda run: abs(run.get("cpu", run.get("per_part")) - middle))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=MEASUREMENTS, help="one measurement, as JSON")
    parser.add_argument("--rows", type=float, help="rows to stream to disk")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    if options.only:
        run, arguments = MEASUREMENTS[options.only]
        print(json.dumps(run(*((int(options.rows),) if options.only == "disk" and options.rows else arguments))))
        return
    if options.rows:
        found = measured("disk", 1, int(options.rows))
        print(
            f"{found['rows']:,} rows: {found['wall']:.0f} s wall, {found['cpu']:.0f} s CPU, "
            f"{found['bytes']:.0f} bytes a row, peak resident memory {found['peak'] / 1e9:.2f} GB"
        )
        return
    print("| what | wall | CPU | per CPU second |\n| --- | --- | --- | --- |")
    for name, label, unit in (
        ("decode", "1,000,000 decode configurations, as a DataFrame", "rows"),
        ("prefill", "1,000,000 prefill configurations, as a DataFrame", "rows"),
        ("training", "1,000,000 training steps of Llama 3.1 8B, as a DataFrame", "rows"),
        ("training-gpt2", "1,000,000 training steps of GPT-2, as a DataFrame", "rows"),
        ("training-bert", "1,000,000 training steps of BERT, as a DataFrame", "rows"),
        ("groups-1", "structural groups, one device", "groups"),
        ("groups-5", "structural groups, five devices", "groups"),
        ("groups-again", "structural groups, seen before", "groups"),
        ("groups-prefill", "structural groups, prefill, one device", "groups"),
        ("groups-training", "structural groups, training steps, one device", "groups"),
        ("disk", "10,000,000 decode configurations to Parquet", "rows"),
    ):
        found = measured(name, options.times, None)
        rate = found["rows"] / found["cpu"]
        print(f"| {label} | {found['wall']:.2f} s | {found['cpu']:.2f} s | {rate:,.0f} {unit} |", flush=True)
        if "peak" in found:
            print(f"| … peak resident memory, bytes a row | {found['peak'] / 1e9:.2f} GB | | {found['bytes']:.0f} B |")
    found = measured("dask", 1, None)
    extra = found["per_part"] - found["alone"]
    print(f"| Dask's overhead, each of {found['parts']} parts | {extra * 1e3:.1f} ms | | |")


if __name__ == "__main__":
    main()
