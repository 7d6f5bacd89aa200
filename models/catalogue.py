"""Published models by name.

The entries are YAML files in `catalogue/`, one top-level key per model:

    llama-2-7b:
      title: Llama 2 7B
      parameters: 6738415616
      source: https://arxiv.org/abs/2307.09288, meta-llama/Llama-2-7b-hf
      aliases: [llama2-7b]
      huggingface: {model_type: llama, vocab_size: 32000, hidden_size: 4096, ...}

Instead of `huggingface`, an entry may give `family` and `config`, the fields of that family's configuration. Looking
a name up scans the files' text and parses only the entry found, so one lookup costs a few milliseconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeAlias

from peakline.models.families import load_family
from peakline.models.huggingface import from_config
from peakline.models.workload import Family

__all__ = ["CatalogueEntry", "ModelLike", "UnknownModel", "entry", "model_names", "models", "resolve"]

ModelLike: TypeAlias = "str | PathLike[str] | Mapping[str, Any] | tuple[Family, Any]"
"""What names a model: a catalogue name, a path to a `config.json` or its folder, its content, or (family, config)."""

_KEY = re.compile(r"^([A-Za-z0-9][\w.-]*):", re.MULTILINE)
_ALIASES = re.compile(r"^  aliases: \[(.*)\]", re.MULTILINE)


class UnknownModel(ValueError):
    """No model of that name; the message names the nearest ones."""


@dataclass(frozen=True)
class CatalogueEntry:
    """A published model.

    Attributes:
        name: key in the catalogue.
        family: its model family.
        config: the family's configuration.
        title: name as published.
        parameters: published number of parameters, exact, or None where only a rounded figure is published.
        source: where the figures come from.
        aliases: other names it answers to.
        max_positions: longest sequence (or None).
    """

    name: str
    family: Family
    config: Any
    title: str
    parameters: int | None
    source: str
    aliases: tuple[str, ...] = ()
    max_positions: int | None = field(default=None)


@dataclass(frozen=True)
class _Place:
    """Where an entry's text lies."""

    name: str
    text: str


def models() -> list[str]:
    """Names of all catalogued models, in the files' order."""
    return list(dict.fromkeys(place.name for place in _index().values()))


model_names = models
"""`models` by the name it has in `peakline` itself, where `models` is a package."""


def entry(name: str) -> CatalogueEntry:
    """Look a model up by name or alias; case and underscores do not matter.

    Raises:
        UnknownModel: with the nearest names.
    """
    place = _index().get(_normal(name))
    if place is None:
        near = difflib.get_close_matches(_normal(name), _index(), 3)
        hint = f"; nearest: {', '.join(dict.fromkeys(_index()[n].name for n in near))}" if near else ""
        raise UnknownModel(f"model {name!r} is unknown{hint} (a path to a config.json works too)")
    return _parse(place)


def resolve(model: ModelLike) -> tuple[str, Family, Any]:
    """Name, family and configuration of a model; see `ModelLike`.

    Raises:
        UnknownModel: a name that is not catalogued and not a path.
        ValueError: a configuration that cannot be read.
    """
    if isinstance(model, tuple):
        family, config = model
        return family.name, family, config
    if isinstance(model, Mapping):
        family, config = from_config(model)
        return str(model.get("_name_or_path") or model.get("model_type") or family.name), family, config
    text = fspath(model)
    if isinstance(model, str) and _normal(text) in _index():
        found = entry(text)
        return found.name, found.family, found.config
    path = Path(text)
    if not isinstance(model, str) or path.exists() or path.suffix == ".json" or "/" in text or "\\" in text:
        family, config = from_config(path)
        return (path.parent if path.name == "config.json" else path).resolve().name, family, config
    entry(text)
    raise AssertionError  # entry() raised


def _normal(name: str) -> str:
    return name.strip().lower().replace("_", "-")


@cache
def _index() -> dict[str, _Place]:
    """Every name and alias, normalised, with its entry's text; nothing is parsed.

    Raises:
        ValueError: a name is used twice.
    """
    index: dict[str, _Place] = {}
    for file in sorted((f for f in files("peakline.models").joinpath("catalogue").iterdir()), key=lambda f: f.name):
        if not file.name.endswith(".yaml"):
            continue
        text = file.read_text(encoding="utf-8")
        starts = [(m.group(1), m.start()) for m in _KEY.finditer(text)]
        ends = [start for _, start in starts[1:]] + [len(text)]
        for (name, start), end in zip(starts, ends):
            place = _Place(name, text[start:end])
            aliases = _ALIASES.search(place.text)
            others = [a.strip() for a in aliases.group(1).split(",")] if aliases else []
            for key in map(_normal, [name, *others]):
                if key in index and index[key].name != name:
                    raise ValueError(f"{file.name}: {name!r} answers to {key!r}, and so does {index[key].name!r}")
                index[key] = place
    return index


@cache
def _parse(place: _Place) -> CatalogueEntry:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    data = yaml.load(place.text, Loader=loader)[place.name]
    try:
        family, config = _configured(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"catalogue entry {place.name!r}: {error}") from error
    return CatalogueEntry(
        name=place.name,
        family=family,
        config=config,
        title=data["title"],
        parameters=data.get("parameters"),
        source=data["source"],
        aliases=tuple(data.get("aliases", ())),
        max_positions=getattr(config, "max_positions", None),
    )


def _configured(data: Mapping[str, Any]) -> tuple[Family, Any]:
    if "huggingface" in data:
        return from_config(data["huggingface"])
    family = load_family(data["family"])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in data["config"].items()}
    return family, family.config(**values)
