"""Every device that the collected papers name is in the catalogue, or on the page's list of those without figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from peakline.hardware import UnknownDevice, device, devices
from peakline.hardware.index import find

ROOT = Path(__file__).parents[2]
CLAIMS = ROOT.parent / "shared" / "reference" / "claims_dev.jsonl"

NO_DEVICE = re.compile(
    r"unnamed|generic|unspecified|abstract|context only|consumer|commodity|hosts?\b|devices?$|devices \(|interconnect|"
    r"target|analog|binary tensor|low-memory|high-end|free-tier|colab|desktop|server hardware|two-level|cluster|"
    r"testbed|nodes?\b|scratchpad|single gpu|^\d+gb dram|< 8|\d+ ?gb gpu|\d+x\d+gb|"
    r"^(cpu|gpu|ram|disk|dsp|ssd|fpga|dram|npu|pcie|mcu|tpu|custom asic|dram pim)\b",
    re.IGNORECASE,
)
"""Words for no particular device: 'GPU (unnamed)', 'consumer GPUs', 'host RAM'."""

SPELT = {
    "h100": "h100-sxm",
    "a100-40g": "a100-40gb",
    "a100": "a100-80gb",
    "hopper": "h100-sxm",
    "ada": "rtx-4090",
    "ampere": "a100-80gb",
    "hopper gpus": "h100-sxm",
    "v100": "v100-32gb",
    "a6000": "rtx-a6000",
    "gv100": "quadro-gv100",
    "2080ti": "rtx-2080-ti",
    "3090": "rtx-3090",
    "4090": "rtx-4090",
    "titan rtx": "titan-rtx",
    "titan xp": "titan-xp",
    "rtx 6000": "quadro-rtx-6000",
    "tpuv3 pod": "tpu-v3",
    "iphone 15 pro": "apple-a17-pro",
    "tesla p100": "p100-16gb",
    "rtx3060 laptop": "rtx-3060-laptop-6gb",
    "gh200": "gh200",
    "xeon": "xeon-8480plus",
    "intel cpus with amx": "xeon-8480plus",
    "jetson": "jetson-agx-orin-64gb",
    "larc": "larc",
    "duplex": "duplex-logic-pim",
    "pim dram": "neupims",
    "dgx": "a100-80gb",
    "dgx-2": "v100-32gb",
    "superconducting digital": "imec-spu",
    "cxl add-in card": "cz120-256gb",
    "frontier": "mi250x",
    "intel gpu": "gpu-max-1550",
    "v100s": "v100s-pcie-32gb",
    "versal vhk158": "vhk158",
    "alveo u280": "alveo-u280",
    "sambanova sn40l rdu": "sambanova-sn40l",
    "nvme ssd": "samsung-pm1743-7.68tb",
    "l40": "l40",
    "a800": "a800",
    "computational storage drives": "smartssd-3.84tb",
    "stm32f746": "stm32f746",
    "tensor cores": "h100-sxm",
    "mcu / iot device": "stm32f746",
    "microcontroller": "stm32f412",
    "tiny devices": "stm32h743",
    "raspberry pi": "raspberry-pi-4",
    "android": "hexagon-8-gen-3",
    "ios": "apple-a17-pro",
    "mobile": "hexagon-8-gen-3",
    "nvlink multi-gpu": "nvlink-4",
    "dgx h100": "h100-sxm",
    "dgx a100": "a100-80gb",
}


def _named(text: str) -> str | None:
    """The catalogue's name of a device in a paper's words; None where nothing like it is there."""
    plain = re.sub(
        r"\(.*?\)|\b\d+x\b|\bnvidia\b|\bamd\b|\bintel (?=xeon|gaudi)|\bxilinx\b|\bgpus?\b", " ", text.lower()
    )
    plain = re.sub(r"[\s\-]+", " ", plain).strip()
    for candidate in (plain, plain.replace(" ", "-"), re.sub(r" ?\d+ ?gb$| sxm.*$| pcie.*$", "", plain)):
        spelt = {key.replace("-", " "): value for key, value in SPELT.items()}
        if candidate in spelt:
            return spelt[candidate]
        try:
            return find(candidate)
        except UnknownDevice:
            continue
    words = [value for key, value in SPELT.items() if plain.startswith(key.replace("-", " "))]
    return words[0] if words else None


def _papers_words() -> set[str]:
    rows = [json.loads(line) for line in CLAIMS.read_text(encoding="utf-8").splitlines()]
    return {word for row in rows for word in row["hardware"]}


@pytest.mark.skipif(not CLAIMS.is_file(), reason="the collected claims lie beside the project")
def test_a_device_named_in_a_paper_is_in_the_catalogue_or_on_the_list_without_figures() -> None:
    page = (ROOT / "docs" / "hardware.md").read_text(encoding="utf-8")
    absent = page[page.index("## What is not in the catalogue") : page.index("## The catalogue")].lower()
    unknown = []
    for text in sorted(_papers_words()):
        first = re.split(r"[\s(]", text.strip())[0].lower()
        if _named(text) is None and not NO_DEVICE.search(text) and first not in absent:
            unknown.append(text)
    assert unknown == []


@pytest.mark.parametrize("name", sorted(set(SPELT.values())))
def test_what_papers_words_stand_for_exists(name: str) -> None:
    assert device(name).name == name


@pytest.mark.parametrize(
    "name",
    [
        "b200", "gb200", "b300", "mi300x", "mi325x", "mi355x", "tpu-v5e", "tpu-v5p", "tpu-v6e", "tpu-v7", "trainium2",
        "gaudi3", "h20", "l40s", "rtx-5090", "rtx-5070", "rtx-3080", "jetson-thor", "agx-orin", "m3-ultra", "m1-max",
        "snapdragon-x-elite", "groq", "wse-3", "sn40l", "n150", "910b", "910c", "mtia", "maia-100", "ryzen-ai", "u55c",
        "stm32n6", "esp32-s3", "ethos-u65", "ethos-u85", "max78000", "k210", "gap8", "gap9", "coral-edge-tpu", "upmem",
        "genoa-x", "a64fx", "dgx-spark", "gb10", "strix-halo", "p40", "k80", "1080ti", "northpole", "rpi-5", "smartssd",
    ],
)  # fmt: skip
def test_what_papers_of_these_years_run_on_is_there(name: str) -> None:
    assert device(name).compute is not None or device(name).kind in ("ssd", "dram", "link", "cxl")


def test_devices_that_were_only_modelled_say_so() -> None:
    hypothetical = {name for name in devices() if device(name).status == "hypothetical"}
    assert {"imec-spu", "larc", "attacc", "neupims", "neupims-npu", "duplex-logic-pim", "pim-gpt"} <= hypothetical
    for name in hypothetical:
        note = (device(name).note or "").lower()
        assert "design" in device(name).title.lower()
        assert "modelled" in note or "simulated" in note
