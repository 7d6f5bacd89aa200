"""The catalogue: every file reads, every figure has its source, and what NVIDIA prints follows from its clocks."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import yaml

from peakline.hardware import KINDS, Device, UnknownDevice, UnsupportedDtype, device, devices, kind_of
from peakline.hardware.figures import Section, figures_of
from peakline.hardware.index import aliases, file_of

ALL = devices()

# Dense tensor operations of one SM in one clock, from the architecture whitepapers: bf16/fp16 with fp32 accumulation.
TENSOR_PER_SM = {
    "v100-32gb": ("fp16", 1024), "v100-16gb": ("fp16", 1024), "t4": ("fp16", 1024), "rtx-2080-ti": ("fp16", 512),
    "a100-40gb": ("bf16", 2048), "a100-80gb": ("bf16", 2048), "a100-pcie-80gb": ("bf16", 2048), "a30": ("bf16", 2048),
    "a10": ("bf16", 1024), "a40": ("bf16", 1024), "rtx-a6000": ("bf16", 1024), "rtx-3090": ("bf16", 512),
    "rtx-3060-12gb": ("bf16", 512), "rtx-4090": ("bf16", 512), "rtx-4080": ("bf16", 512), "l40": ("bf16", 512),
    "l4": ("bf16", 1024), "l40s": ("bf16", 1024), "rtx-6000-ada": ("bf16", 1024), "h100-sxm": ("bf16", 4096),
    "h200": ("bf16", 4096), "gh200": ("bf16", 4096), "rtx-5090": ("bf16", 512), "rtx-5080": ("bf16", 512),
    "jetson-agx-orin-64gb": ("fp16", 2048), "jetson-orin-nano-8gb": ("fp16", 2048),
}  # fmt: skip
FP32_LANES = {
    "p100-16gb": 64, "v100-32gb": 64, "t4": 64, "a100-80gb": 64, "a30": 64, "h100-sxm": 128, "h100-pcie": 128,
    "h200": 128, "a10": 128, "a40": 128, "rtx-3090": 128, "rtx-4090": 128, "l4": 128, "l40s": 128, "rtx-5090": 128,
    "jetson-nano": 128, "jetson-agx-orin-64gb": 128,
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_every_file_reads_and_its_json_reads_back_the_same(name: str) -> None:
    entry = device(name)
    assert entry.name == name
    assert entry.kind == kind_of(name)
    assert Device.from_json(entry.to_json()) == entry


def _sections(node: Any) -> list[Section]:
    if isinstance(node, dict):
        return [found for part in node.values() for found in _sections(part)]
    if not hasattr(type(node), "model_fields"):
        return []
    below = [found for name in type(node).model_fields for found in _sections(getattr(node, name))]
    return [node, *below] if isinstance(node, Section) else below


@pytest.mark.parametrize("name", ALL)
def test_every_figure_of_every_device_has_a_source(name: str) -> None:
    for section in _sections(device(name)):
        for figure in figures_of(type(section)):
            if getattr(section, figure) is not None:
                assert len(section.cited[figure]) > 8, figure


def test_the_catalogue_has_every_kind_and_at_least_75_devices() -> None:
    assert len(ALL) >= 75
    assert set(Counter(kind_of(name) for name in ALL)) == set(KINDS)


def test_names_and_aliases_are_each_one_device() -> None:
    assert len(set(ALL)) == len(ALL)
    declared = [alias.lower() for name in ALL for alias in device(name).aliases]
    assert len(set(declared)) == len(declared)
    assert not set(declared) & set(ALL)


def test_the_index_finds_the_aliases_that_parsing_finds() -> None:
    parsed = {alias: name for name in ALL for alias in yaml.safe_load(file_of(name).read_text()).get("aliases", [])}
    assert dict(aliases()) == parsed


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("h100-sxm", ("main", "bandwidth"), 3352.32e9),
        ("a100-40gb", ("main", "bandwidth"), 1555e9),
        ("rtx-4090", ("main", "bandwidth"), 1008e9),
        ("mi300x", ("units",), 304),
        ("v100-32gb", ("tdp",), 300),
        ("stm32h743", ("main", "capacity"), 2**20),
        ("stm32f746", ("main", "capacity"), 320 * 1024),
        ("stm32f746", ("clock",), 216e6),
        ("tpu-v5e", ("main", "capacity"), 16 * 2**30),
        ("h100-sxm", ("compute_capability",), (9, 0)),
        ("mi300x", ("compute_capability",), None),
    ],
)
def test_figures_are_the_datasheets(name: str, path: tuple[str, ...], value: object) -> None:
    found: Any = device(name)
    for part in path:
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("name", "dtype", "engine", "tera"),
    [
        ("h100-sxm", "bf16", "matrix", 989.4),
        ("h100-sxm", "fp32", "matrix", 66.9),
        ("a100-80gb", "tf32", "matrix", 156),
        ("a100-80gb", "fp64", "vector", 9.7),
        ("rtx-3090", "fp16", "matrix", 71),
        ("rtx-4090", "bf16", "matrix", 165.2),
        ("b200", "nvfp4", "matrix", 9000),
        ("v100-32gb", "fp16", "matrix", 125),
        ("tpu-v4", "bf16", "matrix", 275),
        ("xeon-8480plus", "bf16", "matrix", 56 * 2.0e9 * 2048 / 1e12),
        ("stm32h743", "int8", "matrix", 480e6 * 2 * 2 / 1e12),
    ],
)
def test_peaks_are_dense_and_on_the_right_engine(name: str, dtype: str, engine: str, tera: float) -> None:
    assert device(name).peak(dtype, engine) == pytest.approx(tera * 1e12, rel=1e-9)


@pytest.mark.parametrize("name", TENSOR_PER_SM)
def test_a_tensor_peak_is_units_times_clock_times_what_one_sm_does(name: str) -> None:
    dtype, per_sm = TENSOR_PER_SM[name]
    assert device(name).ops_per_cycle(dtype) == pytest.approx(per_sm, rel=0.015)


@pytest.mark.parametrize("name", FP32_LANES)
def test_a_vector_peak_is_two_operations_for_each_lane_and_clock(name: str) -> None:
    assert device(name).ops_per_cycle("fp32", "vector") == pytest.approx(2 * FP32_LANES[name], rel=0.015)


@pytest.mark.parametrize("name", ["tpu-v1", "tpu-v2", "tpu-v3", "tpu-v4", "tpu-v4i", "tpu-v5e", "tpu-v5p"])
def test_a_tpu_peak_is_its_arrays_times_its_clock(name: str) -> None:
    entry = device(name)
    assert entry.npu is not None
    assert entry.npu.array_rows is not None
    assert entry.npu.array_columns is not None
    macs = entry.npu.array_rows * entry.npu.array_columns * (entry.npu.arrays_per_unit or 0)
    assert entry.ops_per_cycle("int8" if name == "tpu-v1" else "bf16") == pytest.approx(2 * macs, rel=0.01)


@pytest.mark.parametrize("name", [n for n in ALL if kind_of(n) == "gpu"])
def test_halving_the_width_of_a_tensor_format_never_slows_it(name: str) -> None:
    rates = device(name).rates("matrix")
    for wide, narrow in (("tf32", "bf16"), ("bf16", "fp8"), ("fp8", "fp4")):
        if wide in rates and narrow in rates:
            assert rates[narrow] >= rates[wide]


def test_memory_runs_from_near_to_far_and_main_holds_the_tensors() -> None:
    h100 = device("h100-sxm")
    assert list(h100.memory) == ["registers", "shared", "l2", "hbm"]
    assert h100.main.name == "hbm"
    assert [level.name for level in h100.onchip] == ["registers", "shared", "l2"]
    mcu = device("stm32h743")
    assert mcu.main.name == "sram"
    assert [level.name for level in mcu.farther] == ["flash"]
    assert mcu.level("flash").access == "read-only"


def test_totals_follow_from_figures_per_unit() -> None:
    shared = device("a100-80gb").level("shared")
    assert shared.capacity == 108 * 164 * 1024
    assert shared.bandwidth == pytest.approx(108 * 128 * 1.41e9)


def test_an_unsupported_format_lists_those_supported() -> None:
    with pytest.raises(UnsupportedDtype, match="it supports: int8"):
        device("coral-edge-tpu").peak("bf16")
    assert not device("v100-32gb").supports("bf16")
    with pytest.raises(UnsupportedDtype, match="fp16"):
        device("v100-32gb").peak("bf16")
    with pytest.raises(UnsupportedDtype, match="does not compute"):
        device("pcie-4-x16").peak("fp32")


def test_a_narrow_float_is_widened_on_vector_units() -> None:
    t4 = device("t4")
    assert t4.peak("bfloat16", "vector") == t4.peak("fp32", "vector")


def test_names_ignore_case_and_underscores() -> None:
    assert device("H100_SXM") is device("h100") is device(" h100 sxm ")


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(UnknownDevice, match="rtx-5090"):
        device("rtx-5091")
    with pytest.raises(ValueError, match="accepted: gpu"):
        devices("tpu")


def test_the_context_of_a_gpu_grows_with_the_threads_it_can_hold() -> None:
    contexts = {n: device(n).software.context_bytes for n in ("t4", "v100-32gb", "a100-80gb", "h100-sxm")}
    assert list(contexts.values()) == sorted(contexts.values())
    assert contexts["a100-80gb"] == pytest.approx(0.47e9, rel=0.02)


def test_importing_and_listing_load_neither_pydantic_nor_yaml() -> None:
    code = (
        "import sys, peakline.hardware as h; n = len(h.devices()); "
        "assert n >= 75; print([m for m in ('pydantic', 'yaml', 'matplotlib', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
