"""What a notebook shows of a device, a graph, an estimate and the two kinds of plan: small, escaped, all in itself."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

import peakline as pk
from peakline.hardware.units import format_bytes

EVIL = "<script>alert('a')</script>"


class Reader(HTMLParser):
    """Tags opened and closed in balance, attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def shown(thing: Any) -> str:
    """The text of a thing's HTML, which is checked to be small, balanced, and without scripts or references."""
    text = thing._repr_html_()
    assert len(text) < 40_000
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert not reader.tags & {"script", "link", "style", "img", "iframe"}
    assert reader.attributes <= {"class", "style"}
    return reader.text


@pytest.fixture(scope="module")
def step() -> pk.Graph:
    return pk.training_step("gpt2", batch=1, seq=64, optimizer="adamw-fused", overrides={"layers": 2})


@pytest.mark.parametrize("name", pk.devices())
def test_every_device_shows_its_levels_and_their_capacity(name: str) -> None:
    device = pk.device(name)
    text = shown(device)
    assert (device.title or device.name) in text
    assert all(level.name in text for level in device.memory.values())
    assert all(format_bytes(level.capacity) in text for level in device.memory.values() if level.capacity)


def test_a_graph_shows_its_workload_and_its_bytes_by_role(step: pk.Graph) -> None:
    text = shown(step)
    assert "gpt2" in text
    assert f"{step.total_bytes('parameter'):,}" in text
    assert "backward" in text


def test_a_sweep_shows_the_least_and_the_most() -> None:
    graph = pk.decode("gpt2", batch=np.array([1, 4]), context=64)
    assert "1 to 4" in shown(graph)
    assert "configurations" in shown(pk.estimate(graph, "l4"))


def test_an_offload_plan_shows_its_time_its_proof_and_what_becomes_of_tensors(step: pk.Graph) -> None:
    est = pk.estimate(step, "l4")
    plan = pk.plan(step, "l4", budget=int(est.peak) - (1 << 22), allow=["recompute"])
    text = shown(plan)
    assert "gap" in text
    assert "Streams and links" in text


def test_a_schedule_shows_its_traffic_and_its_bound() -> None:
    from peakline.solvers.plan import Certificate, Plan, Traffic

    plan = Plan(12, (), (), Traffic(30, 20, 40), 11, Certificate(10, 8, "exhaustive", 0.5))
    text = shown(plan)
    assert "30 B loaded" in text
    assert "lower bound 8" in text


def test_no_name_becomes_markup(step: pk.Graph) -> None:
    bad = replace(step, name=EVIL, notes=(EVIL,), workload={**step.workload, "dataset": EVIL})
    for thing in (bad, pk.estimate(bad, "l4"), pk.device("l4").model_copy(update={"title": EVIL})):
        assert EVIL in shown(thing)
