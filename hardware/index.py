"""The catalogue's index: names, kinds and aliases, without parsing a single device file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["CATALOGUE", "KINDS", "UnknownDevice", "aliases", "devices", "file_of", "find", "kind_of"]

KINDS = ("gpu", "npu", "pim", "fpga", "mcu", "cpu", "dram", "cxl", "ssd", "link")
CATALOGUE = Path(__file__).parent / "devices"
_ALIASES = re.compile(r"^aliases:\s*\[([^\]]*)\]", re.MULTILINE)


class UnknownDevice(ValueError):
    """A name that is no device of the catalogue; the message names the nearest."""


def devices(kind: str | None = None) -> list[str]:
    """Names of the catalogue's devices, of one kind or of all, in alphabetical order within each kind.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind {kind!r} is unknown; accepted: {', '.join(KINDS)}")
    return [name for name, path in _files().items() if kind in (None, path.parent.name)]


def kind_of(name: str) -> str:
    """The kind of a catalogue device. Raises UnknownDevice."""
    return file_of(find(name)).parent.name


def file_of(name: str) -> Path:
    """The file of a catalogue name as `find` returns it."""
    return _files()[name]


def find(name: str) -> str:
    """The catalogue name that `name` stands for: itself or an alias, whatever the case, `_` or space for `-`.

    Raises:
        UnknownDevice: with the nearest names.
    """
    key = _key(name)
    if key in _files():
        return key
    if key in aliases():
        return aliases()[key]
    known = [*_files(), *aliases()]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    close += [k for k in known if len(key) > 1 and key in k and k not in close][: 3 - len(close)]
    hint = f"; nearest: {', '.join(close)}" if close else f"; the catalogue has {len(_files())}, `devices()` lists them"
    raise UnknownDevice(f"device {name!r} is unknown{hint}; or give the path of a YAML file")


@cache
def aliases() -> Mapping[str, str]:
    """Alias → catalogue name, from the `aliases: [...]` line of each file."""
    out: dict[str, str] = {}
    for name, path in _files().items():
        found = _ALIASES.search(path.read_text(encoding="utf-8"))
        if found:
            out |= {_key(alias): name for part in found[1].split(",") if (alias := part.strip(" \"'\n"))}
    return out


@cache
def _files() -> Mapping[str, Path]:
    """Catalogue name → file. A device's file is `devices/<kind>/<name>.yaml`, so no file needs reading."""
    return {path.stem: path for kind in KINDS for path in sorted((CATALOGUE / kind).glob("*.yaml"), key=_stem)}


def _stem(path: Path) -> str:
    return path.stem


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", "-", name.strip().lower())
