"""The rows of a sweep as plain columns: what each is called, its unit, its type, and its two forms (pandas, Arrow)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["RESULTS", "ROLES", "SCHEMA", "Column", "Table"]

SCHEMA = "peakline.sweep/1"

ROLES = ("parameter", "gradient", "optimizer_state", "activation", "kv_cache", "buffer", "input", "workspace")
"""Roles that live bytes are broken down by, as in `peakline.models.graph.ROLES`."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name with the unit in it, and its kind.

    Kinds: `int` (int64, may be missing), `float` (float64, NaN where missing), `bool` (may be missing) and `text` (one
    of few texts, stored once each; may be missing).
    """

    name: str
    kind: str


RESULTS: tuple[Column, ...] = (
    Column("error", "text"),
    Column("fits", "bool"),
    Column("replayed", "bool"),
    *(Column(f"{name}_bytes", "int") for name in ("live", "allocated", "reserved", "device", "capacity")),
    Column("outside_allocator_bytes", "int"),
    Column("allocator_retries", "int"),
    *(Column(f"live_{role}_bytes", "int") for role in ROLES),
    *(Column(name, "float") for name in ("time_s", "time_io_s", "time_bound_s", "flops", "vector_operations")),
    Column("main_memory", "text"),
    *(Column(name, "float") for name in ("main_traffic_bytes", "main_least_bytes")),
    Column("cache", "text"),
    *(Column(name, "float") for name in ("cache_traffic_bytes", "cache_least_bytes")),
    Column("bound_by", "text"),
    *(Column(name, "float") for name in ("bound_share", "tokens_per_s", "images_per_s", "energy_j", "energy_at_tdp_j")),
    *(Column(name, "float") for name in ("tdp_w", "area_mm2")),
    *(Column(name, "float") for name in ("price_per_hour", "price_per_run", "price_per_million_tokens")),
)
"""What a sweep says of every configuration, after the columns that name it; docs/sweep.md explains each."""


@dataclass
class Table:
    """Some rows of a sweep, column by column.

    Attributes:
        columns: in order.
        rows: how many.
        values: NumPy arrays by column: int64, float64, bool, or int32 codes into `texts`.
        missing: masks of `int` and `bool` columns, True where there is no value.
        texts: the texts of `text` columns; code −1 is a missing one.
    """

    columns: tuple[Column, ...]
    rows: int
    values: dict[str, NDArray[Any]] = field(default_factory=dict)
    missing: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    texts: dict[str, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.values:
            return
        for column in self.columns:
            name, kind = column.name, column.kind
            if kind == "float":
                self.values[name] = np.full(self.rows, np.nan)
            elif kind == "text":
                self.values[name] = np.full(self.rows, -1, dtype=np.int32)
                self.texts[name] = {}
            else:
                self.values[name] = np.zeros(self.rows, dtype=np.int64 if kind == "int" else np.bool_)
                self.missing[name] = np.ones(self.rows, dtype=np.bool_)

    def put(self, rows: slice, name: str, value: Any) -> None:
        """Write a scalar, a text or an array of as many values as `rows` has; None leaves them missing."""
        if value is None:
            return
        texts = self.texts.get(name)
        if texts is not None:
            self.values[name][rows] = texts.setdefault(value, len(texts))
            return
        self.values[name][rows] = value
        mask = self.missing.get(name)
        if mask is not None:
            mask[rows] = False

    def put_codes(self, rows: slice, name: str, codes: NDArray[Any], names: Sequence[str]) -> None:
        """Write texts given as codes into `names`."""
        texts = self.texts[name]
        own = np.asarray([texts.setdefault(text, len(texts)) for text in names], dtype=np.int32)
        self.values[name][rows] = own[codes]

    def column(self, name: str) -> NDArray[Any]:
        """A column as an array: float64 with NaN for missing numbers, objects for texts."""
        value = self.values[name]
        if name in self.texts:
            names = np.asarray([*self.texts[name], None], dtype=object)
            found: NDArray[Any] = names[value]
            return found
        mask = self.missing.get(name)
        if mask is not None and mask.any():
            return np.where(mask, np.nan, value.astype(np.float64))
        return value

    def kept(self, keep: NDArray[np.bool_]) -> Table:
        """The rows where `keep` is True."""
        return Table(
            self.columns,
            int(keep.sum()),
            {name: value[keep] for name, value in self.values.items()},
            {name: mask[keep] for name, mask in self.missing.items()},
            self.texts,
        )

    @property
    def errors(self) -> int:
        """Rows that carry an error."""
        return int((self.values["error"] >= 0).sum())

    # ---- pandas and Arrow -----------------------------------------------------------------------------------------
    @staticmethod
    def frame(tables: Sequence[Table]) -> pd.DataFrame:
        """The tables one below the other as a DataFrame: Int64, float64, boolean and category columns."""
        import pandas as pd

        out: dict[str, Any] = {}
        for column in tables[0].columns:
            name, kind = column.name, column.kind
            if kind == "text":
                names: dict[str, int] = {}
                parts = []
                for table in tables:
                    own = [names.setdefault(text, len(names)) for text in table.texts[name]]
                    parts.append(np.asarray([*own, -1], dtype=np.int32)[table.values[name]])
                out[name] = pd.Categorical.from_codes(
                    np.concatenate(parts), categories=pd.Index([*names], dtype=object)
                )
                continue
            values = np.concatenate([table.values[name] for table in tables])
            if kind == "float":
                out[name] = values
                continue
            mask = np.concatenate([table.missing[name] for table in tables])
            out[name] = pd.arrays.IntegerArray(values, mask) if kind == "int" else pd.arrays.BooleanArray(values, mask)
        return pd.DataFrame(out, copy=False)

    def arrow(self) -> Any:
        """The rows as a `pyarrow.Table`; texts are dictionary-encoded."""
        pa = import_module("pyarrow")
        arrays = []
        for column in self.columns:
            values = self.values[column.name]
            if column.kind == "text":
                codes = pa.array(values, mask=values < 0)
                names = pa.array([*self.texts[column.name]], type=pa.string())
                arrays.append(pa.DictionaryArray.from_arrays(codes, names))
            elif column.kind == "float":
                arrays.append(pa.array(values))
            else:
                arrays.append(pa.array(values, mask=self.missing[column.name]))
        return pa.Table.from_arrays(arrays, schema=Table.arrow_schema(self.columns))

    @staticmethod
    def arrow_schema(columns: Sequence[Column]) -> Any:
        """The `pyarrow.Schema` of these columns."""
        pa = import_module("pyarrow")
        kinds = {
            "int": pa.int64(),
            "float": pa.float64(),
            "bool": pa.bool_(),
            "text": pa.dictionary(pa.int32(), pa.string()),
        }
        return pa.schema([pa.field(column.name, kinds[column.kind]) for column in columns])
