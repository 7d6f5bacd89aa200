"""A device: its memory hierarchy, its arithmetic, its links, and the questions a cost model asks of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from peakline.hardware.sections import (
    Calibration,
    Compute,
    Cpu,
    Fpga,
    Gpu,
    Link,
    Mcu,
    MemoryLevel,
    Npu,
    Pim,
    PowerDraw,
    Process,
    Rates,
    Software,
    Storage,
)

__all__ = ["SCHEMA", "Device", "UnsupportedDtype"]

SCHEMA = "peakline.device/1"
Kind = Literal["gpu", "npu", "pim", "fpga", "mcu", "cpu", "dram", "cxl", "ssd", "link"]

_DTYPE_NAMES = {
    "float64": "fp64", "double": "fp64", "float32": "fp32", "float": "fp32", "tensorfloat32": "tf32",
    "bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "mxfp8": "fp8", "nvfp4": "fp4", "mxfp4": "fp4", "uint8": "int8",
}  # fmt: skip
_WIDENED = frozenset({"fp32", "bf16", "fp16", "fp8", "fp4"})


class UnsupportedDtype(ValueError):
    """A number format that the device has no arithmetic for; the message lists those it has."""


class Device(BaseModel):
    """One device. Frozen; derive a variant with `peakline.hardware.device(this, **overrides)`.

    Attributes:
        name, title, kind, vendor, year, aliases: who it is; `kind` is one of `index.KINDS`.
        status: `product`, `research` (built and measured), or `hypothetical` (only modelled).
        memory: levels by name, from nearest to the arithmetic to farthest.
        compute: units, clocks and peak rates; None for memories, drives and links.
        links, power, process, software, calibration: see `peakline.hardware.sections`.
        gpu, npu, pim, fpga, mcu, cpu, storage: what only that kind has; None elsewhere.
        sources: citations by the short names its file uses.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: Literal["peakline.device/1"] = Field(default="peakline.device/1", alias="schema")
    name: str
    title: str = ""
    kind: Kind
    vendor: str | None = None
    year: int | None = Field(default=None, ge=1940, le=2100)
    status: Literal["product", "research", "hypothetical"] = "product"
    aliases: tuple[str, ...] = ()
    note: str | None = None
    sources: dict[str, str] = Field(default_factory=dict, repr=False)
    main_level: str | None = Field(default=None, alias="main")
    memory: dict[str, MemoryLevel] = Field(default_factory=dict)
    compute: Compute | None = None
    links: dict[str, Link] = Field(default_factory=dict)
    power: PowerDraw = Field(default_factory=PowerDraw)
    process: Process = Field(default_factory=Process)
    software: Software = Field(default_factory=Software)
    calibration: Calibration | None = None
    gpu: Gpu | None = None
    npu: Npu | None = None
    pim: Pim | None = None
    fpga: Fpga | None = None
    mcu: Mcu | None = None
    cpu: Cpu | None = None
    storage: Storage | None = None

    _tree: dict[str, Any] = PrivateAttr(default_factory=dict)
    _si: bool = PrivateAttr(default=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and all(getattr(self, f) == getattr(other, f) for f in Device.model_fields)

    def __hash__(self) -> int:
        return hash((self.name, self.kind, tuple(self.memory)))

    def _repr_html_(self) -> str:
        from peakline.hardware.picture import html

        return html(self)

    def __str__(self) -> str:
        return self.name

    @field_validator("name")
    @classmethod
    def _a_plain_name(cls, value: str) -> str:
        if not value.strip() or any(c in value for c in "\n\r\t"):
            raise ValueError("a name is a short text on one line, like 'h100-sxm'")
        return value

    @model_validator(mode="after")
    def _levels_are_consistent(self) -> Self:
        if self.kind != "link" and not self.memory:
            raise ValueError("memory: at least one level is needed, like {dram: {capacity: 16 GiB, source: datasheet}}")
        if self.main_level is not None and self.main_level not in self.memory:
            raise ValueError(f"main: {self.main_level!r} is not a level of memory; levels: {', '.join(self.memory)}")
        return self

    # --- memory -----------------------------------------------------------------------------------------------

    def level(self, name: str) -> MemoryLevel:
        """The memory level called `name`. Raises ValueError naming those there are."""
        try:
            return self.memory[name]
        except KeyError:
            raise ValueError(f"{self.name} has no memory level {name!r}; levels: {', '.join(self.memory)}") from None

    @property
    def main(self) -> MemoryLevel:
        """The level that holds tensors: the one the file calls `main`, else the farthest. Raises ValueError if none."""
        if not self.memory:
            raise ValueError(f"{self.name} is a {self.kind} and has no memory")
        return self.memory[self.main_level or list(self.memory)[-1]]

    @property
    def onchip(self) -> list[MemoryLevel]:
        """The levels nearer to the arithmetic than `main`, nearest first."""
        names = list(self.memory)
        return [self.memory[name] for name in names[: names.index(self.main.name)]] if names else []

    @property
    def farther(self) -> list[MemoryLevel]:
        """The levels beyond `main` (an MCU's flash, an attached DRAM), nearest first."""
        names = list(self.memory)
        return [self.memory[name] for name in names[names.index(self.main.name) + 1 :]] if names else []

    # --- arithmetic -------------------------------------------------------------------------------------------

    @property
    def units(self) -> int | None:
        """Compute units (SM, CU, core, tile); None where there are none or nobody says."""
        return self.compute.units if self.compute else None

    @property
    def clock(self) -> float | None:
        """Hertz at which the peak rates are stated."""
        return self.compute.clock if self.compute else None

    def rates(self, engine: str = "matrix") -> dict[str, float]:
        """Peak operations per second of one engine (`matrix` or `vector`) by number format, without fallback.

        Raises:
            ValueError: for another engine.
        """
        if engine not in ("matrix", "vector"):
            raise ValueError(f"engine {engine!r} is unknown; accepted: 'matrix', 'vector'")
        if self.compute is None:
            return {}
        chosen: Rates = getattr(self.compute, engine)
        return chosen.listed()

    @property
    def dtypes(self) -> list[str]:
        """Number formats the device computes in, on any engine."""
        both = self.rates("matrix") | self.rates("vector")
        return [name for name in Rates.model_fields if name in both]

    def supports(self, dtype: str) -> bool:
        """Whether some engine computes in `dtype`; `float16`, `torch.bfloat16`, `nvfp4` are understood too."""
        return _canonical(dtype) in self.dtypes

    def peak(self, dtype: str, engine: str = "matrix") -> float:
        """Dense peak operations per second in `dtype`, over the whole device, at `clock`.

        `engine="matrix"` is the matrix engine, or the vector units where it does not know the format.
        `engine="vector"` is the vector units; a narrow float they do not know is widened and runs at the fp32 rate.

        Raises:
            UnsupportedDtype: listing the formats the device computes in.
            ValueError: for an engine that is neither.
        """
        known = self._peaks
        if (dtype, engine) not in known:
            known[dtype, engine] = self._find_peak(dtype, engine)
        return known[dtype, engine]

    @cached_property
    def _peaks(self) -> dict[tuple[str, str], float]:
        """Peaks looked up so far: a cost model asks for the same few again for every operator."""
        return {}

    def _find_peak(self, dtype: str, engine: str) -> float:
        name = _canonical(dtype)
        vector = self.rates("vector")
        found = self.rates(engine).get(name)
        if found is None and engine == "matrix":
            found = vector.get(name)
        if found is None and engine == "vector" and name in _WIDENED:
            found = vector.get("fp32")
        if found is None:
            known = ", ".join(self.dtypes) or "none (it does not compute)"
            where = "" if engine == "matrix" else f" on its {engine} units"
            raise UnsupportedDtype(f"{self.name} does not compute in {dtype!r}{where}; it supports: {known}")
        return found

    def ops_per_cycle(self, dtype: str, engine: str = "matrix") -> float:
        """Operations of one unit in one clock, peak / (units · clock), at the clock that engine's rate is stated at.

        Raises:
            ValueError: where units or clock are unknown, or the format is not supported.
        """
        if self.compute is None or not self.units or not self.clock:
            raise ValueError(f"{self.name}: compute.units and compute.clock are needed for a rate per cycle")
        rate = self.peak(dtype, engine)
        on_matrix = engine == "matrix" and _canonical(dtype) in self.rates("matrix")
        clock = self.clock if on_matrix else self.compute.vector_clock or self.clock
        return rate / (self.units * clock)

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """NVIDIA's compute capability as (major, minor); None for everything else."""
        if self.gpu is None or self.gpu.compute_capability is None:
            return None
        major, minor = self.gpu.compute_capability.split(".")
        return int(major), int(minor)

    @property
    def tdp(self) -> float | None:
        """Watts of the board's limit; None where unpublished."""
        return self.power.tdp

    # --- in and out -------------------------------------------------------------------------------------------

    def to_json(self, indent: int | None = None) -> str:
        """The device as versioned JSON in SI units, each section with the citations of its figures.

        `from_json` reads it back unchanged.
        """
        tree = {"schema": self.schema_version} | self.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps(tree, indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Device:
        """Reads what `to_json` wrote. Raises DeviceFileError for anything else."""
        from peakline.hardware.files import device_from_json

        return device_from_json(text)

    @classmethod
    def of(cls, tree: Mapping[str, Any], resolved: Mapping[str, Any], *, si: bool) -> Device:
        """A device from a resolved tree, remembering the tree as written so that variants can be derived from it."""
        built = cls.model_validate(resolved, context={"si": si})
        built._tree.update(tree)
        built._si = si
        return built


def _canonical(dtype: str) -> str:
    name = str(dtype).lower().removeprefix("torch.")
    return _DTYPE_NAMES.get(name, name)
