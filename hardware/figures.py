"""The field types a device file is made of: each knows its quantity, so that a fault can say what is accepted."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from peakline.hardware.units import QUANTITIES, UnitError

__all__ = [
    "Bandwidth",
    "Bytes",
    "Count",
    "EnergyPerByte",
    "EnergyPerOp",
    "Figure",
    "Frequency",
    "LinkBandwidth",
    "Number",
    "PositiveCount",
    "Power",
    "Rate",
    "RequestRate",
    "Seconds",
    "Section",
    "figures_of",
]


class Figure:
    """Marks a field as a figure (it needs a source) and names its quantity in `units.QUANTITIES` ("" for a count)."""

    def __init__(self, quantity: str = "") -> None:
        self.quantity = quantity

    def read(self, value: Any, info: ValidationInfo) -> Any:
        """Text with a unit to SI; a bare number only where the context says that numbers are SI already."""
        if value is None:
            return None
        if not self.quantity:
            if isinstance(value, bool):
                raise ValueError(f"{value!r} is not a number")
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and (info.context or {}).get("si"):
            return value
        try:
            return QUANTITIES[self.quantity].parse(value)
        except UnitError as fault:
            raise ValueError(str(fault)) from None


def _figure(quantity: str = "") -> tuple[Figure, BeforeValidator]:
    mark = Figure(quantity)
    return mark, BeforeValidator(mark.read)


_finite = Field(ge=0, allow_inf_nan=False)
_positive = Field(gt=0, allow_inf_nan=False)
_B, _BW, _LBW = _figure("capacity"), _figure("bandwidth"), _figure("bandwidth per direction")
_R, _T, _F, _P = _figure("rate"), _figure("time"), _figure("frequency"), _figure("power")
_EB, _EO, _IO, _N = _figure("energy per byte"), _figure("energy per operation"), _figure("request rate"), _figure()

Bytes = Annotated[int | None, Field(ge=0), *_B]
Bandwidth = Annotated[float | None, _finite, *_BW]
LinkBandwidth = Annotated[float | None, _finite, *_LBW]
Rate = Annotated[float | None, _finite, *_R]
Seconds = Annotated[float | None, _finite, *_T]
Frequency = Annotated[float | None, _positive, *_F]
Power = Annotated[float | None, _finite, *_P]
EnergyPerByte = Annotated[float | None, _finite, *_EB]
EnergyPerOp = Annotated[float | None, _finite, *_EO]
RequestRate = Annotated[float | None, _finite, *_IO]
Count = Annotated[int | None, Field(ge=0), *_N]
PositiveCount = Annotated[int | None, Field(ge=1), *_N]
Number = Annotated[float | None, _finite, *_N]


class Section(BaseModel):
    """A group of figures.

    In a file, `source` names the entry of the device's `sources` that the group's figures come from; a figure that
    comes from elsewhere is written `{value: 5.5 TB/s, source: other, note: how}`. Here every figure's source is
    resolved into `cited` (figure → citation) and remarks into `notes` (figure → text, "" for the whole group).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cited: dict[str, str] = Field(default_factory=dict, repr=False)
    notes: dict[str, str] = Field(default_factory=dict, repr=False)

    def source_of(self, figure: str) -> str | None:
        """Where a figure of this group comes from; None where the figure is not given."""
        return self.cited.get(figure)


def figures_of(section: type[BaseModel]) -> dict[str, Figure]:
    """The figures among a section's fields, with their quantities."""
    marks = {name: [m for m in info.metadata if isinstance(m, Figure)] for name, info in section.model_fields.items()}
    return {name: found[0] for name, found in marks.items() if found}
