"""Where does optimal beat greedy? Plans against policies: writes the study of docs/offload.md.

    python benchmarks/offload.py [--models gpt2-xl,…] [--results FILE.jsonl] [--write] [--plot]

Every model runs on an A100 (80 GB) whose link to the host is varied, in budgets that leave a share of what its step
holds beyond parameters and states. Plans and policies are replayed by the same simulation. `--results` keeps what was
found and goes on from there; `--write` replaces the tables of the page, `--plot` its picture.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peakline as pk
from peakline.planning.extract import profile
from peakline.planning.policies import POLICIES, compare
from peakline.planning.tiers import surroundings

PAGE = Path(__file__).parents[1] / "docs" / "offload.md"
PICTURE = PAGE.parent / "images" / "offload-against-greedy.png"
BASE = "a100-80gb"
MODELS: dict[str, dict[str, Any]] = {
    "gpt2-xl": {"batch": 4, "seq": 1024},
    "llama-3.1-8b": {"batch": 1, "seq": 16384, "loss": "chunked"},
    "stable-diffusion-1.5": {"batch": 32},
    "resnet-50": {"batch": 128},
    "resnet-152": {"batch": 64},
    "t5-large": {"batch": 8, "seq": 512},
    "qwen1.5-moe-a2.7b": {"batch": 4, "seq": 2048, "overrides": {"layers": 8}},
}
LINKS = {  # name: kind and bandwidth of one direction, bytes/s; kinds as in the catalogue, whose measured rates hold
    "PCIe 3": ("PCIe 3.0 x16", "15.75 GB/s"),
    "PCIe 4": ("PCIe 4.0 x16", "31.5 GB/s"),
    "PCIe 5": ("PCIe 5.0 x16", "63 GB/s"),
    "NVLink-C2C": ("NVLink-C2C", "450 GB/s per direction"),
}
SHARES = (0.7, 0.4, 0.25, 0.2)
HOST = {"NVLink-C2C": "grace"}
"""Memory of the host where it is not that of an ordinary server."""


def step_of(name: str) -> Any:
    """The training step of a model of the study."""
    return pk.training_step(name, dtype="bf16", optimizer="adamw-fused", **MODELS[name])


def device_of(link: str) -> Any:
    """The device with another link to its host."""
    kind, bandwidth = LINKS[link]
    return pk.device(BASE, **{"links.host.kind": kind, "links.host.bandwidth": bandwidth})


def cases(models: list[str], done: set[tuple[str, str, float]]) -> Iterator[dict[str, Any]]:
    """One row per model, link and share: seconds of the plan, its bound and every policy, over the step as it is."""
    for name in models:
        step, moved_by, alone = step_of(name), {n for n, (_, word) in POLICIES.items() if word == "swap"}, {}
        for link in LINKS:
            device = device_of(link)
            before = pk.estimate(step, device)
            outside = before.memory.context + 2 * device.software.cublas_workspace_bytes
            taken = profile(before)
            fixed = sum(int(taken.program.sizes[key]) for key in taken.program.resident)
            around = surroundings(device, host=None, ssd=None, **_host(link))
            for share in SHARES:
                if (name, link, share) in done:
                    continue
                room = fixed + int(share * (before.memory.live - fixed))
                if share not in alone:
                    alike = compare(before, around, [room], set(POLICIES) - moved_by)[room]
                    alone[share] = {o.policy: o.seconds for o in alike}
                    alone[share]["recompute, optimal"] = _seconds(
                        step, device, budget=room + outside, allow=["recompute"]
                    )
                policies = alone[share] | {o.policy: o.seconds for o in compare(before, around, [room], moved_by)[room]}
                started = time.perf_counter()
                try:
                    found = pk.plan(step, device, budget=room + outside, **_host(link))
                    plan = {
                        "seconds": found.seconds, "bound": found.lower_bound, "method": found.method,
                        "took": time.perf_counter() - started,
                    }  # fmt: skip
                except pk.NothingFits as error:
                    plan = {"seconds": None, "floor": error.floor}
                yield {
                    "model": name, "link": link, "share": share, "room": room, "base": before.time, "plan": plan,
                    "policies": policies,
                }  # fmt: skip


def _host(link: str) -> dict[str, str]:
    return {"host_device": HOST[link]} if link in HOST else {}


def _seconds(step: Any, device: Any, **options: Any) -> float | None:
    try:
        return float(pk.plan(step, device, **options).seconds)
    except pk.NothingFits:
        return None


def table(rows: list[dict[str, Any]]) -> str:
    """Overheads in percent of the step as it is; – where it does not fit."""
    names = [n for n, (_, word) in POLICIES.items() if word == "recompute"]
    names += ["recompute, optimal", *(n for n, (_, word) in POLICIES.items() if word == "swap")]
    lines = [
        "| model | link | room | plan | gap | found by | " + " | ".join(names) + " | best of these / plan |",
        "|---|---|---:|---:|---:|---|" + "---:|" * (len(names) + 1),
    ]
    for row in rows:
        base, plan = row["base"], row["plan"]
        cells = [_percent(row["policies"].get(name), base) for name in names]
        if plan["seconds"] is None:
            mine, gap, method, factor = "–", "", "", ""
        else:
            mine, gap = _percent(plan["seconds"], base), f"{max(1 - plan['bound'] / plan['seconds'], 0.0):.1%}"
            method = "greedy" if plan["method"].startswith("greedy") else "solver"
            others = [s for s in row["policies"].values() if s is not None]
            factor = f"{min(others) / plan['seconds']:.3f}" if others else "only the plan fits"
        lines.append(
            f"| {row['model']} | {row['link']} | {row['share']:.0%} | {mine} | {gap} | {method} | "
            + " | ".join(cells) + f" | {factor} |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def _percent(seconds: float | None, base: float) -> str:
    return "–" if seconds is None else f"{max(seconds / base - 1, 0.0):+.1%}"


HIGHEST = 30.0
"""Percent up to which the picture is drawn; what is above is written at its edge."""


def plot(rows: list[dict[str, Any]]) -> None:
    """Time of the best policy over the plan's, per model, against the link, a line per budget."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    columns = 4
    figure = Figure(figsize=(12, 2.9 * -(-len(models) // columns)), layout="constrained")
    grid = figure.subplots(-(-len(models) // columns), columns, sharex=True, sharey=True, squeeze=False)
    links = list(LINKS)
    for ax, name in zip(grid.flat, models):
        for share, colour in zip(SHARES, ("#56B4E9", "#0072B2", "#E69F00", "#D55E00")):
            points = []
            for row in rows:
                others = [s for s in row["policies"].values() if s is not None]
                if row["model"] == name and row["share"] == share and row["plan"]["seconds"] and others:
                    points.append((links.index(row["link"]), 100 * (min(others) / row["plan"]["seconds"] - 1)))
            inside = [point for point in points if point[1] <= HIGHEST]
            ax.plot(*(zip(*inside) if inside else ([], [])), "o-", color=colour, label=f"{share:.0%} of the room", ms=4)
            for at, height in points:
                if height > HIGHEST:
                    ax.plot(at, HIGHEST, "^", color=colour, markersize=5, clip_on=False)
                    ax.annotate(f"{height:.0f} %", (at, HIGHEST), (6, -3), textcoords="offset points", fontsize=8)
        ax.set_ylim(-1, HIGHEST)
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_xticks(range(len(links)), links, fontsize=8, rotation=20)
        ax.axhline(0, color="#222222", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(grid.flat)[len(models) :]:
        ax.set_visible(False)
    for row in grid:
        row[0].set_ylabel("best policy over\nthe plan, %")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower right", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--results", type=Path)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--plot", action="store_true")
    given = parser.parse_args()
    rows = []
    if given.results and given.results.exists():
        rows = [json.loads(line) for line in given.results.read_text(encoding="utf-8").splitlines()]
    models = given.models.split(",") if given.models else []
    for row in cases(models, {(r["model"], r["link"], r["share"]) for r in rows}):
        rows.append(row)
        print(table([row]).splitlines()[-1], flush=True)
        if given.results:
            with given.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
    order = {name: i for i, name in enumerate(MODELS)}
    rows.sort(key=lambda r: (order[r["model"]], list(LINKS).index(r["link"]), -r["share"]))
    if given.write:
        page = PAGE.read_text(encoding="utf-8")
        body = f"<!-- study -->\n{table(rows)}<!-- end of study -->"
        PAGE.write_text(re.sub(r"<!-- study -->.*?<!-- end of study -->", lambda _: body, page, flags=re.S), "utf-8")
    if given.plot:
        plot(rows)


if __name__ == "__main__":
    main()
