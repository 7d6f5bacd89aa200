"""The catalogue of published models."""

from __future__ import annotations

import subprocess
import sys

import pytest

from peakline.models import catalogue
from peakline.models.builder import GraphBuilder
from peakline.models.catalogue import UnknownModel, entry, models, resolve
from peakline.models.workload import Workload

LANGUAGE = [name for name in models() if entry(name).family.kind in ("language", "encoder")]
COUNTED = [name for name in LANGUAGE if entry(name).parameters is not None]


def count(name: str) -> int:
    model = entry(name)
    b = GraphBuilder(name)
    model.family.build(b, model.config, Workload("inference", seq=16))
    return int(b.graph().parameters)


@pytest.mark.parametrize("name", COUNTED)
def test_parameters_are_exactly_as_many_as_published(name: str) -> None:
    assert count(name) == entry(name).parameters


def test_there_are_at_least_forty_language_models_with_a_published_count() -> None:
    assert len(COUNTED) >= 40


def test_gpt3_has_175_billion_parameters_to_the_figures_published() -> None:
    assert round(count("gpt3-175b"), -9) == 175_000_000_000


@pytest.mark.parametrize("name", models())
def test_every_entry_has_a_title_and_a_source(name: str) -> None:
    model = entry(name)
    assert model.title
    assert model.source


def test_names_answer_to_aliases_case_and_underscores() -> None:
    for name in ("meta-llama/Llama-3.1-8B", "LLAMA-3.1-8B", "llama3.1_8b"):
        assert entry(name).name == "llama-3.1-8b"


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(UnknownModel, match=r"llama-3\.1-8b"):
        entry("llama-3.1-8bb")
    with pytest.raises(UnknownModel, match="unknown"):
        resolve("nothing of the kind")


def test_looking_one_model_up_parses_only_that_one() -> None:
    import yaml  # noqa: F401  (its import is not the look-up)

    entry("gpt2")
    catalogue._index.cache_clear()
    catalogue._parse.cache_clear()
    entry("llama-3.1-8b")
    entry("llama-3.1-8b")
    assert catalogue._parse.cache_info().misses == 1


def test_importing_the_models_reads_no_yaml() -> None:
    code = "import sys, peakline.models.catalogue; print('yaml' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
