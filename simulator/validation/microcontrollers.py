"""Microcontrollers: latency, SRAM, flash, fit and energy, measured against predicted, row by row.

Sources: TinyEngine's README (STM32H743, four libraries), MCUNet's (STM32F746), MLPerf Tiny v1.2 results. A row that is
not predicted says why.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from peakline.calibration.microcontrollers import Inference, chosen_for_fit, fit, predicted
from peakline.calibration.microcontrollers import network as graph_of
from peakline.cost.mcu import CORES
from peakline.estimator import estimate
from peakline.hardware import device as find_device
from peakline.validation.markdown import markdown, percent

__all__ = ["inferences", "leave_one_network_out", "microcontrollers", "section"]

_LIBRARIES = {
    "TF-Lite Micro": "tflm",
    "CMSIS-NN": "cmsis-nn",
    "X-CUBE-AI 7.3.0": "x-cube-ai",
    "TinyEngine": "tinyengine",
}
_MCUNET = {
    "mbv2-320kB": "mbv2-w0.35", "mcunet-256kB": "mcunet-in2", "mcunet-320kB": "mcunet-in3",
    "mcunet-512kB": "mcunet-in4",
}  # fmt: skip
_TASKS = {"ic": "resnet-8", "vww": "mobilenet-v1-0.25-vww", "kws": "ds-cnn", "ad": "fc-autoencoder"}
_BOARDS = {
    "NUCLEO-L4R5ZI": "stm32l4r5", "NUCLEO-H7A3ZI-Q": "stm32h7a3", "NUCLEO-H7A3ZI": "stm32h7a3",
    "NUCLEO-U575ZI-Q": "stm32u575", "DISCO-F746NG": "stm32f746", "CY8CPROTO-062-4343W": "psoc62",
    "NUCLEO-G0B1RE": "stm32g0b1", "EK-RA8D1": "ra8d1",
}  # fmt: skip
_SUBMITTERS = {"STMicroelectronics": "x-cube-ai", "bosch": "x-cube-ai", "Renesas": "cmsis-nn"}
"""Bosch's compiler (HALE) publishes no kernels: predicted with those of X-CUBE-AI."""

_SPARE = (
    "named for its speed: the engine of 2020 turns what SRAM is left into im2col columns and unrolled code "
    "(arXiv:2007.10319 §3.2), how many is not stated"
)
_WHY_NOT = {
    "Snapdragon 8 Gen 3 Mobile HDK": "a phone's sensing hub, whose figures are not public",
    "NDP9120": "an accelerator whose rates and kernels are not public",
    "ASUS Tinker V": "an application processor under Linux (AX45MP), whose kernels are not described",
    "VCU128": "a research accelerator on an FPGA, not described",
    "LC236R5E176_BOARD_V2.0": "a self-developed RISC-V core and library, not described",
    "Renesas RH850/F1KM-S4 R7F701649": "the RH850 instruction set is not modelled",
}
_KILOBYTE = 1000 / 1024
"""KiB of a kB in MCUNet's table: the flash of two of its networks is right to 0.5 % in kB of 1000 bytes, and of none in
KiB. TinyEngine's table counts in KiB: its SRAM is that of its own scheduler to the rounding."""
COLUMNS = [
    "source",
    "device",
    "runtime",
    "network",
    "dtype",
    "what",
    "measured",
    "predicted",
    "error",
    "fitted",
    "reason",
]


def microcontrollers(reference: Path) -> pd.DataFrame:
    """Every measured figure in `reference/measured`: latency (ms), SRAM and flash (KiB), fit, energy (µJ).

    `fitted` marks latencies that took part in the fit of the constants; `reason` says why a row is not predicted.
    """
    folder = reference / "measured"
    rows: list[dict[str, Any]] = []
    for name, read in (
        ("tinyengine_stm32h743.csv", _tinyengine), ("mcunet_stm32f746.csv", _mcunet), ("mlperf_tiny_v1.2.csv", _mlperf),
    ):  # fmt: skip
        if (folder / name).exists():
            rows += read(pd.read_csv(folder / name))
    table = pd.DataFrame(rows, columns=COLUMNS)
    table["error"] = [_error(m, p) for m, p in zip(table["measured"], table["predicted"])]
    return table


def inferences(reference: Path) -> list[Inference]:
    """The predicted latencies as rows for fitting."""
    table = microcontrollers(reference)
    found = table[(table["what"] == "latency ms") & (table["reason"] == "")]
    columns = zip(found["device"], found["runtime"], found["network"], found["dtype"], found["measured"])
    return [Inference(d, r, n, kind, float(ms) / 1e3) for d, r, n, kind, ms in columns]


def leave_one_network_out(reference: Path) -> pd.DataFrame:
    """Errors of each network's latencies with constants fitted on the other networks' rows alone."""
    rows = [row for row in inferences(reference) if row.dtype == "int8"]
    out = []
    for network in sorted({row.network for row in rows}):
        constants = fit(row for row in rows if row.network != network)
        errors = [predicted(row, constants) / row.seconds - 1.0 for row in rows if row.network == network]
        size = pd.Series(errors).abs()
        out.append({"network": network, "rows": len(errors), "median": size.median(), "largest": size.max()})
    return pd.DataFrame(out)


def _row(source: str, device: str, runtime: str, network: str, what: str, measured: Any, **more: Any) -> dict[str, Any]:
    blank = {"dtype": "int8", "predicted": None, "fitted": False, "reason": ""}
    named = {"source": source, "device": device, "runtime": runtime, "network": network}
    return {**blank, **named, "what": what, "measured": measured, **more}


def _tinyengine(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for entry in table.to_dict("records"):
        runtime, network = _LIBRARIES[entry["library"]], entry["net_id"]
        yield from _figures(
            "TinyEngine", "stm32h743", runtime, network,
            {"latency ms": entry["latency_ms"], "SRAM KiB": entry["peak_sram_kB"], "flash KiB": entry["flash_kB"]},
        )  # fmt: skip


def _mcunet(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for entry in table.to_dict("records"):
        name = entry["net_id"]
        network = _MCUNET.get(name, name)
        device = "stm32h743" if name == "mcunet-512kB" else "stm32f746"
        figures = {
            what: pd.to_numeric(entry[column], errors="coerce") * _KILOBYTE
            for what, column in (("SRAM KiB", "peak_sram_kB"), ("flash KiB", "flash_kB"))
        }
        if "fps" in name:
            for what, measured in figures.items():
                yield _row("MCUNet", device, "tinyengine", name, what, measured, reason=_SPARE)
            continue
        yield from _figures("MCUNet", device, "tinyengine", network, figures)


def _figures(source: str, device: str, runtime: str, network: str, figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Latency, memories and the verdict of one inference; `OOM` is kept as a verdict alone."""
    known = {what: pd.to_numeric(value, errors="coerce") for what, value in figures.items()}
    try:
        graph = graph_of(network, "int8")
    except ValueError:
        reason = "the network's configuration is not catalogued"
        for what, value in known.items():
            yield _row(source, device, runtime, network, what, value, reason=reason)
        return
    est = estimate(graph, device, runtime=runtime)
    runs = not any(pd.isna(value) for value in known.values())
    yield _row(source, device, runtime, network, "fits", runs, predicted=bool(est.fits))
    if not runs:
        return
    found = {
        "latency ms": float(est.time) * 1e3,
        "SRAM KiB": int(est.memory.device) / 1024,
        "flash KiB": int(est.memory.stores["flash"][0]) / 1024,
    }
    for what, value in known.items():
        row = Inference(device, runtime, network, "int8", float(value))
        fitted = what == "latency ms" and chosen_for_fit(row)
        yield _row(source, device, runtime, network, what, float(value), predicted=found[what], fitted=fitted)


def _mlperf(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for entry in table.to_dict("records"):
        device, network = _BOARDS.get(entry["BoardName"]), _TASKS[entry["Model"]]
        runtime = _SUBMITTERS.get(entry["Organization"], "")
        dtype = "fp32" if str(entry["SystemDesc"]).endswith("_float") else "int8"
        ms = 1e3 / float(entry["Result"])
        if device is None:
            reason = _WHY_NOT.get(entry["BoardName"], "the board is not catalogued")
            yield _row(
                "MLPerf Tiny", entry["BoardName"], runtime, network, "latency ms", ms, dtype=dtype, reason=reason
            )
            continue
        target = find_device(device, **{"mcu.runtime": runtime})
        est = estimate(graph_of(network, dtype), target)
        fitted = (
            dtype == "int8" and _fitted_core(device) and chosen_for_fit(Inference(device, runtime, network, dtype, ms))
        )
        shown = {"dtype": dtype, "fitted": fitted}
        yield _row("MLPerf Tiny", device, runtime, network, "latency ms", ms, predicted=float(est.time) * 1e3, **shown)
        if entry["HasPower"] and est.energy_joules is not None:
            joules = float(est.energy_joules) * 1e6
            yield _row("MLPerf Tiny", device, runtime, network, "energy uJ", float(entry["Power"]), predicted=joules)


def _fitted_core(device: str) -> bool:
    """Whether the core's cycles per instruction were fitted: those with the DSP extension."""
    section = find_device(device).mcu
    return section is not None and CORES[section.core or ""].isa == "dsp"


def _error(measured: Any, found: Any) -> float | None:
    if found is None or pd.isna(found) or isinstance(measured, bool):
        return None
    return float(found) / float(measured) - 1.0


# ---- the report ------------------------------------------------------------------------------------------------------
def section(reference: Path | None) -> str:
    """The report's section in Markdown."""
    table = microcontrollers(reference) if reference is not None else pd.DataFrame(columns=COLUMNS)
    if not len(table):
        return "No measured tables of microcontrollers were at hand."
    assert reference is not None
    verdicts = table[table["what"] == "fits"]
    right = int((verdicts["measured"] == verdicts["predicted"]).sum())
    known = table[table["error"].notna()].assign(size=lambda t: t["error"].astype(float).abs())
    groups = known.groupby(["what", "device", "runtime"])["size"]
    strata = pd.DataFrame(
        {
            "rows": groups.size(),
            "median": [percent(e, sign=False) for e in groups.median()],
            "largest": [percent(e, sign=False) for e in groups.max()],
        }
    ).reset_index()
    latency = known[(known["what"] == "latency ms") & (known["dtype"] == "int8")]
    halves = [
        f"{name}: {len(part)} rows, median |error| {percent(float(part['size'].median()), sign=False)}"
        for name, part in (("fitted on", latency[latency["fitted"]]), ("held out", latency[~latency["fitted"]]))
    ]
    left = leave_one_network_out(reference).assign(
        median=lambda t: [percent(e, sign=False) for e in t["median"]],
        largest=lambda t: [percent(e, sign=False) for e in t["largest"]],
    )
    rows = known.assign(
        measured=[f"{m:,.4g}" for m in known["measured"]],
        predicted=[f"{p:,.4g}" for p in known["predicted"]],
        error=[percent(e) for e in known["error"]],
        fitted=["yes" if f else "" for f in known["fitted"]],
    )[["source", "device", "runtime", "network", "dtype", "what", "measured", "predicted", "error", "fitted"]]
    missing = (
        table[table["reason"] != ""].groupby(["network", "device", "reason"]).size().rename("figures").reset_index()
    )
    return (
        "One inference, batch 1 (docs/microcontrollers.md). Sources: TinyEngine's README (STM32H743), MCUNet's "
        "(STM32F746; the engine of 2020), MLPerf Tiny v1.2. Bosch's rows are predicted with X-CUBE-AI's kernels, its "
        f"own being unpublished. Fits or not: {right} of {len(verdicts)} right. Latency, {'; '.join(halves)}.\n\n"
        f"{markdown(strata)}\n\nLatency of each network with constants fitted on the others:\n\n{markdown(left)}\n\n"
        f"Every row:\n\n{markdown(rows)}\n\nNot predicted, and why:\n\n{markdown(missing)}"
    )
