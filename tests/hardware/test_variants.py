"""Variants: a field changed, what follows from it, and nothing else."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peakline.hardware import Device, device, devices


def test_a_variant_changes_one_field_and_says_so_in_its_name() -> None:
    base = device("h100-sxm")
    variant = device("h100-sxm", **{"memory.hbm.capacity": "141 GB"})
    assert variant.name == "h100-sxm[memory.hbm.capacity=141 GB]"
    assert variant.main.capacity == 141 * 10**9
    assert variant.main.bandwidth == base.main.bandwidth
    assert variant.compute == base.compute
    assert base.main.capacity == device("h100-sxm").main.capacity != variant.main.capacity


def test_a_bare_level_is_its_capacity() -> None:
    assert device("h100-sxm", hbm="96 GiB").main.capacity == 96 * 2**30
    assert device("stm32h743", sram="512 KiB").main.capacity == 512 * 1024


def test_a_name_spells_its_variant() -> None:
    assert device("h100[hbm=96 GiB]").main.capacity == 96 * 2**30
    assert device("h100-sxm[hbm=96 GiB, power.tdp=350 W]").tdp == 350
    assert device("a100-80gb[compute.units=54]").level("shared").capacity == 54 * 164 * 1024


def test_peaks_follow_units_and_clock() -> None:
    base = device("a100-80gb")
    half = device(base, **{"compute.units": 54})
    assert half.peak("bf16") == pytest.approx(base.peak("bf16") / 2)
    assert half.level("shared").capacity == 54 * 164 * 1024
    slow = device(base, **{"compute.clock": "705 MHz"})
    assert slow.peak("fp32", "vector") == pytest.approx(base.peak("fp32", "vector") / 2)
    assert slow.ops_per_cycle("bf16") == pytest.approx(base.ops_per_cycle("bf16"))
    assert slow.main.bandwidth == base.main.bandwidth


def test_a_peak_set_by_the_caller_stays() -> None:
    variant = device("a100-80gb", **{"compute.clock": "705 MHz", "compute.matrix.bf16": "300 TFLOP/s"})
    assert variant.peak("bf16") == 300e12
    assert variant.peak("fp16") == pytest.approx(156e12)


def test_a_bare_number_is_in_si_units() -> None:
    assert device("h100-sxm", hbm=2**36).main.capacity == 2**36


def test_an_overridden_figure_names_the_caller_as_its_source() -> None:
    assert device("h100-sxm", hbm="96 GiB").main.source_of("capacity") == "set by the caller"


def test_a_variant_of_a_variant_keeps_both() -> None:
    variant = device(device("h100-sxm", hbm="96 GiB"), **{"memory.hbm.bandwidth": "5 TB/s"})
    assert (variant.main.capacity, variant.main.bandwidth) == (96 * 2**30, 5e12)


def test_a_device_survives_the_way_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(device("h100-sxm")))
    assert sent == device("h100-sxm")
    assert device(sent, hbm="1 GiB").main.capacity == 2**30


def test_a_device_read_from_json_varies_like_the_original() -> None:
    base = device("a100-80gb")
    changes = {"compute.clock": "1 GHz", "hbm": "60 GiB"}
    assert device(Device.from_json(base.to_json()), **changes).peak("bf16") == device(base, **changes).peak("bf16")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("memory.hmb.capacity", "memory.hbm.capacity"),
        ("hbm2", "hbm"),
        ("clock", "compute.clock"),
        ("compute.clok", "compute.clock"),
        ("tdp", "power.tdp"),
    ],
)
def test_an_unknown_field_names_the_nearest(key: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{hint}'"):
        device("h100-sxm", **{key: "1 GB"})


def test_a_wrong_unit_is_told_as_in_a_file() -> None:
    with pytest.raises(ValueError, match=r"memory\.hbm\.capacity: '3 GB/s' is a bandwidth: a capacity"):
        device("h100-sxm", hbm="3 GB/s")


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(devices("gpu")), st.integers(1, 10**6))
def test_any_capacity_is_taken_to_the_byte(name: str, mebibytes: int) -> None:
    base = device(name)
    assert device(base, **{base.main.name: f"{mebibytes} MiB"}).main.capacity == mebibytes * 2**20
