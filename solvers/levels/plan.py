"""Plans over several levels of memory (`peakline.levels-plan/1`): which copy of each tensor lies where, and when.

Levels are numbered from 1, where operators compute, to L; what lies off-chip is level L + 1, without end. Link l joins
level l to level l + 1. A tensor may have a copy in any number of levels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from peakline.solvers.limits import check_capacity
from peakline.solvers.plan import PlanError, Traffic, certificate_values, document

__all__ = ["SCHEMA", "Bound", "Level", "LevelStep", "LevelsPlan", "Move"]

SCHEMA = "peakline.levels-plan/1"

Kind = Literal["load", "store", "evict"]


@dataclass(frozen=True, slots=True)
class Level:
    """`capacity` bytes; a byte over the link to the next level, in either direction, weighs `weight`."""

    capacity: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_capacity(self.capacity)
        if not 0 < self.weight < inf:
            raise ValueError(f"weight: must be a finite number above 0, got {self.weight:g}")


@dataclass(frozen=True, slots=True)
class Move:
    """What happens to a tensor at a level.

    load: a copy of it comes to `level`, at `offset`, from the next level. store: a copy goes to `level`, at `offset`
    (None off-chip), from the level before. evict: its copy at `level` is gone.
    """

    kind: Kind
    tensor: str
    level: int
    offset: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The move as JSON values."""
        entry = {self.kind: self.tensor, "level": self.level}
        return entry if self.offset is None else {**entry, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class LevelStep:
    """Moves in their order, then the operator, whose outputs appear at level 1 at the offsets of `produce`."""

    moves: tuple[Move, ...]
    operator: str
    produce: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Bound:
    """What is proven: no plan has less weighted non-compulsory traffic than `lower_bound`; bytes times weight."""

    objective: float
    lower_bound: float
    method: str
    seconds: float

    @property
    def status(self) -> Literal["optimal", "feasible"]:
        """`optimal` where objective and bound meet up to rounding (1e-9)."""
        return "optimal" if self.objective <= self.lower_bound * (1 + 1e-9) else "feasible"

    @property
    def gap(self) -> float:
        """(objective − bound) / objective; 0 where they meet."""
        return 0.0 if self.status == "optimal" else (self.objective - self.lower_bound) / self.objective


@dataclass(frozen=True)
class LevelsPlan:
    """Steps over `levels`; `final` moves come last; `traffic` of each link, the first one next to the operators."""

    levels: tuple[Level, ...]
    steps: tuple[LevelStep, ...]
    final: tuple[Move, ...]
    traffic: tuple[Traffic, ...]
    certificate: Bound

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, schema `peakline.levels-plan/1`."""
        return {
            "schema": SCHEMA,
            "levels": [{"capacity": level.capacity, "weight": level.weight} for level in self.levels],
            "steps": [
                {"moves": [m.to_dict() for m in s.moves], "operator": s.operator, "produce": dict(s.produce)}
                for s in self.steps
            ],
            "final": [move.to_dict() for move in self.final],
            "traffic": [traffic.to_dict() for traffic in self.traffic],
            "certificate": certificate_values(self.certificate),
        }

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> LevelsPlan:
        """Read a plan. Raises PlanError naming what is no plan; whether it is *valid* is for `replay_levels` to say."""
        data = document(text, SCHEMA)
        try:
            proof = data["certificate"]
            return cls(
                tuple(Level(_whole(entry["capacity"]), float(entry["weight"])) for entry in data["levels"]),
                tuple(
                    LevelStep(
                        tuple(_move(m) for m in s["moves"]),
                        str(s["operator"]),
                        {str(name): _whole(offset) for name, offset in s["produce"].items()},
                    )
                    for s in data["steps"]
                ),
                tuple(_move(m) for m in data["final"]),
                tuple(Traffic(*(_whole(t[f]) for f in ("load", "store", "compulsory"))) for t in data["traffic"]),
                Bound(
                    float(proof["objective"]),
                    float(proof["lower_bound"]),
                    str(proof["method"]),
                    float(proof["seconds"]),
                ),
            )
        except KeyError as error:
            raise PlanError(f"plan: {error.args[0]} is missing") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"plan: {error}") from None


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PlanError(f"must be a whole number of bytes, got {value!r}")
    return value


def _move(entry: Any) -> Move:
    known: tuple[Kind, ...] = ("load", "store", "evict")
    kinds = [kind for kind in known if kind in entry]
    if len(kinds) != 1:
        raise PlanError(f"a move must be one of load, store, evict, got {entry!r}")
    offset = entry.get("offset")
    return Move(kinds[0], str(entry[kinds[0]]), _whole(entry["level"]), None if offset is None else _whole(offset))
