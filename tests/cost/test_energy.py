"""Energies of processes and technologies against published tables, and what follows for whole devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import peakline as pk
from peakline.cli import main
from peakline.cost.energy import Energy, consumption, energy_per_byte
from peakline.energy_roofline import energy_roofline
from peakline.hardware import device, devices
from peakline.hardware.technology import memory_energy, operation_energy, sram_energy

# Jouppi et al., ISCA 2021, table 2, in pJ: (multiply, the 32-bit add beside it) at 45 and 7 nm.
TABLE = {"int8": ((0.2, 0.1), (0.07, 0.03)), "fp16": ((1.1, 0.9), (0.34, 0.38)), "fp32": ((3.7, 0.9), (1.31, 0.38))}


@pytest.mark.parametrize("name", TABLE)
def test_a_multiply_accumulate_costs_what_the_tables_say(name: str) -> None:
    for nm, (product, total) in zip((45, 7), TABLE[name]):
        found = operation_energy(name, nm)
        assert found is not None
        assert 2e12 * found == pytest.approx(product + total)


def test_bf16_at_7_nm_is_the_figure_that_tpus_files_name() -> None:
    assert operation_energy("bf16", 7) == pytest.approx(device("tpu-v4i").compute.energy.bf16)  # type: ignore[union-attr]


@given(st.floats(2, 130), st.sampled_from(["int4", "int8", "int16", "fp8", "bf16", "fp16", "tf32", "fp32"]))
def test_an_older_process_and_a_wider_format_never_cost_less(nm: float, name: str) -> None:
    now, before = operation_energy(name, nm), operation_energy(name, nm * 1.3)
    assert now is not None
    assert before is not None
    assert now < before
    wider = {"int4": "int8", "int8": "int16", "int16": "int32", "fp8": "bf16", "bf16": "fp16", "fp16": "fp32"}.get(name)
    if wider:
        assert now < (operation_energy(wider, nm) or 0.0)


@given(st.integers(1 << 10, 1 << 28), st.floats(3, 45))
def test_a_larger_memory_costs_more_a_byte(capacity: int, nm: float) -> None:
    assert sram_energy(capacity, nm) <= sram_energy(2 * capacity, nm)
    assert sram_energy(1 << 13, nm) < sram_energy(1 << 20, nm)


def _at_full_rate(name: str) -> float | None:
    """Watts of all arithmetic and all of main memory's bandwidth at once."""
    found = device(name)
    per_byte, nm = energy_per_byte(found, found.main.name), found.process.nm
    rates = found.rates("matrix") or found.rates("vector")
    if per_byte is None or nm is None or not found.main.bandwidth or not rates:
        return None
    tabulated = {form: rate for form, rate in rates.items() if form in ("int8", "bf16", "fp16", "fp32")}
    arithmetic = max(rate * (operation_energy(form, nm) or 0.0) for form, rate in tabulated.items())
    return arithmetic + found.main.bandwidth * per_byte + (found.power.idle or 0.0)


def test_no_device_exceeds_its_limit_by_more_than_a_tenth_at_full_rate() -> None:
    limited = [name for name in devices() if device(name).memory and device(name).tdp]
    known = {name: watts for name in limited if (watts := _at_full_rate(name))}
    assert len(known) > 50
    over = {name: watts for name, watts in known.items() if watts > 1.1 * (device(name).tdp or 0.0)}
    # all of their SRAM at once, priced as accesses of 64 bits: 20 PB/s, and 80 TB/s in accesses of 128 bits and more
    assert set(over) == {"cerebras-wse-2", "cerebras-wse-3", "groq-lpu"}


def test_tpu_v4_at_full_rate_draws_what_was_measured_at_most() -> None:
    watts = _at_full_rate("tpu-v4")
    assert watts == pytest.approx(192, rel=0.1)  # Jouppi et al., ISCA 2023, table 4


def test_parts_add_up_and_lie_below_the_boards_limit() -> None:
    est = pk.estimate(pk.prefill("llama-3.2-1b", seq=512), "a100-80gb")
    energy = est.energy
    assert energy is not None
    assert set(energy.parts) == {"arithmetic", "instructions", "hbm", "l2"}
    assert sum(energy.parts.values()) == pytest.approx(energy.total)
    assert energy.total < energy.at_limit
    assert set(energy.derived) == {"arithmetic", "instructions", "l2"}  # the file names HBM2's


def test_what_the_file_names_comes_before_what_the_process_says() -> None:
    graph = pk.prefill("llama-3.2-1b", seq=128)
    named = pk.device("h100-sxm", **{"compute.energy.bf16": "1 pJ/FLOP", "memory.hbm.energy_per_byte": "10 pJ/B"})
    est = pk.estimate(graph, named)
    assert est.energy is not None
    assert est.energy.parts["hbm"] == pytest.approx(10e-12 * est.cost.traffic["hbm"])
    assert "hbm" not in est.energy.derived


def test_a_device_whose_memory_nobody_measured_has_no_energy() -> None:
    est = pk.estimate(pk.prefill("llama-3.2-1b", seq=128), "rtx-5090")
    assert est.energy is None
    assert est.to_dict()["energy"] is None


def test_a_step_that_would_draw_more_than_the_limit_is_stretched_until_it_does_not() -> None:
    hot = Energy({"arithmetic": 900.0, "idle": 100.0}, 1.0, 600.0)
    assert hot.capped_seconds == pytest.approx(900 / 500)
    assert (900 + 100 * hot.capped_seconds) / hot.capped_seconds == pytest.approx(600)
    assert Energy({"arithmetic": 10.0}, 1.0, 600.0).capped_seconds == 1.0


def test_a_quarter_of_the_weights_bits_saves_a_bandwidth_bound_step_as_many_joules() -> None:
    # EfficientLLM (arXiv:2505.13840): int4 takes up to 3.9 times less energy than float16
    wide = pk.estimate(pk.decode("llama-2-7b", batch=1, context=128, dtype="fp16"), "h200").energy
    narrow = pk.estimate(
        pk.decode("llama-2-7b", batch=1, context=128, dtype="fp16", weight_dtype="int4-g128", kernels="fused"), "h200"
    ).energy
    assert wide is not None
    assert narrow is not None
    assert 2.8 < wide.total / narrow.total < 3.9


def test_the_price_of_a_million_tokens_is_the_hours_they_take() -> None:
    est = pk.estimate(pk.decode("llama-3.2-1b", batch=4, context=256), "a100-80gb")
    step, million = est.price(3.0)
    assert step == pytest.approx(est.time / 3600 * 3.0)
    assert million == pytest.approx(step / 4 * 1e6)
    with pytest.raises(ValueError, match="per_hour"):
        est.price(-1.0)


def test_no_operator_does_more_operations_a_joule_than_the_arch_allows() -> None:
    found = energy_roofline(pk.estimate(pk.decode("gpt2", batch=4, context=512), "a100-80gb"))
    assert found.balance == pytest.approx(found.per_byte / found.per_operation)
    assert found.roof(found.balance) == pytest.approx(found.roof(1e12) / 2, rel=1e-6)
    for point in found.points:
        assert point.efficiency <= found.roof(point.intensity) * (1 + 1e-9)


def test_the_parts_of_the_energy_roofline_are_those_of_the_estimate() -> None:
    est = pk.estimate(pk.decode("gpt2", batch=4, context=512), "a100-80gb")
    assert est.energy is not None
    assert sum(p.joules for p in energy_roofline(est).points) == pytest.approx(est.energy.total, rel=1e-6)


def test_roofline_with_energy_prints_the_balance_and_draws_the_arch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib draws")
    words = ["roofline", "gpt2", "--device", "a100-80gb", "--decode", "--batch", "4", "--context", "512", "--energy"]
    assert main([*words, "--plot", str(tmp_path / "energy.png")]) == 0
    assert "cost the same at" in capsys.readouterr().out
    assert (tmp_path / "energy.png").stat().st_size > 10_000
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["energy"]
    assert found["balance"] > 0
    assert found["points"][0]["operations_per_joule"] > 0


def test_a_sweep_has_one_energy_for_each_configuration() -> None:
    import numpy as np

    sweep = pk.estimate(pk.prefill("llama-3.2-1b", batch=np.array([1, 4]), seq=128), "a100-80gb").energy
    assert sweep is not None
    for i, batch in enumerate((1, 4)):
        single = pk.estimate(pk.prefill("llama-3.2-1b", batch=batch, seq=128), "a100-80gb").energy
        assert single is not None
        assert sweep.total[i] == pytest.approx(single.total, rel=1e-12)


def test_technologies_are_told_by_their_beginning() -> None:
    assert memory_energy("HBM3e") == memory_energy("HBM2") == pytest.approx(31.4e-12)
    assert memory_energy("GDDR6X") == pytest.approx(51.9e-12)
    assert memory_energy("LPDDR5") is None
    assert consumption(
        pk.estimate(pk.prefill("gpt2", seq=64, dtype="bf16"), "h100-sxm").cost, device("h100-sxm"),
        pk.prefill("gpt2", seq=64, dtype="bf16"),
    ) is not None  # fmt: skip
