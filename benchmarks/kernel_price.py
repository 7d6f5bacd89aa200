"""How long pricing takes: one kernel, the same kernel again, and a million at once against a loop.

python benchmarks/kernel_price.py [--json FILE]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from peakline.cost.price import price
from peakline.hardware import device
from peakline.models.dtypes import dtype
from peakline.models.kernels import Attention, Gemm, Stream

BF16 = dtype("bf16")
MILLION = 1_000_000

KERNELS: dict[str, Callable[[Any], tuple[Any, Any, Any]]] = {
    "gemm": lambda m: (Gemm(1, m, 4096, 4096, BF16, BF16, BF16), m * 8192 + 2 * 4096**2, m * 8192),
    "prefill": lambda s: (Attention(1, 32, 8, s, s, s * (s + 1) // 2, 128, 128, BF16, BF16), s * 12288, s * 8192),
    "stream": lambda n: (Stream(n * 4096, BF16), n * 8192, n * 8192),
}


def seconds(task: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def measure(make: Callable[[Any], tuple[Any, Any, Any]], name: str = "h100-sxm") -> dict[str, float]:
    """Microseconds of a first and of a repeated scalar price, seconds of a million, and the gain over a loop."""
    target = device(name)
    price(*make(1), target)
    sizes = range(2, 2002)
    first = seconds(lambda: [price(*make(size), target) for size in sizes]) / len(sizes)
    again = seconds(lambda: [price(*make(77), target) for _ in sizes]) / len(sizes)
    array = np.random.default_rng(0).integers(1, 8192, MILLION)
    together = min(seconds(lambda: price(*make(array), target)) for _ in range(3))
    return {
        "first_us": first * 1e6,
        "again_us": again * 1e6,
        "million_s": together,
        "gain_over_loop": first * MILLION / together,
    }


def main(arguments: list[str]) -> None:
    """Print the table, or write it as JSON."""
    found = {name: measure(make) for name, make in KERNELS.items()}
    if "--json" in arguments:
        with open(arguments[arguments.index("--json") + 1], "w", encoding="utf-8") as file:
            json.dump(found, file, indent=2)
    print(f"{'kernel':10}{'first':>12}{'again':>12}{'10^6 at once':>16}{'gain over a loop':>20}")
    for name, times in found.items():
        first, again = f"{times['first_us']:.1f} us", f"{times['again_us']:.1f} us"
        print(f"{name:10}{first:>12}{again:>12}{times['million_s']:>14.2f} s{times['gain_over_loop']:>18.0f} x")


if __name__ == "__main__":
    main(sys.argv[1:])
