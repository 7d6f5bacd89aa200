"""A sweep written down: `sweep.yaml`, the arguments of `peakline.sweep` by name.

model: [llama-3.1-8b, qwen3-32b]
phase: decode
device:
  - a100-80gb
  - {base: h100-sxm, memory.hbm.bandwidth: [4 TB/s, 8 TB/s]}
batch: {from: 1, to: 64, scale: log}
context: [4096, 32768]
zip: [[batch, context]]
where: ["batch * context <= 4e6", "fits"]
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from peakline.files import text_of
from peakline.sweeping.search import sample
from peakline.sweeping.table import SCHEMA

__all__ = ["read_document"]

_MOST_BYTES = 10_000_000


def read_document(path: str | PathLike[str]) -> dict[str, Any]:
    """The arguments of `peakline.sweep` that a YAML file gives; `sample` in it is drawn.

    Raises:
        ValueError: a file that is no text or too large, not a YAML mapping, a schema of another version, a missing
            model or device.
    """
    import yaml

    file = Path(path)
    text = text_of(file, "a sweep in YAML; write long axes as ranges", most_bytes=_MOST_BYTES)
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, Mapping):
        raise ValueError(f"{file}: must hold axes by name, as 'batch: [1, 8]', not a {type(document).__name__}")
    given = {str(name): value for name, value in document.items()}
    schema = given.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise ValueError(f"{file}: schema: {schema!r} is not {SCHEMA!r}, which this version reads")
    for name in ("model", "device"):
        if name not in given:
            raise ValueError(f"{file}: {name}: is missing; a sweep needs a model and a device")
    for name, value in given.items():
        if value is None:
            raise ValueError(f"{file}: {name}: the axis is empty; give at least one value")
    drawn = given.pop("sample", None)
    if drawn is not None:
        given |= _drawn(file, drawn, given)
    return given


def _drawn(file: Path, asked: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """`sample: {count: 100, method: lhs, seed: 0, axes: {batch: {from: 1, to: 64}}}` as zipped axes."""
    known = {"count", "method", "seed", "axes"}
    if not isinstance(asked, Mapping) or not {"count", "axes"} <= set(asked) <= known:
        raise ValueError(f"{file}: sample: is written with count, axes and, if wanted, method and seed")
    axes = {}
    for name, space in dict(asked["axes"]).items():
        if name in given:
            raise ValueError(f"{file}: sample: {name!r} is an axis already")
        if isinstance(space, Mapping):
            ends = (space.get("from"), space.get("to"))
            space = (*ends, "log") if space.get("scale") == "log" else ends
        axes[name] = space
    points = sample(axes, asked["count"], method=asked.get("method", "lhs"), seed=asked.get("seed", 0))
    zips = given.get("zip", [])
    return points | {"zip": [*([zips] if zips and isinstance(zips[0], str) else zips), *points["zip"]]}
