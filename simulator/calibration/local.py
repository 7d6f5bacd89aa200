"""The machine this runs on as a device: what the system says of it, and rates fitted on measured operators.

A host's datasheet says little of what a process gets: virtual cores, neighbours on the memory bus, clocks that move. So
the rates are measured: `peakline record operators --device cpu` times products, elementwise operators, norms and copies
with cold caches, and figures are fitted on half of them by robust least squares: products per second in each format,
scalar operations per second, bytes per second of main memory, seconds to start an operator, and three habits of the
library for products: seconds to start one and bytes per second of packing in each format, and bytes per second that a
product with a vector gets (`peakline.cost.cpu`). The other half says how good that is.

Left out, and counted: results of `FRESH` bytes and more, whose pages the system hands out anew at every call (glibc
gives blocks above M_MMAP_THRESHOLD's maximum back when they are freed), and operators priced only as part of programs.
"""

from __future__ import annotations

import os
import platform
import re
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from peakline.calibration.fit import robust_fit
from peakline.cost.machine import Level, Machine
from peakline.cost.price import price
from peakline.files import check_target, written_whole
from peakline.hardware import Device
from peakline.hardware.files import device_from_tree
from peakline.models.dtypes import DType, dtype
from peakline.models.kernels import Gemm, Kernel, Stream
from peakline.record import OperatorRow, Trace

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Local", "calibrate_local", "fit_local", "system"]

FRESH = 32 << 20
"""Bytes from which glibc returns freed blocks to the system (malloc/malloc.c, DEFAULT_MMAP_THRESHOLD_MAX, 64 bits)."""

_READ = {"add": 2, "mul": 2, "clone": 1, "gelu": 1, "silu": 1, "softmax": 1, "layer_norm": 1, "rms_norm": 1, "sum": 1}
_WRITTEN = {name: 0 if name == "sum" else 1 for name in _READ}
_WORK = {"gelu": 20, "silu": 10, "softmax": 10, "layer_norm": 8, "rms_norm": 6}
"""Scalar operations per element, as the operator types of `peakline.models` count them (1 where not listed)."""


@dataclass(frozen=True)
class Local:
    """A fitted host.

    Attributes:
        tree: its device file, as a mapping.
        rows: name, operator, format, measured and predicted seconds of every row, and whether it was held out.
        left_out: reason → how many rows.
    """

    tree: Mapping[str, Any]
    rows: tuple[tuple[str, str, str, float, float, bool], ...]
    left_out: Mapping[str, int]

    @property
    def device(self) -> Device:
        """The host as a device: hand it to `estimate` in place of a name."""
        return device_from_tree(self.tree, origin="the local machine")

    @property
    def table(self) -> pd.DataFrame:
        """Median and 90 % quantile of |error| by operator on the rows held out."""
        import pandas as pd

        frame = pd.DataFrame(
            [(o, kind, abs(p / m - 1.0)) for _, o, kind, m, p, out in self.rows if out],
            columns=["operator", "dtype", "error"],
        )
        groups = frame.groupby(["operator", "dtype"])["error"]
        return groups.agg(rows="count", median="median", p90=lambda x: float(np.quantile(x, 0.9))).reset_index()

    @property
    def median(self) -> float:
        """Median |error| over all rows held out."""
        return float(np.median([abs(p / m - 1.0) for *_, m, p, out in self.rows if out]))

    def write(self, path: str | os.PathLike[str]) -> None:
        """Keep it as a device file. Raises ValueError or OSError if that cannot be written."""
        check_target(path)
        with written_whole(path) as temporary:
            text = yaml.safe_dump(dict(self.tree), sort_keys=False, allow_unicode=True, width=120)
            temporary.write_text(text, encoding="utf-8")


# ---- what the system says -------------------------------------------------------------------------------------------
def system() -> dict[str, Any]:
    """This machine's cores, caches and memory, as far as Linux tells: a device file without rates."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory: dict[str, Any] = {}
    for level, (size, shared) in sorted(_caches().items()):
        entry = {"kind": "SRAM", "source": "system"}
        entry["capacity" if shared else "capacity_per_unit"] = f"{size} B"
        memory[f"l{level}"] = entry
    memory["dram"] = {"kind": "DRAM", "capacity": f"{_memory()} B", "source": "system"}
    return {
        "schema": "peakline.device/1",
        "name": "local",
        "title": _name(),
        "kind": "cpu",
        "sources": {"system": "what the operating system reports", "fit": "fitted on recorded operators"},
        "memory": memory,
        "compute": {"units": cores, "unit": "core", "clock": _clock(), "source": "system"},
        "links": {},
        "power": {"tdp": None},
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine() or "this machine"


def _clock() -> str | None:
    top = _read("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq").strip()
    if top.isdigit():
        return f"{int(top) / 1000:.0f} MHz"
    found = [float(x) for x in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read("/proc/cpuinfo"), re.MULTILINE)]
    return f"{max(found):.0f} MHz" if found else None


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _caches() -> dict[int, tuple[int, bool]]:
    """Level → (bytes, whether cores share it): data and unified caches of the first core."""
    found: dict[int, tuple[int, bool]] = {}
    for index in range(8):
        where = f"/sys/devices/system/cpu/cpu0/cache/index{index}/"
        size, level = _read(where + "size").strip(), _read(where + "level").strip()
        if not size.endswith("K") or not level.isdigit() or _read(where + "type").strip() == "Instruction":
            continue
        shared = "," in _read(where + "shared_cpu_list") or "-" in _read(where + "shared_cpu_list")
        found[int(level)] = (int(size[:-1]) * 1024, shared)
    return found


# ---- the fit --------------------------------------------------------------------------------------------------------
def fit_local(trace: Trace, tree: Mapping[str, Any] | None = None) -> Local:
    """Fit a host's rates on the cold times of a recording of it.

    Args:
        trace: of `peakline record operators --device cpu`.
        tree: the host's device file without rates; None for this machine's (`system`).

    Raises:
        ValueError: the trace has too few usable operators.
    """
    described = dict(tree or system())
    rows, left = _usable(trace)
    formats = sorted({row.format for row in rows if isinstance(row.kernel, Gemm)})
    if not formats or len(rows) < 20:
        raise ValueError(
            f"{len(rows)} operators are usable; record more: peakline record operators --device cpu --out DIR"
        )
    held = np.array([zlib.crc32(row.name.encode()) % 2 == 1 for row in rows])
    measured = np.log([row.seconds for row in rows])
    each = len(formats)
    start = np.log([*[1e11] * each, *[1e-4] * each, *[2e10] * each, 2e10, 2e10, 2e10, 1e-5])

    def predicted(x: Any, chosen: Any) -> Any:
        host = _machine(described, formats, np.exp(x))
        return np.log([float(price(r.kernel, r.read, r.written, host).tiled) for r, use in zip(rows, chosen) if use])

    kept = ~held
    x = robust_fit(lambda x: predicted(x, kept), measured[kept], start, start - 6.0, start + 6.0)
    times = np.exp(predicted(x, np.ones(len(rows), dtype=bool)))
    out = tuple((r.name, r.operator, r.format, r.seconds, float(t), bool(h)) for r, t, h in zip(rows, times, held))
    return Local(_with_rates(described, formats, np.exp(x)), out, left)


@dataclass(frozen=True, slots=True)
class _Usable:
    """A recorded operator that one kernel stands for: bytes read and written, cold seconds."""

    name: str
    operator: str
    format: str
    kernel: Kernel
    read: int
    written: int
    seconds: float


def _usable(trace: Trace) -> tuple[list[_Usable], dict[str, int]]:
    """The rows that can be fitted, and reason → how many cannot."""
    found: list[_Usable] = []
    left: Counter[str] = Counter()
    for row, environment in trace.rows:
        if not isinstance(row, OperatorRow):
            continue
        case = row.case
        if environment.device_kind != "cpu":
            left["not recorded on a CPU"] += 1
        elif row.error is not None or row.forward is None or row.forward.cold is None:
            left["no cold time"] += 1
        else:
            work = _work(case.operator, case.dtype, case.sizes)
            if work is None:
                left[f"{case.operator}: priced as part of programs, not by itself"] += 1
            elif work[2] >= FRESH:
                left["its result's pages are handed out anew at every call"] += 1
            else:
                kind = dtype(case.dtype).name
                found.append(_Usable(case.name, case.operator, kind, *work, row.forward.cold.min_seconds))
    return found, dict(left)


def _work(operator: str, kind: str, sizes: Mapping[str, int]) -> tuple[Kernel, int, int] | None:
    """(kernel, bytes read, bytes written) of an operator; None if no single kernel stands for it."""
    if operator in ("gemm", "batched_gemm"):
        form, b = dtype(kind), sizes.get("batch", 1)
        m, n, k = sizes["m"], sizes["n"], sizes["k"]
        size = form.bits // 8
        return Gemm(b, m, n, k, form, form, form), size * b * (m * k + n * k), size * b * m * n
    if operator == "rms_norm":
        return _rms_norm(dtype(kind), sizes["rows"] * sizes["columns"])
    if operator in _READ:
        form, elements = dtype(kind), sizes["rows"] * sizes["columns"]
        size = form.bits // 8 * elements
        return Stream(_WORK.get(operator, 1) * elements, form), _READ[operator] * size, _WRITTEN[operator] * size
    return None


def _rms_norm(form: DType, elements: int) -> tuple[Kernel, int, int]:
    """torch.nn.functional.rms_norm on a CPU is no kernel of its own: square, mean, product, product with the weights,
    in float32, which narrower formats are cast to and back from (aten/src/ATen/native/layer_norm.cpp,
    `rms_norm_composite`)."""
    wide, own = 4 * elements, form.bits // 8 * elements
    casts = form.name != "fp32"
    reads, writes = 3 * wide + own + casts * (own + wide), 2 * wide + own + casts * (wide + own)
    return Stream(_WORK["rms_norm"] * elements, form, 4 + 2 * casts), reads, writes


def _machine(tree: Mapping[str, Any], formats: list[str], rates: Any) -> Machine:
    """The host with rates to try: products by format, scalar operations, bytes, seconds to start."""
    products, habits, (scalars, bandwidth, launch) = _split(formats, rates)
    levels = [
        Level(name, float(str(entry.get("capacity") or entry["capacity_per_unit"]).split()[0]), None)
        for name, entry in tree["memory"].items()
        if name != "dram"
    ]
    return Machine(
        name="local",
        kind="cpu",
        units=int(tree["compute"]["units"]),
        clock=1e9,
        matrix=dict(zip(formats, products)),
        vector={"fp32": scalars},
        levels=(*levels, Level("dram", None, bandwidth)),
        launch=launch,
        attainable=habits,
    )


def _split(formats: list[str], rates: Any) -> tuple[list[float], dict[str, float], tuple[float, float, float]]:
    """Products by format, the library's habits by name, and (scalar operations, bytes, seconds to start)."""
    plain, each = [float(rate) for rate in rates], len(formats)
    habits = {f"gemm.start_{name}": plain[each + i] for i, name in enumerate(formats)}
    habits |= {f"gemm.panels_{name}": plain[2 * each + i] for i, name in enumerate(formats)}
    return plain[:each], {**habits, "gemm.vector": plain[3 * each]}, (plain[-3], plain[-2], plain[-1])


def _with_rates(tree: Mapping[str, Any], formats: list[str], rates: Any) -> dict[str, Any]:
    """The device file with the fitted rates in it."""
    products, habits, (scalars, bandwidth, launch) = _split(formats, rates)
    memory = {name: dict(entry) for name, entry in tree["memory"].items()}
    memory["dram"]["bandwidth"] = {"value": f"{bandwidth / 1e9:.3f} GB/s", "source": "fit"}
    compute = dict(tree["compute"])
    compute["matrix"] = {
        name: {"value": f"{rate / 1e9:.3f} GFLOP/s", "source": "fit"} for name, rate in zip(formats, products)
    }
    compute["vector"] = {"fp32": {"value": f"{scalars / 1e9:.3f} GFLOP/s", "source": "fit"}}
    software = {"launch": {"value": f"{launch * 1e6:.3f} us", "source": "fit"}}
    calibration = {"fitted_on": "recorded operators of this machine", "constants": habits}
    return {**tree, "memory": memory, "compute": compute, "software": software, "calibration": calibration}


def calibrate_local(source: str | os.PathLike[str] | None = None, *, minutes: float = 1.5) -> Local:
    """Fit the machine this runs on: on a recording of it, or on operators recorded now for about `minutes`.

    Raises:
        ValueError: a source that is no trace, or one without enough operators; torch is not installed.
    """
    from tempfile import TemporaryDirectory

    from peakline.record import read_trace, record

    if source is not None:
        return fit_local(read_trace(source))
    with TemporaryDirectory() as folder:
        record(["operators"], Path(folder) / "trace", device="cpu", minutes=minutes)
        return fit_local(read_trace(Path(folder) / "trace"))
