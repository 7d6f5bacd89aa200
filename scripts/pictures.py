"""Draw the pictures of docs/pictures.md anew: python scripts/pictures.py [NAME ...]

Each function draws one; all of them take about half a minute on one core.
"""

from __future__ import annotations

import argparse
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import peakline as pk
from peakline.plot_schedule import save_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "images"


@cache
def step(**options: object) -> pk.Graph:
    """The training step that most pictures show."""
    return pk.training_step("llama-3.2-1b", **{"batch": 4, "seq": 2048, "dtype": "bf16", **options})  # type: ignore[arg-type]


@cache
def sweep() -> object:
    """Decoding on a few devices."""
    return pk.sweep(
        model="llama-3.1-8b", device=["l40s", "a100-80gb", "h100-sxm", "h200"], phase="decode",
        batch=[1, 2, 4, 8, 16, 32, 64], context=[8192, 32768], kv_dtype=["bf16", "fp8"],
    )  # fmt: skip


def memory() -> Axes:
    return pk.estimate(step(), "rtx-4090").plot_memory()


def allocations() -> Axes:
    from peakline.pictures import plot_allocations

    return plot_allocations(pk.estimate(step(), "rtx-4090"))


def roofline() -> Axes:
    from peakline.plot_roofline import plot_roofline
    from peakline.roofline import roofline

    return plot_roofline(roofline(pk.estimate(step(), "rtx-4090")))


def binding() -> Axes:
    from peakline.plot_roofline import plot_binding

    names = ("l4", "l40s", "a100-80gb", "h100-sxm", "mi300x", "tpu-v4", "gaudi3", "gddr6-aim", "xeon-8480plus",
             "alveo-u280", "stm32h743")  # fmt: skip
    return plot_binding([pk.device(name) for name in names], [1, 8, 32, 128, 256, 512, 1024, 4096, 16384])


def timeline() -> Axes:
    plan = pk.plan(step(loss="fused", optimizer="adamw-fused"), "rtx-4090", budget="13GiB")
    above: Axes = plan.plot()[0]
    return above


def pareto() -> Axes:
    from peakline.pictures import plot_pareto

    df = sweep().query("context == 8192")  # type: ignore[attr-defined]
    df = df.assign(time_per_token_s=1 / df["tokens_per_s"])
    return plot_pareto(df, "time_per_token_s", "device_bytes", by="device", label=["batch", "kv_dtype"])


def heat_map() -> Axes:
    from peakline.pictures import plot_heat_map

    df = sweep().query("kv_dtype == 'fp8' and context == 32768")  # type: ignore[attr-defined]
    return plot_heat_map(df, "batch", "device", "time_s")


def waterfall() -> Axes:
    from peakline.pictures import plot_waterfall

    big = {"batch": 16}
    steps = [
        ("as it is", step(**big)),
        ("fused loss", step(**big, loss="fused")),
        ("full recom- putation", step(**big, loss="fused", recompute="full")),
        ("8-bit Adam", step(**big, loss="fused", recompute="full", optimizer="adam8bit")),
    ]
    return plot_waterfall(steps, device="a100-80gb")


def addresses() -> Axes:
    from peakline.plot_schedule import plot_addresses
    from peakline.scheduling import problem_of
    from peakline.solvers.schedule import schedule

    problem = problem_of(pk.inference("mobilenet-v2-0.35", dtype="int8", image=96), scope="activations")
    return plot_addresses(problem, schedule(problem, 160_000))


def hierarchy() -> Axes:
    from peakline.hardware.picture import draw

    return draw(pk.device("h100-sxm"))


def io_matmul() -> Axes:
    return pk.io(pk.operator("matmul", m=4096, n=4096, k=4096), "h100-sxm").plot()


def io_passes() -> Axes:
    from peakline.plot_io import plot_passes

    return plot_passes(8192, 8192, 128)


PICTURES = (
    memory, allocations, roofline, binding, timeline, pareto, heat_map, waterfall, addresses, hierarchy, io_matmul,
    io_passes,
)  # fmt: skip


def main() -> int:
    named = {draw.__name__.replace("_", "-"): draw for draw in PICTURES}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(named)}; all of them without one")
    asked = parser.parse_args().names or list(named)
    for name in asked:
        if name not in named:
            parser.error(f"{name!r} is not one of {', '.join(named)}")
        save_axes(named[name](), FOLDER / f"{name}.png", dpi=110)
        print(f"docs/images/{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
