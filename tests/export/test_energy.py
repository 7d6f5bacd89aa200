"""Energy: only from published figures."""

from __future__ import annotations

import numpy as np
import pytest

import peakline as pk


def _hypothetical(**changes: object) -> pk.Device:
    figures = {"compute.energy.bf16": "1 pJ/FLOP", "memory.hbm.energy_per_byte": "10 pJ/B", **changes}
    return pk.device("h100-sxm", **figures)


def test_a_device_without_published_energies_has_none() -> None:
    assert pk.estimate(pk.prefill("llama-3.2-1b", seq=128), "h100-sxm").energy_joules is None


def test_memory_energy_alone_is_no_energy_of_the_run() -> None:
    only_memory = pk.device("h100-sxm", **{"memory.hbm.energy_per_byte": "10 pJ/B"})
    assert pk.estimate(pk.prefill("llama-3.2-1b", seq=128), only_memory).energy_joules is None


def test_it_is_operations_and_bytes_at_their_prices() -> None:
    est = pk.estimate(pk.prefill("llama-3.2-1b", seq=128), _hypothetical())
    at_least = est.cost.flops * 1e-12 + est.cost.traffic["hbm"] * 10e-12
    at_most = (est.cost.flops + est.cost.vector_work) * 1e-12 + est.cost.traffic["hbm"] * 10e-12
    assert at_least <= est.energy_joules <= at_most * (1 + 1e-12)


def test_twice_the_price_of_a_byte_adds_the_bytes_once_more() -> None:
    graph = pk.prefill("llama-3.2-1b", seq=128)
    one = pk.estimate(graph, _hypothetical())
    two = pk.estimate(graph, _hypothetical(**{"memory.hbm.energy_per_byte": "20 pJ/B"}))
    assert two.energy_joules - one.energy_joules == pytest.approx(one.cost.traffic["hbm"] * 10e-12)


def test_idle_power_is_drawn_for_as_long_as_it_takes() -> None:
    graph = pk.prefill("llama-3.2-1b", seq=128)
    idle = pk.estimate(graph, _hypothetical(**{"power.idle": "100 W"}))
    assert idle.energy_joules - pk.estimate(graph, _hypothetical()).energy_joules == pytest.approx(100 * idle.time)


def test_a_sweep_gives_one_figure_for_each_configuration() -> None:
    sweep = pk.estimate(pk.prefill("llama-3.2-1b", batch=np.array([1, 4]), seq=128), _hypothetical())
    single = [pk.estimate(pk.prefill("llama-3.2-1b", batch=b, seq=128), _hypothetical()).energy_joules for b in (1, 4)]
    assert sweep.energy_joules == pytest.approx(single)
