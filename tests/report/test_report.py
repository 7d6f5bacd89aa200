"""The report as a file: what is in it, that it asks for nothing, and that no name can break out of its text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

import peakline as pk

pytest.importorskip("plotly", reason="a report is drawn with plotly")

EVIL = "<script>alert('a')</script><img src=http://example.com/x.png onerror=alert(1)>"


class Reader(HTMLParser):
    """Collects tags with their attributes, and the text that is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.shown.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    return reader


@pytest.fixture(scope="module")
def est() -> pk.Estimate:
    return pk.estimate(pk.training_step("gpt2", batch=2, seq=128, dtype="bf16"), "l4")


@pytest.fixture(scope="module")
def text(est: pk.Estimate, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    est.report(path)
    return path.read_text(encoding="utf-8")


def test_no_element_refers_to_anything_outside_the_file(text: str) -> None:
    for tag, attributes in read(text).tags:
        assert tag not in ("iframe", "object", "embed", "base")
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#")), (tag, attributes)


def test_the_headline_and_every_table_are_there(est: pk.Estimate, text: str) -> None:
    from peakline.text import headline, tables

    shown = "".join(read(text).shown)
    for line in headline(est):
        assert line.partition(":")[2].strip() in shown
    for table in tables(est):
        assert table.title in shown
        assert all(cell in shown for row in table.rows for cell in row)


def test_the_notes_are_there(est: pk.Estimate, text: str) -> None:
    shown = "".join(read(text).shown)
    assert all(note in shown for note in est.notes)


def test_names_from_the_user_are_text_and_never_markup(est: pk.Estimate) -> None:
    from peakline.reporting.page import page

    graph = pk.training_step("gpt2", batch=1, seq=32)
    blocks = tuple(
        replace(block, operators=tuple(replace(o, module=f"{EVIL}.{o.module}") for o in block.operators))
        for block in graph.blocks
    )
    bad = replace(graph, name=EVIL, blocks=blocks, notes=(EVIL,))
    found = page(pk.estimate(bad, "l4"))
    tags = read(found).tags
    assert not [tag for tag in tags if tag[0] == "img"]
    assert sum(tag == "script" for tag, _ in tags) == sum(tag == "script" for tag, _ in read(page(est)).tags)
    assert "alert('a')</script>" not in found
    assert "onerror=alert(1)>" not in found


def test_the_map_shows_the_largest_allocations_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from peakline.allocations import allocations
    from peakline.reporting import page as module

    est = pk.estimate(pk.training_step("gpt2", batch=1, seq=32), "l4")
    count = len(allocations(est).allocations)
    monkeypatch.setattr(module, "MOST", 50)
    shown = "".join(read(module.page(est)).shown)
    found = re.search(r"The 50 largest blocks are drawn; ([\d,]+) of at most", shown)
    assert found is not None
    assert int(found[1].replace(",", "")) == count - 50


def test_spans_too_short_to_see_are_joined_without_losing_time() -> None:
    from peakline.reporting.figures import Span, merged

    runs = [Span("compute", "forward", i * 1e-4, (i + 1) * 1e-4, f"op {i}") for i in range(1000)]
    runs += [Span("copy", "offload", 0.0, 0.05, "long")]
    found = merged(runs, 1e-3)
    assert len(found) < 150
    assert sum(s.end - s.start for s in found) == pytest.approx(0.15)
    assert sum(int(re.search(r"and (\d+) more", s.text)[1]) + 1 for s in found if "more" in s.text) == 1000


def test_a_sweep_has_no_report(tmp_path: Path) -> None:
    import numpy as np

    est = pk.estimate(pk.decode("gpt2", batch=np.array([1, 2]), context=64), "l4")
    with pytest.raises(ValueError, match="sweep"):
        pk.report(est, tmp_path / "r.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("model", "device"), [("mobilenet-v2-0.35", "stm32h743"), ("resnet-18", "tpu-v4")])
def test_devices_without_a_caching_allocator_have_a_report_too(model: str, device: str) -> None:
    from peakline.reporting.page import page

    dtype = "int8" if device == "stm32h743" else "bf16"
    est = pk.estimate(pk.inference(model, dtype=dtype, image=96), device)
    ids = {attributes.get("id") for _, attributes in read(page(est)).tags}
    assert {"memory", "allocations", "timeline", "roofline", "assumptions"} <= ids


def test_the_command_writes_a_report_or_says_in_one_line_why_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peakline.cli import main

    out = tmp_path / "r.html"
    words = ["report", "gpt2", "-d", "l4", "--decode", "--context", "64", "-o"]
    assert main([*words, str(out)]) == 0
    assert "MB" in capsys.readouterr().out
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main([*words, str(tmp_path / "none" / "r.html")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
