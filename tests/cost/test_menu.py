"""Leaving out tiles that cannot win changes no price."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import peakline as pk
from peakline.cost import gpu_gemm
from peakline.cost.gpu import constants
from peakline.cost.machine import machine
from peakline.cost.program import ExactSum
from peakline.models.dtypes import dtype

SIZES = np.unique(np.geomspace(1, 200_000, 300).astype(int)).astype(float)


@pytest.mark.parametrize("device", ["h100-sxm", "b200", "a100-80gb", "l40s"])
@pytest.mark.parametrize("along", ["m", "n", "k"])
def test_the_best_tile_is_the_best_of_the_whole_menu(device: str, along: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, bf16 = machine(pk.device(device)), dtype("bf16")
    const = constants(target, "gemm")
    shape: dict[str, Any] = {"m": 768.0, "n": 2304.0, "k": 4096.0, along: SIZES}
    m, n, k = shape["m"], shape["n"], shape["k"]

    def price() -> Any:
        reads, writes = 2.0 * (m * k + k * n), 2.0 * m * n
        return gpu_gemm.gemm_tiled(target, 1.0, m, n, k, (bf16, bf16, bf16), reads, writes, const=const)

    found = price()
    monkeypatch.setattr(gpu_gemm, "_at_least", lambda ops, tile, tiles, *rest: 0.0 * tiles)  # none is left out
    whole = price()
    assert (found.seconds == whole.seconds).all()
    for name, moved in whole.traffic.items():
        assert (found.traffic[name] == moved).all()


@pytest.mark.parametrize("length", [3, 1000])
@pytest.mark.parametrize("most", [2**20, 2**52])
def test_counts_of_arrays_add_up_exactly(length: int, most: int) -> None:
    rng = np.random.default_rng(2)
    terms = [(rng.integers(0, most, length), int(rng.integers(1, 2000))) for _ in range(40)]
    total = ExactSum()
    total.add(7, 3)
    for value, times in terms:
        total.add(value.astype(float), times)
    exact = [21 + sum(int(value[i]) * times for value, times in terms) for i in range(length)]
    assert total.value().tolist() == [float(number) for number in exact]
