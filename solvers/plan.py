"""Plans: what to store, evict, load and run, step by step, and what is proven about them (`peakline.plan/1`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["SCHEMA", "Certificate", "Plan", "PlanError", "Step", "Traffic"]

SCHEMA = "peakline.plan/1"


class PlanError(ValueError):
    """A text that is no plan; names the field at fault."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operator and what happens before it runs, in this order: store, evict, load, run.

    Attributes:
        operator: the one that runs.
        store: residents copied off-chip.
        evict: residents that leave the scratchpad; what was never stored is lost.
        load: tensors brought in, each with its offset in bytes.
        produce: offset in bytes of each output.
    """

    operator: str
    store: tuple[str, ...]
    evict: tuple[str, ...]
    load: Mapping[str, int]
    produce: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes moved between scratchpad and off-chip memory; `compulsory` is what no plan avoids."""

    load: int
    store: int
    compulsory: int

    @property
    def non_compulsory(self) -> int:
        """Bytes that a large enough scratchpad would not move."""
        return self.load + self.store - self.compulsory


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is proven: no plan has an objective below `lower_bound`; all in bytes.

    Attributes:
        objective: non-compulsory bytes, or the peak, as asked for.
        lower_bound: proven for every plan of the problem at this capacity.
        method: what found the plan and what proved the bound.
        seconds: time taken.
    """

    objective: int
    lower_bound: int
    method: str
    seconds: float

    @property
    def gap(self) -> float:
        """(objective − bound) / objective; 0 where they meet."""
        return (self.objective - self.lower_bound) / self.objective if self.objective else 0.0

    @property
    def status(self) -> Literal["optimal", "feasible"]:
        """`optimal` where objective and bound meet."""
        return "optimal" if self.objective == self.lower_bound else "feasible"


@dataclass(frozen=True)
class Plan:
    """Steps for a scratchpad of `capacity` bytes; `peak`: most bytes resident at once; `final_store` comes last."""

    capacity: int
    steps: tuple[Step, ...]
    final_store: tuple[str, ...]
    traffic: Traffic
    peak: int
    certificate: Certificate

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, schema `peakline.plan/1`."""
        proof = self.certificate
        return {
            "schema": SCHEMA,
            "capacity": self.capacity,
            "steps": [
                {
                    "store": list(s.store),
                    "evict": list(s.evict),
                    "load": dict(s.load),
                    "operator": s.operator,
                    "produce": dict(s.produce),
                }
                for s in self.steps
            ],
            "final_store": list(self.final_store),
            "traffic": {
                "load": self.traffic.load,
                "store": self.traffic.store,
                "compulsory": self.traffic.compulsory,
                "non_compulsory": self.traffic.non_compulsory,
            },
            "peak": self.peak,
            "certificate": {
                "objective": proof.objective,
                "lower_bound": proof.lower_bound,
                "gap": proof.gap,
                "status": proof.status,
                "method": proof.method,
                "seconds": proof.seconds,
            },
        }

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan. Raises PlanError naming the field at fault; whether it is *valid* is for `replay` to say."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"plan: not JSON: {error}") from None
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise PlanError(f"plan: schema must be {SCHEMA!r}")
        steps = []
        for position, entry in enumerate(_get(data, "steps", list, "plan")):
            where = f"step {position}"
            if not isinstance(entry, Mapping):
                raise PlanError(f"{where}: must be an object")
            steps.append(
                Step(
                    _get(entry, "operator", str, where),
                    _names(entry, "store", where),
                    _names(entry, "evict", where),
                    _offsets(entry, "load", where),
                    _offsets(entry, "produce", where),
                )
            )
        traffic, proof = _get(data, "traffic", Mapping, "plan"), _get(data, "certificate", Mapping, "plan")
        return cls(
            _whole(data, "capacity", "plan"),
            tuple(steps),
            _names(data, "final_store", "plan"),
            Traffic(*(_whole(traffic, field, "traffic") for field in ("load", "store", "compulsory"))),
            _whole(data, "peak", "plan"),
            Certificate(
                _whole(proof, "objective", "certificate"),
                _whole(proof, "lower_bound", "certificate"),
                _get(proof, "method", str, "certificate"),
                float(_get(proof, "seconds", (int, float), "certificate")),
            ),
        )


def _get(data: Mapping[str, Any], field: str, kind: Any, where: str) -> Any:
    if field not in data:
        raise PlanError(f"{where}: {field} is missing")
    if not isinstance(data[field], kind) or isinstance(data[field], bool):
        raise PlanError(f"{where}: {field} must not be {data[field]!r}")
    return data[field]


def _whole(data: Mapping[str, Any], field: str, where: str) -> int:
    return int(_get(data, field, int, where))


def _names(data: Mapping[str, Any], field: str, where: str) -> tuple[str, ...]:
    names = _get(data, field, list, where)
    if not all(isinstance(name, str) for name in names):
        raise PlanError(f"{where}: {field} must be a list of tensor names")
    return tuple(names)


def _offsets(data: Mapping[str, Any], field: str, where: str) -> dict[str, int]:
    given = _get(data, field, Mapping, where)
    if not all(isinstance(offset, int) and not isinstance(offset, bool) for offset in given.values()):
        raise PlanError(f"{where}: {field} must give whole numbers of bytes")
    return dict(given)
