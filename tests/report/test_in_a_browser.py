"""The report opened in a headless Chromium: it asks for nothing, complains of nothing, and answers to the pointer."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import peakline as pk

pytest.importorskip("plotly", reason="a report is drawn with plotly")
if sys.platform == "win32":
    pytest.skip("the browser is driven over POSIX pipes", allow_module_level=True)

from headless import Browser, browser_path

pytestmark = pytest.mark.skipif(browser_path() is None, reason="no Chromium here to open a report in")

PHONE = (390, 844)
DESK = (1200, 900)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "report.html"
    pk.estimate(pk.training_step("gpt2", batch=2, seq=256, dtype="bf16"), "l4").report(path)
    return path


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("planned") / "report.html"
    graph = pk.training_step("gpt2", batch=2, seq=256, dtype="bf16", optimizer="adamw-fused", overrides={"layers": 3})
    est = pk.estimate(graph, "l4")
    plan = pk.plan(graph, "l4", budget=int(est.peak) - (20 << 20))
    est.report(path, plan=plan)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(str(browser_path()), tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


def middle(browser: Browser, selector: str) -> tuple[float, float]:
    """Scroll an element into view; its middle in the window."""
    found = browser.run(
        f"(e => {{ e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
        f"return [r.x + r.width / 2, r.y + r.height / 2]; }})({selector})"
    )
    return found[0], found[1]


@pytest.mark.parametrize(
    ("report", "size"), [("planned", DESK), ("planned", PHONE), ("plain", PHONE), ("plain", DESK)],
    ids=["planned, desk", "planned, phone", "phone", "desk"],
)  # fmt: skip
def test_it_opens_without_a_request_or_a_complaint_and_fits_the_width(
    browser: Browser, report: str, size: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    browser.open(request.getfixturevalue(report), *size, phone=size == PHONE)
    toggle = "document.querySelectorAll('details').forEach(d => d.open = {})"
    browser.run(toggle.format("true"))
    assert browser.requests() == []
    assert browser.errors() == []
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    browser.run(toggle.format("false"))
    drags = browser.run("[...document.querySelectorAll('.plotly-graph-div')].map(f => f._fullLayout.dragmode)")
    assert set(drags) == {False if size == PHONE else "zoom"}  # on a phone a finger on a figure scrolls the page


def test_the_plan_has_its_streams_its_memory_and_its_table(browser: Browser, planned: Path) -> None:
    browser.open(planned, *DESK)
    rows = browser.run("document.getElementById('figure-timeline')._fullLayout.yaxis._categories")
    assert "compute" in rows
    kinds = browser.run("document.getElementById('figure-timeline').data.map(t => t.name)")
    assert {"forward", "backward"} <= set(kinds)
    assert browser.run("document.querySelectorAll('#plan tbody tr').length") > 0
    assert browser.run("document.getElementById('figure-plan-memory').data[0].y.length") > 100


def test_pointing_at_an_allocation_shows_its_operator_module_and_bytes(browser: Browser, plain: Path) -> None:
    browser.open(plain, *DESK)
    bars = "document.querySelectorAll('#figure-allocations .trace.bars')"
    # the tallest bar of an activation: everything in the report's data, nothing of ours
    find = (
        f"(() => {{ const d = document.getElementById('figure-allocations'); let best = null, size = 0;"
        f"d.data.forEach((t, i) => {{ if (t.name === 'activation') [...{bars}[i].querySelectorAll('.point path')]"
        ".forEach(p => { const r = p.getBoundingClientRect();"
        "if (r.width * r.height > size) { size = r.width * r.height; best = p; } }); }); return best; })()"
    )
    x, y = middle(browser, find)
    browser.mouse("mouseMoved", x - 3, y)
    browser.mouse("mouseMoved", x, y)
    shown = browser.until(
        "[...document.querySelectorAll('#figure-allocations .hoverlayer text')].map(t => t.textContent).join('|')"
    )
    assert re.search(r"operator \S+", shown)
    assert re.search(r"module \S+", shown)
    assert re.search(r"\([\d,]+ bytes\)", shown)


def test_pointing_at_the_memory_names_the_operator_under_way(browser: Browser, plain: Path) -> None:
    browser.open(plain, *DESK)
    x, y = middle(browser, "document.querySelector('#figure-memory .nsewdrag')")
    browser.mouse("mouseMoved", x - 3, y)
    browser.mouse("mouseMoved", x, y)
    shown = browser.until(
        "[...document.querySelectorAll('#figure-memory .hoverlayer text')].map(t => t.textContent).join('|')"
    )
    assert re.search(r"operator : \S+ \((forward|backward|optimizer)\)", shown)
    assert re.search(r"parameter : [\d.]+ [KMG]iB", shown)


@pytest.mark.parametrize("figure", ["memory", "allocations", "timeline", "roofline"])
def test_dragging_over_a_figure_zooms_in_and_a_double_click_returns(browser: Browser, plain: Path, figure: str) -> None:
    browser.open(plain, *DESK)
    span = f"document.getElementById('figure-{figure}').layout.xaxis.range.map(Number)"
    low, high = browser.run(span)
    x, y = middle(browser, f"document.querySelector('#figure-{figure} .nsewdrag')")
    browser.mouse("mousePressed", x - 80, y - 20, button="left", clickCount=1)
    browser.mouse("mouseMoved", x, y + 10, button="left", buttons=1)
    browser.mouse("mouseMoved", x + 80, y + 30, button="left", buttons=1)
    browser.mouse("mouseReleased", x + 80, y + 30, button="left", clickCount=1)
    browser.until(f"(r => r[1] - r[0] < {0.5 * (high - low)})({span})")
    time.sleep(0.5)  # or the end of the drag would count as the first of the two clicks
    for clicks in (1, 2):
        browser.mouse("mousePressed", x, y, button="left", clickCount=clicks)
        browser.mouse("mouseReleased", x, y, button="left", clickCount=clicks)
    browser.until(f"(r => Math.abs(r[0] - {low}) < 1e-6 && Math.abs(r[1] - {high}) < 1e-6)({span})")
    assert browser.errors() == []


def test_every_table_opens_with_a_click(browser: Browser, plain: Path) -> None:
    browser.open(plain, *DESK)
    count = browser.run("document.querySelectorAll('details').length")
    assert count >= 6
    for i in range(count):
        summary = f"document.querySelectorAll('summary')[{i}]"
        before = browser.run(f"{summary}.parentElement.open")
        x, y = middle(browser, summary)
        for kind in ("mousePressed", "mouseReleased"):
            browser.mouse(kind, x, y, button="left", clickCount=1)
        assert browser.run(f"{summary}.parentElement.open") is not before


def test_nothing_offers_to_send_the_figures_anywhere(browser: Browser, plain: Path) -> None:
    browser.open(plain, *DESK)
    titles = browser.run("[...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert titles
    assert not [title for title in titles if re.search("share|cloud|studio|send", title, re.IGNORECASE)]
