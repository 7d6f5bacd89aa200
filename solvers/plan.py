"""Plans: what to store, evict, load and run, step by step, and what is proven about them (`peakline.plan/1`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, Protocol

__all__ = [
    "ALLOWED", "SCHEMA", "Certificate", "Plan", "PlanError", "Step", "Timing", "Traffic", "certificate_values",
    "document",
]  # fmt: skip

SCHEMA = "peakline.plan/1"

ALLOWED = ("bypass", "in-place", "recompute")
"""Options that a plan may be allowed to use."""


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
        bypass: inputs that the operator reads from off-chip without their being resident; each counts as a load.
        in_place: outputs that lie within an input's bytes; that input is gone when the operator has run.
    """

    operator: str
    store: tuple[str, ...]
    evict: tuple[str, ...]
    load: Mapping[str, int]
    produce: Mapping[str, int]
    bypass: tuple[str, ...] = ()
    in_place: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The step as JSON values; what the options add only where it is used."""
        entry: dict[str, Any] = {
            "store": list(self.store),
            "evict": list(self.evict),
            "load": dict(self.load),
            "operator": self.operator,
            "produce": dict(self.produce),
        }
        if self.bypass:
            entry["bypass"] = list(self.bypass)
        if self.in_place:
            entry["in_place"] = dict(self.in_place)
        return entry


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

    def to_dict(self) -> dict[str, int]:
        """The traffic as JSON values."""
        moved = {"load": self.load, "store": self.store, "compulsory": self.compulsory}
        return {**moved, "non_compulsory": self.non_compulsory}


class Proven(Protocol):
    """What a certificate says, of bytes or of weighted bytes."""

    @property
    def objective(self) -> float: ...

    @property
    def lower_bound(self) -> float: ...

    @property
    def gap(self) -> float: ...

    @property
    def status(self) -> str: ...

    @property
    def method(self) -> str: ...

    @property
    def seconds(self) -> float: ...


def certificate_values(proof: Proven) -> dict[str, Any]:
    """A certificate as JSON values."""
    return {
        "objective": proof.objective,
        "lower_bound": proof.lower_bound,
        "gap": proof.gap,
        "status": proof.status,
        "method": proof.method,
        "seconds": proof.seconds,
    }


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


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a plan takes where operators compute on one unit and transfers share one link; seconds, bytes/s.

    Attributes:
        bandwidth: of the link.
        compute_rate: FLOP/s for operators that give `flops` in place of seconds; None where none does.
        overlap: whether transfers go on while operators run.
        queue: ("load" or "store", tensor) in the order in which the link takes them; empty: the order of the steps.
        makespan: from the first transfer to the last; compute, transfer: seconds that the unit and the link are busy.
        lower_bound: no plan of the problem at this capacity takes less.
        method: what found the plan and what proved the bound.
    """

    bandwidth: float
    compute_rate: float | None
    overlap: bool
    queue: tuple[tuple[str, str], ...]
    makespan: float
    compute: float
    transfer: float
    lower_bound: float
    method: str

    @property
    def stall(self) -> float:
        """Seconds that the unit waits: makespan − compute."""
        return self.makespan - self.compute

    @property
    def gap(self) -> float:
        """(makespan − bound) / makespan; 0 where they meet up to rounding (1e-9)."""
        return 0.0 if self.status == "optimal" else (self.makespan - self.lower_bound) / self.makespan

    @property
    def status(self) -> Literal["optimal", "feasible"]:
        """`optimal` where makespan and bound meet up to rounding (1e-9)."""
        return "optimal" if self.makespan <= self.lower_bound * (1 + 1e-9) else "feasible"

    def to_dict(self) -> dict[str, Any]:
        """The plan's field `time` as JSON values."""
        return {
            "bandwidth": self.bandwidth,
            **({"compute_rate": self.compute_rate} if self.compute_rate is not None else {}),
            "overlap": self.overlap,
            **({"queue": [list(entry) for entry in self.queue]} if self.queue else {}),
            "makespan": self.makespan,
            "compute": self.compute,
            "transfer": self.transfer,
            "stall": self.stall,
            "lower_bound": self.lower_bound,
            "gap": self.gap,
            "status": self.status,
            "method": self.method,
        }


@dataclass(frozen=True)
class Plan:
    """Steps for a scratchpad of `capacity` bytes; `peak`: most bytes resident at once; `final_store` comes last.

    `allow` names the options that its steps may use: bypass, in-place, recompute (an operator may run again).
    `time` says how long it takes, if that was asked; `alternatives` which of its alternatives an operator was split by.
    """

    capacity: int
    steps: tuple[Step, ...]
    final_store: tuple[str, ...]
    traffic: Traffic
    peak: int
    certificate: Certificate
    allow: tuple[str, ...] = ()
    time: Timing | None = None
    alternatives: Mapping[str, str] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether a keyboard interrupt ended the work on it early."""
        return "interrupted" in f"{self.certificate.method} {self.time.method if self.time is not None else ''}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON values, schema `peakline.plan/1`."""
        return {
            "schema": SCHEMA,
            **({"allow": list(self.allow)} if self.allow else {}),
            **({"alternatives": dict(self.alternatives)} if self.alternatives else {}),
            "capacity": self.capacity,
            "steps": [step.to_dict() for step in self.steps],
            "final_store": list(self.final_store),
            "traffic": self.traffic.to_dict(),
            "peak": self.peak,
            "certificate": certificate_values(self.certificate),
            **({"time": self.time.to_dict()} if self.time is not None else {}),
        }

    def _repr_html_(self) -> str:
        """For notebooks: how much moves, how good that is proven to be, and how long the plan is."""
        proof = self.certificate
        rows = {
            "capacity": f"{self.capacity:,} B, of which {self.peak:,} B are ever taken",
            "traffic": f"{self.traffic.load:,} B loaded, {self.traffic.store:,} B stored; "
            f"{self.traffic.compulsory:,} B are compulsory",
            "proof": f"objective {proof.objective:,}, lower bound {proof.lower_bound:,}, gap {proof.gap:.2%} "
            f"({proof.status}; {proof.method}, {proof.seconds:.2g} s)",
            "steps": f"{len(self.steps):,}",
        }
        if self.time is not None:
            rows["time"] = f"{self.time.makespan:.4g} s, {self.time.stall:.3g} s of it stalled; gap {self.time.gap:.2%}"
        left = "style='text-align:left'"
        cells = (f"<tr><th {left}>{name}</th><td {left}>{escape(text)}</td></tr>" for name, text in rows.items())
        return f"<div class='peakline'><b>plan</b><table>{''.join(cells)}</table></div>"

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` gives it back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan. Raises PlanError naming the field at fault; whether it is *valid* is for `replay` to say."""
        data = document(text, SCHEMA)
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
                    _names(entry, "bypass", where) if "bypass" in entry else (),
                    _pairs(entry, "in_place", where) if "in_place" in entry else {},
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
            _names(data, "allow", "plan") if "allow" in data else (),
            _timing(_get(data, "time", Mapping, "plan")) if "time" in data else None,
            _pairs(data, "alternatives", "plan") if "alternatives" in data else {},
        )


def _timing(data: Mapping[str, Any]) -> Timing:
    def number(name: str) -> float:
        return float(_get(data, name, (int, float), "time"))

    queue = _get(data, "queue", list, "time") if "queue" in data else []
    if not all(isinstance(e, list) and len(e) == 2 and all(isinstance(part, str) for part in e) for e in queue):
        raise PlanError('time: queue must be a list of ["load" or "store", tensor]')
    if not isinstance(data.get("overlap"), bool):
        raise PlanError(f"time: overlap must be true or false, got {data.get('overlap')!r}")
    return Timing(
        number("bandwidth"),
        number("compute_rate") if "compute_rate" in data else None,
        data["overlap"],
        tuple((kind, name) for kind, name in queue),
        number("makespan"),
        number("compute"),
        number("transfer"),
        number("lower_bound"),
        _get(data, "method", str, "time"),
    )


def document(text: str, schema: str) -> Mapping[str, Any]:
    """The JSON object of a plan of that schema.

    Raises:
        PlanError: not JSON, or not such an object.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"plan: not JSON: {error}") from None
    if not isinstance(data, Mapping) or data.get("schema") != schema:
        raise PlanError(f"plan: schema must be {schema!r}")
    return data


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


def _pairs(data: Mapping[str, Any], field: str, where: str) -> dict[str, str]:
    given = _get(data, field, Mapping, where)
    if not all(isinstance(name, str) for name in given.values()):
        raise PlanError(f"{where}: {field} must give names of tensors")
    return dict(given)


def _offsets(data: Mapping[str, Any], field: str, where: str) -> dict[str, int]:
    given = _get(data, field, Mapping, where)
    if not all(isinstance(offset, int) and not isinstance(offset, bool) for offset in given.values()):
        raise PlanError(f"{where}: {field} must give whole numbers of bytes")
    return dict(given)
