"""Plans in files: written by `plan.to_json()` or `peakline plan --out`, read again to be carried out.

A file has the plan's figures for people and its instructions for the module (`peakline.execution.script`). It names
what it is (`schema`) and is signed with a checksum of its content, so that one that was cut short, edited or made by
another version is refused before it is trusted with a training run.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from peakline.execution.script import Action, Expected, Script
from peakline.files import json_of, text_of

__all__ = ["SCHEMA", "SavedPlan", "instructions", "read_plan", "signed"]

SCHEMA = "peakline.offload/1"

_CHECKSUM = "checksum"
_ACCEPTED = "what peakline plan --out writes, whole"


def signed(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same JSON values with a checksum of them."""
    return {**data, _CHECKSUM: _checksum(data)}


def _checksum(data: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever the order of its keys and the spaces between them."""
    plain = {key: value for key, value in data.items() if key != _CHECKSUM}
    text = json.dumps(plain, sort_keys=True, default=str, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


# ---- instructions as JSON values ------------------------------------------------------------------------------------
def instructions(script: Script) -> dict[str, Any]:
    """A script as JSON values: tables by number become lists of pairs."""
    return {field.name: _plain(getattr(script, field.name)) for field in fields(script)}


def _plain(value: Any) -> Any:
    if isinstance(value, Expected):
        return [value.step, value.type, value.name, value.line, _plain(value.makes), _plain(value.shapes)]
    if isinstance(value, Action):
        return [value.kind, value.number]
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _plain(inner) for key, inner in value.items()}
        return [[key, _plain(inner)] for key, inner in value.items()]
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_plain(inner) for inner in value]
    return value


def _script(found: Mapping[str, Any]) -> Script:
    """The script that was written down."""

    def table(name: str, read: Callable[[Any], Any]) -> dict[int, Any]:
        return {int(key): read(value) for key, value in found[name] or ()}

    def actions(given: Any) -> list[Action]:
        return [Action(kind, int(number)) for kind, number in given]

    return Script(
        expected=[
            Expected(step, type_, name, line, tuple(makes), tuple(tuple(shape) for shape in shapes))
            for step, type_, name, line, makes, shapes in found["expected"]
        ],
        turn=int(found["turn"]),
        again=frozenset(found["again"]),
        moved=table("moved", str),
        sends=defaultdict(list, table("sends", list)),
        actions=defaultdict(list, table("actions", actions)),
        segments=table("segments", tuple),
        segment_of=table("segment_of", int),
        operands=table("operands", frozenset),
        first_use=table("first_use", int),
        names=table("names", str),
        backward=[(int(step), str(kind)) for step, kind in found["backward"]],
        lets=defaultdict(list, table("lets", list)),
        parameters=table("parameters", str),
        shapes={name: tuple(shape) for name, shape in found["shapes"].items()},
        formats=dict(found.get("formats", {})),
        trained=list(found.get("trained", [])),
        states=dict(found["states"]),
        gradients=list(found["gradients"]),
        turns=[list(turn) for turn in found["turns"]],
        update=str(found["update"]),
        codec=found["codec"],
        began=table("began", int),
    )


# ---- a plan from a file ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SavedPlan:
    """A plan as a file has it.

    Attributes:
        path: of the file.
        data: its content, schema `peakline.offload/1`.
    """

    path: Path
    data: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """Time of the step, as simulated."""
        return float(self.data["seconds"])

    @property
    def peak(self) -> int:
        """Bytes of tensors alive at once on the device, as simulated."""
        return int(self.data["peak_bytes"])

    @property
    def budget(self) -> int:
        """Bytes of the device that it was planned for."""
        return int(self.data["budget_bytes"])

    def apply(self, module: Any, optimizer: Any = None, *, folder: str | PathLike[str] | None = None) -> Any:
        """Carry the plan out in the torch module that it was made for; see `peakline.execution.applied.apply`.

        Raises:
            ValueError: the plan of a built-in model, or another module than the plan's (naming the difference).
        """
        found = self.data.get("execution")
        if found is None:
            raise ValueError(
                f"{self.path}: the plan of the built-in graph {self.data.get('model')!r}, whose operators cannot be "
                "lined up with those that torch dispatches; plan what pk.capture returns, or MODULE:FUNCTION"
            )
        from peakline.execution.applied import carry_out

        return carry_out(_script(found), module, optimizer, folder=folder)


def read_plan(path: str | PathLike[str]) -> SavedPlan:
    """A plan that `peakline plan --out` or `plan.to_json()` wrote.

    Raises:
        ValueError: no such file, one that is not whole, is of another schema, or was changed since it was written.
    """
    where = Path(path)
    data = json_of(where, text_of(where, _ACCEPTED), _ACCEPTED)
    found = data.get("schema") if isinstance(data, dict) else None
    if found != SCHEMA:
        stem, _, version = str(found).rpartition("/")
        other = stem == SCHEMA.rpartition("/")[0] and version.isdigit()
        raise ValueError(
            f"{where}: schema is {found!r}; accepted: {SCHEMA!r}"
            + ("; it is of another version of peakline: plan again with this one" if other else "")
        )
    if "decisions" not in data:
        raise ValueError(f"{where}: says that nothing fits; it is no plan to carry out")
    if data.get(_CHECKSUM) != _checksum(data):
        what = "was changed since it was written" if _CHECKSUM in data else "has no checksum"
        raise ValueError(f"{where}: {what}; its figures and instructions would not belong together: plan again")
    return SavedPlan(where, data)
