"""Where a recording is made: device, libraries, clocks, load. Names of machines and folders stay out."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from peakline.record.schema import Environment

__all__ = ["allocator_of_environment", "describe_environment"]

_QUERY = {
    # field of `Environment`: (what nvidia-smi calls it, bytes of its unit or 1)
    "driver": ("driver_version", None),
    "sm_clock_mhz": ("clocks.sm", 1),
    "sm_clock_max_mhz": ("clocks.max.sm", 1),
    "memory_clock_mhz": ("clocks.mem", 1),
    "power_limit_watts": ("power.limit", 1),
    "mig": ("mig.mode.current", None),
    "free_before_context_bytes": ("memory.free", 1 << 20),
}
_SECONDS = 20


def describe_environment(device: str, *, seed: int = 0) -> Environment:
    """The environment for `cuda` or `cpu`. On CUDA it makes a context, after asking nvidia-smi what was free before."""
    import torch

    from peakline import __version__

    found: dict[str, Any] = {
        "device_kind": device,
        "recorded_on": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "peakline": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
        "cpu_name": _cpu_name(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_features": torch.backends.cpu.get_cpu_capability(),
        "host_total_bytes": _host_bytes(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "allocator": allocator_of_environment(),
        "seed": seed,
    }
    if device == "cuda":
        found |= parse_nvidia_smi(_nvidia_smi())
        found |= _cuda(torch)
    else:
        found["device_name"] = found["cpu_name"] or "unknown processor"
    return Environment(**found)


def allocator_of_environment() -> str:
    """The caching allocator's settings that the environment gives; empty for torch's defaults."""
    return os.environ.get("PYTORCH_ALLOC_CONF") or os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or ""


def _cuda(torch: Any) -> dict[str, Any]:
    """The GPU's properties, and what a context and a first tensor take."""
    properties = torch.cuda.get_device_properties(0)
    first = torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    del first
    cudnn = torch.backends.cudnn.version()
    return {
        "device_name": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "capability": (properties.major, properties.minor),
        "device_total_bytes": total,
        "free_after_context_bytes": free,
        "reserved_then_bytes": reserved,
        "cudnn": None if cudnn is None else str(cudnn),
    }


def _nvidia_smi() -> str:
    """One line of comma-separated answers about the first GPU; empty without nvidia-smi."""
    names = ",".join(name for name, _ in _QUERY.values())
    command = ["nvidia-smi", "--id=0", f"--query-gpu={names}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def parse_nvidia_smi(line: str) -> dict[str, Any]:
    """Fields of `Environment` from nvidia-smi's answer; what it does not know ("[N/A]") is left out."""
    values = [value.strip() for value in line.splitlines()[0].split(",")] if line else []
    if len(values) != len(_QUERY):
        return {}
    found: dict[str, Any] = {}
    for (name, (_, unit)), value in zip(_QUERY.items(), values):
        if unit is None:
            found[name] = None if value.startswith("[") else value
            continue
        try:
            number = float(value)
        except ValueError:
            continue
        found[name] = int(number) * unit if name.endswith("_bytes") else number
    return found


def _version(package: str) -> str | None:
    """The version of an installed package, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str | None:
    """The processor's model name as the kernel gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or None


def _host_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
