"""Catalogued vision networks: published parameters; networks for microcontrollers against published multiply-adds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from torch_reference import forward_flops

from peakline.models.catalogue import entry, models
from peakline.models.workloads import inference, training_step

SHARED = Path(__file__).parents[2].parent / "shared" / "reference" / "measured"
VISION = [name for name in models() if entry(name).family.kind in ("vision", "diffusion")]

# README of mit-han-lab/mcunet, "Model List": 10⁶ multiply-adds, 10⁶ parameters
MCUNET = {
    "mbv2-w0.35": (23.5, 0.75), "proxyless-w0.3": (38.3, 0.75), "mcunet-in0": (6.4, 0.75), "mcunet-in1": (12.8, 0.64),
    "mcunet-in2": (67.3, 0.73), "mcunet-in3": (81.8, 0.74), "mcunet-in4": (125.9, 1.73), "mcunet-vww0": (6.0, 0.37),
    "mcunet-vww1": (11.6, 0.43), "mcunet-vww2": (55.8, 0.64),
}  # fmt: skip
# weights and biases, and multiply-adds, of the operators in mlcommons/tiny's quantised reference models: ad01_int8,
# kws_ref_model, pretrainedResnet_quant, vww_96_int8 (.tflite)
MLPERF_TINY = {
    "fc-autoencoder": (265_864, 264_192),
    "ds-cnn": (22_604, 2_656_768),
    "resnet-8": (77_706, 12_501_632),
    "mobilenet-v1-0.25-vww": (210_850, 7_489_664),
}


@pytest.mark.parametrize("name", [n for n in VISION if entry(n).parameters])
def test_parameters_are_the_published_ones(name: str) -> None:
    assert inference(name, dtype="fp32").parameters == entry(name).parameters


@pytest.mark.parametrize("name", MCUNET)
def test_networks_of_the_mcunet_zoo_have_their_published_size(name: str) -> None:
    graph = inference(name, dtype="fp32")
    macs, parameters = MCUNET[name]
    assert round(forward_flops(graph) / 2e6, 1) == macs
    # the README truncates one entry (mcunet-vww1: 432,746) and rounds the others
    assert graph.parameters / 1e6 == pytest.approx(parameters, abs=0.006)


def test_the_measured_table_agrees_with_the_networks() -> None:
    table = SHARED / "mcunet_stm32f746.csv"
    if not table.exists():
        pytest.skip(f"{table} is not here")
    known = {alias: name for name in MCUNET for alias in entry(name).aliases}
    rows = [row for row in csv.DictReader(table.open()) if row["net_id"] in known]
    assert rows
    for row in rows:
        graph = inference(known[row["net_id"]], dtype="int8")
        assert round(forward_flops(graph) / 2e6, 1) == float(row["macs_M"])


@pytest.mark.parametrize("name", MLPERF_TINY)
def test_integer_reference_networks_of_mlperf_tiny_have_their_size(name: str) -> None:
    graph = inference(name, dtype="int8")
    assert (graph.parameters, forward_flops(graph) // 2) == MLPERF_TINY[name]


@pytest.mark.parametrize("name", ["mcunet-in3", "mobilenet-v2", "ds-cnn", "resnet-8", "fc-autoencoder"])
def test_integer_inference_holds_one_byte_numbers_except_biases(name: str) -> None:
    graph = inference(name, dtype="int8")
    wide = {t.name for t in graph.tensors.values() if t.dtype.bits > 8}
    assert wide == {t.name for t in graph.tensors.values() if t.role == "parameter" and len(t.shape) == 1}


@pytest.mark.parametrize("name", VISION)
def test_every_network_trains(name: str) -> None:
    overrides = {"classes": 10} if getattr(entry(name).config, "classes", 10) == 0 else None
    step = training_step(name, batch=2, dtype="fp32", optimizer="sgd", overrides=overrides)
    assert {op.phase for _, op in step.operators()} == {"forward", "backward", "optimizer"}
