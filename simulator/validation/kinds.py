"""Kinds of hardware without tables of measurements at hand: drives and links against figures others published, designs
against their papers' claims, and what nothing could be compared with."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from peakline.cost.links import READ_OVERHEAD, channel_of, packet_share
from peakline.cost.storage import Drive, Side, drive_of
from peakline.hardware import device
from peakline.validation.markdown import markdown, percent

__all__ = ["PINNED", "READS", "claims", "section"]

_MICRON_9100 = Drive("micron-9100-max", Side(3.0e9, 107.7e-6, 750e3, 4096), Side(2.0e9, None, 300e3, 4096))
"""Of the Micron 9100 MAX 2.4TB: 750,000 random reads a second (data sheet), 107.7 µs measured (AnandTech)."""

READS: tuple[tuple[Drive, int, float], ...] = (
    (drive_of("p4800x"), 1, 108.3e3),
    (drive_of("p4800x"), 16, 584.8e3),
    (drive_of("p3700"), 1, 12.8e3),
    (drive_of("p3700"), 16, 167.2e3),
    (_MICRON_9100, 1, 9.2e3),
    (_MICRON_9100, 16, 135.7e3),
)
"""(drive, requests in flight, 4 KiB random reads a second) as measured: AnandTech, "The Intel Optane SSD DC P4800X
review" (April 2017)."""

PINNED: tuple[tuple[str, float, str], ...] = (
    ("pcie-3-x16", 12.36e9, "NVIDIA/nvbandwidth, README"),
    ("pcie-3-x16", 12.15e9, "mpicbg-scicomp/gearshifft pull request 82, to a P100"),
    ("pcie-3-x16", 12.89e9, "the same, from a P100"),
    ("pcie-4-x16", 25.13e9, "NVIDIA/nvbandwidth issue 42, A100"),
    ("pcie-5-x16", 55.63e9, "NVIDIA's blog on NVbandwidth, H100"),
)
"""(link, bytes/s of copies from pinned memory, source) as measured."""


def drives() -> pd.DataFrame:
    """Random reads, measured, and predicted if requests collide or spread perfectly."""
    rows = [
        {
            "drive": drive.name,
            "in flight": depth,
            "measured": round(measured),
            "colliding": round(drive.random("read", 4096, depth) / 4096),
            "spread": round(drive.sequential("read", 4096, depth) / 4096),
            "error": percent(drive.random("read", 4096, depth) / 4096 / measured - 1),
        }
        for drive, depth, measured in READS
    ]
    return pd.DataFrame(rows)


def links() -> pd.DataFrame:
    """Copies from pinned memory, measured, beside the catalogue's rate and what packet headers leave."""
    rows = []
    for name, measured, source in PINNED:
        link = device(name).links["lanes"]
        most = (link.bandwidth or 0.0) * packet_share(256, READ_OVERHEAD)
        rate = channel_of(link).bandwidth
        rows.append(
            {"link": name, "measured GB/s": f"{measured / 1e9:.2f}", "catalogue": f"{rate / 1e9:.2f}",
             "headers leave": f"{most / 1e9:.2f}", "error": percent(rate / measured - 1), "source": source}
        )  # fmt: skip
    return pd.DataFrame(rows)


def claims() -> pd.DataFrame:
    """Claims of papers by case: how many have a figure, and the median |difference|."""
    from peakline.device_claims import CASES

    rows = []
    for name, case in CASES.items():
        found = list(case())
        known = [abs(c.difference) for c in found if c.difference is not None]
        rows.append(
            {"case": name, "paper": found[0].source, "rows": len(known),
             "median |difference|": percent(float(pd.Series(known).median()), sign=False) if known else ""}
        )  # fmt: skip
    return pd.DataFrame(rows)


def section(_: Path | None = None) -> str:
    """The report's section."""
    found = claims()
    return (
        "Drives: 4 KiB random reads a second, measured by AnandTech (April 2017), beside two bounds on how requests "
        "meet at the dies (`peakline.cost.storage`); `error` is that of colliding requests.\n\n"
        + markdown(drives())
        + "\n\nLinks: copies from pinned memory. The catalogue's rates are what copies were commonly reported to "
        "reach, so these rows show that they are consistent, not that they were foreseen.\n\n"
        + markdown(links())
        + "\n\nDesigns and systems in papers: what they claim beside what the models say, row by row in "
        "docs/claims.md. The sources are simulators of the papers' own (NeuPIMs, AttAcc, Duplex, PIM-GPT, LARC) or "
        "end-to-end figures.\n\n"
        + markdown(found)
        + "\n\nCompared elsewhere, or with nothing:\n\n"
        + markdown(pd.DataFrame(_REST, columns=["kind", "compared with", "where"]))
    )


_REST = (
    ("NPU (systolic arrays)",
     "SCALE-Sim 3.0.0, a simulator: 60 products of ragged shapes, cycles and reads at the edges equal, all of them",
     "tests/cost/test_systolic.py"),
    ("CPU", "one recording of one machine (AMD EPYC, two virtual cores), half of it held out: median 10 %",
     "docs/accelerators.md"),
    ("energy", "TPU v4's highest measured power (+9 %); boards' limits; MLPerf Tiny's joules above", "docs/energy.md"),
    ("PIM, FPGA", "no measurement at hand: papers' claims only", "docs/claims.md"),
    ("CXL", "no measurement at hand: bandwidths of product briefs", ""),
    ("NPU as sold (TPU, Gaudi, Trainium)", "no measured kernels at hand: published peaks and bandwidths", ""),
    ("superconducting, 3D-stacked (`imec-spu`, `larc`)", "nothing: they were never built", "docs/hardware.md"),
)  # fmt: skip
