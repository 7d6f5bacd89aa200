"""Memory on a microcontroller: an arena in SRAM and constants in flash, two walls; tensors alone (`bare`)."""

from __future__ import annotations

import numpy as np
import pytest

import peakline as pk


@pytest.fixture(scope="module")
def est() -> pk.Estimate:
    return pk.estimate(pk.inference("mobilenet-v2-0.35", dtype="int8", image=96), "stm32h743", runtime="bare")


def test_parameters_lie_in_flash_and_not_in_the_arena(est: pk.Estimate) -> None:
    used, capacity = est.memory.stores["flash"]
    assert used == est.graph.total_bytes("parameter", "buffer")
    assert capacity == pk.device("stm32h743").level("flash").capacity
    assert "parameter" not in est.memory.by_role
    assert not any("weight" in tensor.name for tensor in est.memory.arena.lifetimes)


def test_the_arena_is_at_least_what_is_alive_at_once(est: pk.Estimate) -> None:
    assert est.memory.live <= est.memory.allocated == est.memory.arena.size
    assert sum(est.memory.by_role.values()) == est.memory.live


def test_tensors_alive_together_do_not_overlap(est: pk.Estimate) -> None:
    arena = est.memory.arena
    places = [(t.first, t.last, arena.offsets[t.name], arena.offsets[t.name] + t.size) for t in arena.lifetimes]
    for i, (first, last, low, high) in enumerate(places):
        for other_first, other_last, other_low, other_high in places[i + 1 :]:
            together = first <= other_last and other_first <= last
            assert not together or high <= other_low or other_high <= low


def test_the_peak_of_a_chain_of_layers_is_its_widest_input_and_output(est: pk.Estimate) -> None:
    """Counted by hand over the operators: inputs, outputs, and a shortcut that waits for its addition."""
    program = est.memory.program
    last_use: dict[int, int] = {}
    for position, step in enumerate(program.steps):
        for key in (*step.makes, *step.touches):
            last_use[key] = position
    alive: set[int] = {k for k in program.resident if program.storages[k].tensor.role == "input"}
    most = 0
    for position, step in enumerate(program.steps):
        alive |= set(step.makes)
        inside = sum(program.workspaces.get(id(step.operator), ()))
        most = max(most, inside + sum(program.sizes[key] for key in alive))
        alive = {key for key in alive if last_use[key] > position}
    assert est.memory.live == most


def test_either_wall_can_stop_it() -> None:
    graph = pk.inference("mobilenet-v2-0.35", dtype="int8", image=96)
    roomy = {"memory.sram.capacity": "16 MiB", "memory.flash.capacity": "16 MiB"}
    assert pk.estimate(graph, pk.device("stm32h743", **roomy)).fits
    assert not pk.estimate(graph, pk.device("stm32h743", **{**roomy, "memory.sram.capacity": "64 KiB"})).fits
    assert not pk.estimate(graph, pk.device("stm32h743", **{**roomy, "memory.flash.capacity": "64 KiB"})).fits


def test_what_is_trained_cannot_lie_in_flash() -> None:
    step = pk.training_step("resnet-8", dtype="fp32", optimizer="sgd")
    memory = pk.estimate(step, "stm32h743").memory
    assert memory.stores["flash"][0] == 0
    assert memory.by_role["parameter"] == step.total_bytes("parameter")


def test_a_sweep_plans_an_arena_for_each_configuration() -> None:
    images = np.array([64, 96, 128])
    sweep = pk.estimate(pk.inference("mobilenet-v2-0.35", dtype="int8", image=images), "stm32h743")
    for i, image in enumerate(images.tolist()):
        one = pk.estimate(pk.inference("mobilenet-v2-0.35", dtype="int8", image=image), "stm32h743").memory
        assert (sweep.memory.live[i], sweep.memory.allocated[i]) == (one.live, one.allocated)
        assert bool(sweep.fits[i]) == one.fits
