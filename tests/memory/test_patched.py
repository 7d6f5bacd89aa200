"""Networks in patches, 4-bit weights and training steps as estimates of a microcontroller."""

from __future__ import annotations

import json

import pytest

import peakline as pk
from peakline.cli import main
from peakline.memory.patched import patched, stages
from peakline.memory.patches import patch_plan
from peakline.memory.sparse_update import SparseUpdate, training_peak
from peakline.on_device import learning, read_update


@pytest.mark.parametrize(("model", "patches", "stage"), [("mobilenet-v2", 4, 13), ("mcunet-vww2", 3, 10)])
def test_the_patched_program_holds_what_windows_and_liveness_say(model: str, patches: int, stage: int) -> None:
    graph = pk.inference(model, dtype="int8")
    est = pk.estimate(patched(graph, patches, stage), "stm32h743")
    assert est.memory.live == patch_plan(graph, patches, stage).peak  # counted without building the program


def test_halos_cost_what_is_computed_twice() -> None:
    graph = pk.inference("mobilenet-v2", dtype="int8")
    whole, cut = pk.estimate(graph, "stm32h743"), pk.estimate(graph, "stm32h743", patches=4, patch_stage=13)
    assert cut.cost.flops / whole.cost.flops - 1 == pytest.approx(patch_plan(graph, 4, 13).overhead, rel=0.02)
    assert cut.time > whole.time
    assert cut.graph.total_bytes("parameter") == whole.graph.total_bytes("parameter")
    assert cut.memory.stores["flash"] == whole.memory.stores["flash"]


def test_a_patched_graph_is_well_formed_and_keeps_its_weights() -> None:
    graph = pk.inference("mcunet-vww2", dtype="int8")
    cut = patched(graph, 2, 6)
    cut.check()
    assert {t.name for t in cut.of_role("parameter")} == {t.name for t in graph.of_role("parameter")}


def test_a_stage_never_ends_inside_a_residual_block() -> None:
    graph = pk.inference("mobilenet-v2", dtype="int8")
    names = [o.type for _, o in graph.operators()]
    first_add = names.index("add")
    assert first_add not in stages(graph)
    assert first_add + 1 in stages(graph)


def test_auto_takes_patches_only_where_they_are_needed_and_as_few_as_fit() -> None:
    graph = pk.inference("mbv2-w0.35", dtype="int8")
    roomy = pk.estimate(graph, "stm32h743", runtime="tinyengine", patches="auto")
    tight = pk.estimate(graph, "stm32f412", runtime="tinyengine", patches="auto")
    assert "patches" not in roomy.graph.workload
    assert not pk.estimate(graph, "stm32f412", runtime="tinyengine").fits
    assert tight.fits
    assert tight.cost.flops < 1.05 * roomy.cost.flops


def test_the_papers_reduction_of_four_to_eight_times() -> None:
    # MCUNetV2, arXiv:2110.15352: peak memory of existing networks falls 4 to 8 times
    for model in ("mobilenet-v2", "mbv2-w0.35"):
        graph = pk.inference(model, dtype="int8", image=224)
        whole, cut = pk.estimate(graph, "stm32h743"), pk.estimate(graph, "stm32h743", patches=4)
        assert 3.5 < whole.memory.live / cut.memory.live < 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patches": 0}, "at least 1, or 'auto'"),
        ({"patches": 4, "patch_stage": 8}, "no stage can end"),
        ({"patches": 4, "runtime": "tflm"}, "does not run a network in patches"),
        ({"patch_stage": 3}, "how many patches"),
        ({"patches": 200}, "more than any stage"),
    ],
)
def test_what_cannot_be_cut_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pk.estimate(pk.inference("mobilenet-v2", dtype="int8"), "stm32h743", **options)  # type: ignore[arg-type]


def test_a_gpu_runs_nothing_in_patches() -> None:
    with pytest.raises(ValueError, match="microcontroller"):
        pk.estimate(pk.inference("mobilenet-v2", dtype="fp16"), "a100-80gb", patches=2)


def test_four_bit_weights_halve_the_weights_flash_and_cost_unpacking() -> None:
    wide = pk.estimate(pk.inference("mcunet-vww2", dtype="int8"), "stm32h743")
    mixed = pk.estimate(pk.inference("mcunet-vww2", dtype="int8", weight_dtype="int4"), "stm32h743")
    narrow = pk.estimate(pk.inference("mcunet-vww2", dtype="int4"), "stm32h743")
    weights = sum(t.bytes for t in wide.graph.of_role("parameter") if len(t.shape) > 1)
    assert wide.memory.stores["flash"][0] - mixed.memory.stores["flash"][0] == pytest.approx(weights / 2, rel=0.01)
    assert mixed.memory.live == wide.memory.live
    assert narrow.memory.live == pytest.approx(wide.memory.live / 2, rel=0.01)
    assert wide.time < mixed.time < 1.2 * wide.time
    assert narrow.memory.stores == mixed.memory.stores


def test_weights_of_a_training_step_keep_their_format() -> None:
    with pytest.raises(ValueError, match="has no gradients"):
        pk.training_step("resnet-8", batch=1, dtype="fp32", weight_dtype="int8")


MCUNET = ["estimate", "mcunet-in1", "--device", "stm32f746", "--infer", "--dtype", "int8", "--image", "128"]
SCHEME = "21,24,27,30,36:0.125,39:0.25,-1;biases=23"


def test_the_papers_update_trains_in_256_kilobytes_and_the_full_one_does_not() -> None:
    # On-device training under 256KB memory, arXiv:2206.15472
    est = pk.estimate(pk.inference("mcunet-in1", dtype="int8", image=128, overrides={"classes": 10}), "stm32f746")
    sparse, full = (learning(est, read_update(est, text)) for text in (SCHEME, "full"))
    assert sparse.fits
    assert sparse.sram < 256 * 1024 < full.sram
    assert not full.fits
    assert sparse.backward < full.backward < 2 * full.forward
    assert full.forward == est.time


def test_the_scheme_as_text_is_the_scheme() -> None:
    est = pk.estimate(pk.inference("mcunet-in1", dtype="int8", image=128, overrides={"classes": 10}), "stm32f746")
    scheme = {21: 1.0, 24: 1.0, 27: 1.0, 30: 1.0, 36: 0.125, 39: 0.25, -1: 1.0}
    assert read_update(est, SCHEME) == SparseUpdate(scheme, biases=23)
    assert learning(est, read_update(est, SCHEME)).peak == training_peak(est.graph, SparseUpdate(scheme, biases=23))
    with pytest.raises(ValueError, match="numbered 0 to"):
        read_update(est, "2x")


def test_the_command_line_trains_and_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MCUNET, "--override", "classes=10", "--sparse-update", SCHEME, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["training"]
    assert found["sram"] < 256 * 1024
    words = ["estimate", "mbv2-w0.35", "--device", "stm32f412", "--infer", "--dtype", "int8", "--runtime", "tinyengine"]
    assert main([*words, "--patches", "auto"]) == 0
    assert "patches; the image arrives patch by patch" in capsys.readouterr().out
    assert main([*words, "--patches", "some"]) == 2
