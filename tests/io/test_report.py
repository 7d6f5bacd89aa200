"""`pk.io`, `pk.operator` and `peakline io`: levels of a device, sizes as words, errors, the picture."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

import peakline as pk
from peakline.cli.app import run
from peakline.io_complexity.levels import boundaries
from peakline.io_complexity.operators import operator_from_words, operator_names
from peakline.io_complexity.rows import Embedding, Rows
from peakline.io_complexity.work import Work, distance

EXAMPLES = {
    "matmul": "m=512 n=512 k=512 batch=2 weight_dtype=int4",
    "convolution": "channels=16 filters=32 space=28x28 taps=3x3 padding=1x1 stride=2 groups=2",
    "attention": "queries=512 dim=64 heads=8 kv_heads=2 causal=yes window=100",
    "mlp": "rows=256 width=128 hidden=512 gated=no",
    "chain": "rows=512 widths=64x128x64x32",
    "convolutions": "channels=3 filters=8x8x16 space=20x20",
    "softmax": "rows=64 width=50000",
    "softmax-backward": "rows=64 width=50000",
    "norm": "rows=64 width=4096",
    "norm-backward": "rows=64 width=4096",
    "elementwise": "elements=1000000",
    "embedding": "tokens=100 width=64 vocabulary=1000",
}


@pytest.mark.parametrize("name", operator_names())
def test_every_operator_has_a_bound_a_tiling_and_a_distance_of_at_least_one(name):
    work = operator_from_words(name, EXAMPLES[name].split())
    assert isinstance(work, Work)
    for capacity in (4096.0, 65536.0, 1e6, 1e9):
        found = work.best(capacity)
        assert found is not None
        assert found.footprint <= capacity
        assert work.compulsory <= work.bound(capacity)
        assert distance(work, capacity) >= 1 - 1e-12
    assert distance(work, 1e9) == pytest.approx(1)


@pytest.mark.parametrize("name", operator_names())
def test_more_fast_memory_never_raises_bound_or_traffic(name):
    work = operator_from_words(name, EXAMPLES[name].split())
    sizes = [2.0**p for p in range(12, 28)]
    bounds, found = [work.bound(s) for s in sizes], [work.best(s).traffic for s in sizes]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(bounds))
    assert all(after <= before * 1.02 for before, after in pairwise(found))


def test_a_row_longer_than_the_memory_is_read_nearly_twice_and_no_schedule_saves_it():
    work = Rows(8, 100_000, element=2)
    assert work.bound(1000) == work.compulsory + 8 * (200_000 - 1000)
    assert work.best(1000).traffic <= work.bound(1000) + 8 * 16
    assert work.best(1e6).traffic == work.compulsory


def test_an_embedding_reads_a_row_for_every_token_unless_its_table_fits():
    work = Embedding(10_000, 64, 100)
    assert work.best(1e3).traffic > 1.9 * work.best(1e6).traffic
    assert work.best(1e6).traffic == work.compulsory


def test_every_device_with_memory_in_front_of_another_has_boundaries_that_grow():
    for name in pk.devices():
        try:
            found = boundaries(pk.device(name))
        except ValueError:
            continue
        together = [b.capacity * b.copies for b in found]
        assert together == sorted(together)


def test_a_report_has_a_level_for_each_boundary_and_its_json_the_same_figures():
    found = pk.io(pk.operator("matmul", m=4096, n=4096, k=4096), "h100-sxm")
    assert [level.boundary.level for level in found.levels] == ["shared", "l2", "hbm"]
    data = found.to_dict()["levels"][0]
    (row,) = found.levels[0].rows
    assert data["operators"][0]["distance"] == row.distance == row.best / row.bound
    assert 1 <= row.distance < 1.3


def test_the_command_prints_json_for_an_operator_and_for_a_model(capsys):
    assert run(["io", "matmul", "m=64", "n=64", "k=64", "--capacity", "4KiB", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levels"][0]["capacity"] == 4096
    assert run(["io", "llama-3.2-1b", "--prefill", "--seq", "128", "-d", "h100-sxm", "--level", "hbm", "--json"]) == 0
    (level,) = json.loads(capsys.readouterr().out)["levels"]
    assert level["whole"]["bound"] <= level["whole"]["best"] <= level["best"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("matmul m=3 n=1 --capacity 1KiB", "k missing"),
        ("matmul m=3 n=1 z=2 --capacity 1KiB", "z is unknown"),
        ("matmul m=x n=1 k=2 --capacity 1KiB", "m is a whole number"),
        ("matmul m=0 n=1 k=2 --capacity 1KiB", "m must be at least 1, got 0"),
        ("matmul m=1 n=1 k=2", "device: io needs a device, or the capacity"),
        ("matmul m=1 n=1 k=2 -d h100-sxm --level foo", "it has: shared, l2, hbm"),
        ("matmul m=1 n=1 k=2 dtype=foo --capacity 1KiB", "foo"),
        ("matmul m --capacity 1KiB", "KEY=VALUE"),
        ("attention queries=8 causal=perhaps --capacity 1KiB", "causal is yes or no"),
        ("attention queries=8 keys=4 causal=yes --capacity 1KiB", "keys: a causal mask"),
        ("chain rows=8 widths=4x4 --capacity 1KiB", "at least two products"),
        ("llama-3.2-1b m=3 -d h100-sxm", "is no operator"),
        ("llama-3.2-1b --prefill --seq 64 -d h100-sxm --plot x.png", "a graph has no single curve"),
        ("matmul m=1 n=1 k=2 --capacity 0", "capacity"),
    ],
)
def test_bad_input_is_one_line_that_says_what_is_accepted(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["io", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_picture_draws_the_bound_under_the_traffic(tmp_path):
    pytest.importorskip("matplotlib")
    from peakline.plot_io import plot_passes, plot_traffic

    work = pk.operator("matmul", m=512, n=512, k=512)
    ax = plot_traffic(work, capacities=[2.0**p for p in range(10, 22)])
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert (lines["lower bound"] <= lines["best tiling found"] * (1 + 1e-12)).all()
    assert run(f"io matmul m=512 n=512 k=512 -d h100-sxm --plot {tmp_path / 'm.png'}".split()) == 0
    assert (tmp_path / "m.png").stat().st_size > 5000
    assert len(plot_passes(512, 512, 64).lines) == 5


def test_what_binds_where_shows_devices_of_every_kind_in_a_format_they_have():
    pytest.importorskip("matplotlib")
    from peakline.plot_roofline import plot_binding

    names = ["h100-sxm", "tpu-v4", "gddr6-aim", "alveo-u280", "stm32h743", "xeon-8480plus"]
    ax = plot_binding([pk.device(name) for name in names], [1, 512])
    labels = [tick.get_text() for tick in ax.get_yticklabels()]
    assert labels == ["h100-sxm", "tpu-v4", "gddr6-aim", "alveo-u280, int8", "stm32h743, int8", "xeon-8480plus"]
    shares = [int(text.get_text()) for text in ax.texts]
    assert len(shares) == 12
    assert all(0 <= share <= 100 for share in shares)
