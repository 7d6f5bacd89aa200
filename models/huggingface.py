"""Read a Hugging Face `config.json`: a file, a folder that holds one, or its content as a mapping.

Only JSON is read; nothing that a file names is imported or fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from peakline.models.families import FAMILIES
from peakline.models.workload import Family

__all__ = ["LIMIT", "UnknownArchitecture", "from_config", "known_architectures", "known_model_types", "read_config"]

LIMIT = 10 * 2**20
"""Largest file read, bytes: published configurations are a few kilobytes."""


class UnknownArchitecture(ValueError):
    """A configuration that no built-in family reads; the message names those they read."""


def from_config(source: str | PathLike[str] | Mapping[str, Any]) -> tuple[Family, Any]:
    """The model family and configuration that a `config.json` describes.

    Args:
        source: path of the file or of the folder holding it, or the content.

    Raises:
        ValueError: one line naming the file, the field, its value and what is accepted.
    """
    if isinstance(source, Mapping):
        return _family_and_config(source, "config")
    return _family_and_config(read_config(source), str(source))


def read_config(source: str | PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file, or in the `config.json` of a folder.

    Raises:
        ValueError: no such file, a folder without one, too large, empty, not text, not JSON, or not an object.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
        if not path.is_file():
            raise ValueError(f"{source}: a folder without config.json; accepted: a config.json or a folder holding one")
    if not path.is_file():
        raise ValueError(f"{source}: no such file; accepted: a config.json or a folder holding one")
    size = path.stat().st_size
    if size > LIMIT:
        raise ValueError(f"{path}: {size} bytes; accepted: at most {LIMIT}, a config.json has a few thousand")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not text (binary data); accepted: a JSON object") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise ValueError(f"{path}: empty; accepted: a JSON object")
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: holds a {type(data).__name__}; accepted: a JSON object")
    return data


def _family_and_config(values: Mapping[str, Any], where: str) -> tuple[Family, Any]:
    family = _family(values, where)
    assert family.from_huggingface is not None
    try:
        return family, family.from_huggingface(dict(values))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _family(values: Mapping[str, Any], where: str) -> Family:
    """The family that reads this configuration: by `model_type`, else by `architectures`."""
    model_type, architectures = values.get("model_type"), values.get("architectures")
    if architectures is None and isinstance(values.get("_class_name"), str):  # diffusers
        architectures = [values["_class_name"]]
    if architectures is not None and (
        not isinstance(architectures, list | tuple) or not all(isinstance(a, str) for a in architectures)
    ):
        raise ValueError(f"{where}: field 'architectures' is {architectures!r}; accepted: a list of names")
    if model_type is not None and not isinstance(model_type, str):
        raise ValueError(f"{where}: field 'model_type' is {model_type!r}; accepted: a name")
    if model_type is None and not architectures:
        raise ValueError(f"{where}: fields 'model_type' and 'architectures' are missing; one of them names the model")
    readers = [f for f in FAMILIES.values() if f.from_huggingface is not None]
    for family in readers:
        if model_type in family.model_types:
            return family
    for family in readers:
        if any(a in family.architectures for a in architectures or ()):
            return family
    named = f"architecture {architectures[0]!r}" if architectures else f"model_type {model_type!r}"
    raise UnknownArchitecture(f"{where}: {named} is unknown; known: {', '.join(known_architectures())}")


def known_architectures() -> list[str]:
    """Names accepted in `architectures`, sorted."""
    return sorted({a for f in FAMILIES.values() for a in f.architectures})


def known_model_types() -> list[str]:
    """Names accepted in `model_type`, sorted."""
    return sorted({m for f in FAMILIES.values() for m in f.model_types})
