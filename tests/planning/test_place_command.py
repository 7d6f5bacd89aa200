"""`peakline place` answers with a table, JSON or a refusal, and the exit code says which."""

import json

import pytest

from peakline.cli.app import run

ASKED = ["place", "llama-3.1-8b", "-d", "rtx-3060-12gb", "--prompt", "128", "--generate", "16"]


def test_it_prints_where_things_lie(capsys):
    assert run([*ASKED, "--host", "64GiB", "--objective", "latency"]) == 0
    assert "Where it lies" in capsys.readouterr().out


def test_json_is_one_object(capsys):
    assert run([*ASKED, "--host", "64GiB", "--objective", "latency", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "peakline.place/1"
    assert sum(data["weights"].values()) == pytest.approx(1.0)


def test_memories_that_are_too_small_are_the_answer_no(capsys):
    assert run([*ASKED, "--host", "1GiB"]) == 1
    assert "give more host memory" in capsys.readouterr().out


def test_the_floor_is_in_json_too(capsys):
    assert run([*ASKED, "--budget", "1GiB", "--host", "64GiB", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert not data["fits"]
    assert data["floor_bytes"] > 2**30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--generate", "0"), "generate: 0 is not a number of at least 1 token"),
        (("--budget", "100GiB"), "budget: 100 GiB is more than rtx-3060-12gb has"),
        (("--host", "-3GiB"), "host: '-3GiB' is negative"),
        (("--ssd", "1TB", "--ssd-device", "rtx-4090"), "rtx-4090 is a gpu, not a drive"),
    ],
)
def test_nonsense_is_named(options, message, capsys):
    assert run([*ASKED, *options]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_objective_is_bad_input(capsys):
    assert run([*ASKED, "--objective", "price"]) == 2
    assert "accepted: throughput, latency" in capsys.readouterr().err
