"""Memory under inference libraries: paddings, outputs over inputs, windows, structures; patches; training."""

from __future__ import annotations

from pathlib import Path

import pytest

import peakline as pk
from peakline.memory.lifetimes import unroll
from peakline.memory.patches import patch_plan
from peakline.memory.sparse_update import SparseUpdate, extra_memory, full_update, training_peak, weighted_operators
from peakline.validation.microcontrollers import microcontrollers

REFERENCE = Path(__file__).parents[2].parent / "shared" / "reference"
measured = pytest.mark.skipif(
    not (REFERENCE / "measured" / "tinyengine_stm32h743.csv").exists(), reason="the measured tables are not at hand"
)
KIB = 1024


def _memory(network: str, runtime: str, device: str = "stm32h743", **options: object):  # type: ignore[no-untyped-def]
    return pk.estimate(pk.inference(network, dtype="int8", **options), device, runtime=runtime).memory


@measured
@pytest.mark.parametrize(("what", "most"), [("SRAM KiB", 0.10), ("flash KiB", 0.06)])
def test_memory_is_within_ten_percent_on_every_described_row(what: str, most: float) -> None:
    table = microcontrollers(REFERENCE)
    errors = table[(table["what"] == what) & table["error"].notna()]["error"].astype(float)
    assert len(errors) >= 20
    assert errors.abs().max() < most


def test_a_stated_padding_is_a_copy_and_keras_padding_is_none() -> None:
    names = [t.name for t in _memory("mcunet-vww0", "tflm").arena.lifetimes]
    assert sum(name.endswith(".pad") for name in names) == 15
    assert not any(t.name.endswith(".pad") for t in _memory("mobilenet-v1-0.25-vww", "tflm").arena.lifetimes)


def test_a_padded_copy_is_as_large_as_the_padded_image() -> None:
    pad = next(t for t in _memory("mcunet-vww0", "tflm").arena.lifetimes if t.name.endswith(".pad"))
    assert pad.size == 3 * (64 + 2) * (64 + 2)


def test_in_place_depthwise_leaves_the_expansion_and_its_input_as_the_peak() -> None:
    """MCUNet-VWW2 at 144 pixels: 8 channels become 24 at 72 × 72 (arXiv:2007.10319, §3.2)."""
    memory = _memory("mcunet-vww2", "tinyengine")
    assert memory.arena.bound == (8 + 24) * 72 * 72
    assert memory.context == 2 * (72 + 2) ** 2 + 2 * 16 * 27  # twice a padded plane, and the first weights widened


def test_outputs_over_inputs_never_need_more() -> None:
    for network in ("mcunet-in0", "mcunet-in3", "mbv2-w0.35", "proxyless-w0.3"):
        sizes = [_memory(network, r).arena.bound for r in ("x-cube-ai", "tinyengine", "tflm")]
        assert max(sizes[:2]) <= sizes[2]


@pytest.mark.parametrize("runtime", ["tflm", "cmsis-nn", "x-cube-ai", "tinyengine"])
def test_what_is_alive_fits_in_the_arena_and_has_a_role(runtime: str) -> None:
    memory = _memory("mcunet-in2", runtime)
    assert memory.live <= memory.arena.size
    assert sum(memory.by_role.values()) == memory.live
    assert memory.device == memory.arena.size + memory.context


def test_batches_and_sweeps_are_planned_like_single_configurations() -> None:
    import numpy as np

    images = np.array([48, 96, 160])
    sweep = pk.estimate(pk.inference("mcunet-in0", dtype="int8", image=images), "stm32h743").memory
    for i, image in enumerate(images.tolist()):
        assert sweep.device[i] == _memory("mcunet-in0", "tinyengine", image=image).device


def test_one_arena_is_contiguous() -> None:
    """1 MiB of SRAM in several banks: MobileNetV2-0.35 needs 573 KiB in one piece under TensorFlow Lite Micro."""
    memory = _memory("mbv2-w0.35", "tflm")
    assert memory.capacity == 512 * KIB < memory.device < 1024 * KIB
    assert not memory.fits


# ---- patches ---------------------------------------------------------------------------------------------------------
def test_one_patch_is_the_whole_network() -> None:
    plan = patch_plan(pk.inference("mcunet-in4", dtype="int8"), 1, 8)
    assert (plan.peak, plan.macs) == (plan.whole_peak, plan.whole_macs)


def test_macs_of_patches_equal_a_count_of_positions_one_by_one() -> None:
    """Every output position of every patch counted as a set, walking backwards through kernels, strides and borders."""
    graph = pk.inference("mcunet-vww0", dtype="int8")
    program, stage, patches = unroll(graph), 5, 3
    total = 0
    out = program.storages[program.steps[stage - 1].makes[0]].tensor
    rows = [range(i * out.shape[2] // patches, (i + 1) * out.shape[2] // patches) for i in range(patches)]
    for vertical in rows:
        for horizontal in rows:
            need = [set(vertical), set(horizontal)]
            for step in reversed(program.steps[:stage]):
                x, w = program.storages[step.touches[0]].tensor, graph.tensors[step.operator.inputs[1]]
                channels = program.storages[step.makes[0]].tensor.shape[1]
                total += channels * len(need[0]) * len(need[1]) * w.shape[1] * w.shape[2] * w.shape[3]
                stride, padding = step.operator.attributes["stride"], step.operator.attributes["padding"]
                for axis in (0, 1):
                    reached = {
                        o * stride[axis] - padding[axis] + t for o in need[axis] for t in range(w.shape[2 + axis])
                    }
                    need[axis] = {position for position in reached if 0 <= position < x.shape[2 + axis]}
    plan = patch_plan(graph, patches, stage)
    rest = patch_plan(graph, 1, stage).whole_macs - sum(_macs(graph, step) for step in program.steps[:stage])
    assert plan.macs == total + rest


def _macs(graph: pk.Graph, step) -> int:  # type: ignore[no-untyped-def]
    w, y = graph.tensors[step.operator.inputs[1]], graph.tensors[step.operator.outputs[0]]
    return y.elements * w.shape[1] * w.shape[2] * w.shape[3]


def test_patches_cut_mobilenet_v2_as_published() -> None:
    """arXiv:2110.15352: 1372 kB layer by layer; about 8 times less with patches at about 10 % more computation."""
    plan = patch_plan(pk.inference("mobilenet-v2", dtype="int8"), 4, 13)
    assert plan.whole_peak == 1372 * KIB
    assert 6.5 < plan.whole_peak / plan.peak < 8.5
    assert 0.08 < plan.overhead < 0.12


def test_a_stage_that_is_no_chain_of_convolutions_is_refused() -> None:
    graph = pk.inference("resnet-8", dtype="int8")
    with pytest.raises(ValueError, match=r"stage: must be between 0 and"):
        patch_plan(graph, 2, 999)
    with pytest.raises(ValueError, match=r"patches: must be at most 32 "):
        patch_plan(graph, 64, 2)


# ---- training --------------------------------------------------------------------------------------------------------
SCHEMES = {
    49: (20, {24: 0.25, 27: 0.5, 30: 0.5}),
    74: (21, {21: 1.0, 24: 1.0, 27: 0.5, 30: 1.0}),
    99: (22, {21: 1.0, 24: 1.0, 27: 1.0, 30: 1.0, 36: 0.125, 39: 0.25}),
    124: (24, {21: 0.25, 24: 1.0, 27: 1.0, 30: 1.0, 33: 0.5, 39: 0.5}),
    148: (23, {21: 1.0, 24: 1.0, 27: 1.0, 30: 1.0, 36: 1.0, 39: 0.5}),
}
"""mit-han-lab/tiny-training, `compilation/mcu_ir_gen.py`: MCUNet-5fps, named by their extra kB."""


@pytest.fixture(scope="module")
def mcunet() -> pk.Graph:
    return pk.inference("mcunet-in1", dtype="int8", image=128, overrides={"classes": 10})


@pytest.mark.parametrize("kilobytes", SCHEMES)
def test_sparse_schemes_need_the_extra_memory_they_are_named_for(mcunet: pk.Graph, kilobytes: int) -> None:
    biases, weights = SCHEMES[kilobytes]
    update = SparseUpdate({**weights, -1: 1.0}, biases=biases + 1)
    assert extra_memory(mcunet, update) / KIB == pytest.approx(kilobytes, rel=0.01)


def test_a_sparse_update_needs_a_fraction_of_a_full_one(mcunet: pk.Graph) -> None:
    """arXiv:2206.15472 reports 7 to 9 times less for its schemes, measured."""
    biases, weights = SCHEMES[99]
    sparse = SparseUpdate({**weights, -1: 1.0}, biases=biases + 1, reorder=False)
    assert 7 < training_peak(mcunet, full_update(mcunet)).total / training_peak(mcunet, sparse).total < 10


def test_applying_gradients_at_once_never_needs_more(mcunet: pk.Graph) -> None:
    for biases, weights in SCHEMES.values():
        late, early = (training_peak(mcunet, SparseUpdate(weights, biases, reorder=r)).total for r in (False, True))
        assert early <= late
    full = [training_peak(mcunet, full_update(mcunet, reorder=r)).total for r in (False, True)]
    assert full[1] < full[0]


def test_updating_more_never_needs_less(mcunet: pk.Graph) -> None:
    last = len(weighted_operators(mcunet)) - 1
    peaks = [
        training_peak(mcunet, SparseUpdate(dict.fromkeys(range(last - k, last + 1), 1.0), biases=k + 1)).total
        for k in range(0, last, 6)
    ]
    assert peaks == sorted(peaks)


def test_a_bias_keeps_no_input(mcunet: pk.Graph) -> None:
    count = len(weighted_operators(mcunet))
    bias = training_peak(mcunet, SparseUpdate({}, biases=count))
    full = training_peak(mcunet, full_update(mcunet, reorder=True))
    assert bias.total < full.total / 3


def test_an_update_of_nothing_is_refused(mcunet: pk.Graph) -> None:
    with pytest.raises(ValueError, match="nothing is updated"):
        training_peak(mcunet, SparseUpdate({}))
    with pytest.raises(ValueError, match=r"no operator 99"):
        training_peak(mcunet, SparseUpdate({99: 1.0}))
