"""One thread of linear algebra while solvers multiply small matrices.

OpenBLAS, which NumPy's wheels bring along, shares a product of a few microseconds among threads that wait for one
another actively. Where other programs keep the cores busy, 3,000 products of 256 × 40 by 40 × 600 took 219 s in two
threads and 4 s in one (0.16 ms of a core each). An environment variable would have to be set before NumPy is loaded,
so the library itself is asked.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["one_thread", "thread_counts"]

Control = tuple[Callable[[], int], Callable[[int], None]]
"""What says how many threads a library uses, and what sets it."""


@contextmanager
def one_thread() -> Iterator[None]:
    """While its block runs, every OpenBLAS of this process uses one thread; afterwards as many as before."""
    before = thread_counts()
    try:
        for _, put in _controls():
            put(1)
        yield
    finally:
        for (_, put), count in zip(_controls(), before):
            put(count)


def thread_counts() -> list[int]:
    """Threads that each OpenBLAS of this process uses; empty where NumPy multiplies by something else."""
    return [get() for get, _ in _controls()]


@cache
def _controls() -> list[Control]:
    found = []
    for path in _libraries():
        try:
            library = ctypes.CDLL(path)
        except OSError:
            continue
        for name in ("scipy_openblas_{}_num_threads64_", "scipy_openblas_{}_num_threads", "openblas_{}_num_threads64_",
                     "openblas_{}_num_threads"):  # fmt: skip
            get, put = getattr(library, name.format("get"), None), getattr(library, name.format("set"), None)
            if get is not None and put is not None:
                found.append((get, put))
                break
    return found


def _libraries() -> list[str]:
    """Paths of the OpenBLAS libraries that are loaded, where the system says so; else of those beside NumPy."""
    if sys.platform == "linux":
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
        loaded = {line[line.index("/") :] for line in lines if "openblas" in line and "/" in line}
        return sorted(path for path in loaded if not path.endswith(" (deleted)"))
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".dylibs")
    return sorted(str(path) for folder in folders for path in folder.glob("*openblas*"))
