"""Quantities with their units: text to SI numbers and back, exactly.

A device file says `3.35 TB/s`, `228 KiB`, `989.4 TFLOP/s`; everything else in peakline computes with bytes, B/s,
FLOP/s, seconds, hertz, watts and joules. Decimal prefixes are powers of ten (`GB` = 10⁹ B) and binary prefixes powers
of two (`GiB` = 2³⁰ B), after IEC 80000-13; one multiply-accumulate (MAC) is two operations.

The arithmetic is decimal, so `3.35 TB/s` is the double nearest to 3.35·10¹² and printing it back loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

__all__ = [
    "QUANTITIES",
    "Quantity",
    "UnitError",
    "format_bandwidth",
    "format_bytes",
    "format_energy",
    "format_frequency",
    "format_power",
    "format_quantity",
    "format_rate",
    "format_time",
    "parse_bandwidth",
    "parse_bytes",
    "parse_count_rate",
    "parse_energy",
    "parse_energy_per_byte",
    "parse_energy_per_op",
    "parse_frequency",
    "parse_link_bandwidth",
    "parse_power",
    "parse_rate",
    "parse_time",
]


class UnitError(ValueError):
    """A text that is not the quantity asked for; the message says what would be."""


_SI = {"": 0, "k": 3, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_SMALL = {"": 0, "m": -3, "u": -6, "µ": -6, "μ": -6, "n": -9, "p": -12, "f": -15}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50}


def _scaled(symbol: str, prefixes: Mapping[str, int], factor: Decimal | int = 1) -> dict[str, Decimal]:
    """Units `symbol` under decimal prefixes, each with its size in the base unit."""
    return {prefix + symbol: Decimal(factor).scaleb(power) for prefix, power in prefixes.items()}


def _byte_units(suffix: str = "") -> dict[str, Decimal]:
    units = _scaled("B" + suffix, _SI) | _scaled("bit" + suffix, _SI, Decimal("0.125"))
    return units | {f"{prefix}B{suffix}": Decimal(2**power) for prefix, power in _BINARY.items()}


@dataclass(frozen=True)
class Quantity:
    """A kind of quantity: what it is called, the units it may be written in and the SI unit it is kept in."""

    name: str
    base: str
    example: str
    units: Mapping[str, Decimal] = field(repr=False)
    shown: tuple[str, ...] = field(repr=False)
    whole: bool = False

    def parse(self, text: str) -> float:
        """The number of base units that `text` stands for.

        Raises:
            UnitError: naming the text, what is accepted and, where the unit belongs to another quantity, that one.
        """
        if not isinstance(text, str):
            raise UnitError(f"{text!r} has no unit: {self._accepts()}")
        match = _NUMBER.fullmatch(text.strip())
        if match is None:
            raise UnitError(f"{text!r} is not a number with a unit: {self._accepts()}")
        number, unit = Decimal(match["number"].replace("_", "")), " ".join(match["unit"].split())
        if not unit:
            raise UnitError(f"{text!r} has no unit: {self._accepts()}")
        factor = self.units.get(unit) or self._binary_any_case(unit)
        if factor is None:
            raise UnitError(f"{text!r} {self._why(unit)}: {self._accepts()}")
        if number.is_signed() and number:
            raise UnitError(f"{text!r} is negative: {self._accepts()}")
        if number and not -40 < number.adjusted() < 40:
            raise UnitError(f"{text!r} is out of any device's range: {self._accepts()}")
        value = number * factor
        return int(value.to_integral_value()) if self.whole else float(value)

    def format(self, value: float, digits: int | None = None) -> str:
        """`value` base units as text, in the largest unit that keeps it readable.

        With `digits` significant digits where given, otherwise exactly, so that `parse(format(x)) == x`.
        """
        exact = Decimal(value) if isinstance(value, int) else Decimal(repr(float(value)))
        unit = self._readable_unit(exact, digits is not None)
        scaled = exact / self.units[unit]
        if digits is not None:
            text = f"{float(scaled):.{max(digits, len(str(int(scaled))))}g}"
        else:
            text = f"{scaled.normalize():f}"
        return f"{text} {unit}"

    def _readable_unit(self, value: Decimal, rounded: bool) -> str:
        fitting = [u for u in self.shown if value >= self.units[u]]
        if not rounded:  # a division by a power of two must come out finite and short
            fitting = [u for u in fitting if len((value / self.units[u]).normalize().as_tuple().digits) <= 17]
        smallest = min(self.shown, key=lambda u: self.units[u])
        return max(fitting, key=lambda u: self.units[u], default=self.base if not value else smallest)

    def _binary_any_case(self, unit: str) -> Decimal | None:
        """`gib` can only mean GiB, while `gb` could be bits or bytes and is refused."""
        same = [factor for name, factor in self.units.items() if "i" in name[:2] and name.lower() == unit.lower()]
        return same[0] if same else None

    def _why(self, unit: str) -> str:
        others = [q.name for q in QUANTITIES.values() if unit in q.units and q is not self]
        return f"is a {others[0]}" if others else f"has the unknown unit {unit!r}"

    def _accepts(self) -> str:
        return f"a {self.name} is written like {self.example!r} ({', '.join(self.shown)})"


_NUMBER = re.compile(r"(?P<number>[+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)(?P<unit>[^\d].*|)", re.ASCII)

_PER_OP = {name: Decimal(1) for name in ("FLOP", "OP")} | {"MAC": Decimal(2)}
_RATES: dict[str, Decimal] = {}
for _op, _ops in _PER_OP.items():
    _RATES |= _scaled(f"{_op}/s", _SI, _ops) | _scaled(f"{_op}S", _SI, _ops)
_RATES |= _scaled("FLOPs/s", _SI) | _scaled("OPs/s", _SI)

_BANDWIDTHS = _byte_units("/s") | _scaled("bps", _SI, Decimal("0.125"))
_PER_DIRECTION = {f"{unit} per direction": factor for unit, factor in _BANDWIDTHS.items()}
_BOTH_WAYS = {f"{unit} both directions": factor / 2 for unit, factor in _BANDWIDTHS.items()}

QUANTITIES: dict[str, Quantity] = {
    q.name: q
    for q in (
        Quantity(
            "capacity", "B", "80 GiB", _byte_units(), ("B", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"), True
        ),
        Quantity("bandwidth", "B/s", "3.35 TB/s", _BANDWIDTHS, ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s")),
        Quantity(
            "bandwidth per direction",
            "B/s",
            "450 GB/s",
            _BANDWIDTHS | _PER_DIRECTION | _BOTH_WAYS,
            ("B/s", "kB/s", "MB/s", "GB/s", "TB/s", "PB/s"),
        ),
        Quantity(
            "rate", "FLOP/s", "989.4 TFLOP/s", _RATES, ("FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s")
        ),
        Quantity(
            "time",
            "s",
            "4 us",
            _scaled("s", _SMALL) | {"min": Decimal(60), "h": Decimal(3600)},
            ("ps", "ns", "us", "ms", "s"),
        ),
        Quantity("frequency", "Hz", "1830 MHz", _scaled("Hz", _SI), ("Hz", "kHz", "MHz", "GHz")),
        Quantity("power", "W", "700 W", _scaled("W", _SI | _SMALL), ("uW", "mW", "W", "kW")),
        Quantity("energy", "J", "3.7 pJ", _scaled("J", _SI | _SMALL), ("fJ", "pJ", "nJ", "uJ", "mJ", "J", "kJ", "MJ")),
        Quantity(
            "energy per byte",
            "J/B",
            "31.2 pJ/B",
            _scaled("J/B", _SMALL) | _scaled("J/bit", _SMALL, 8),
            ("fJ/B", "pJ/B", "nJ/B", "uJ/B", "J/B"),
        ),
        Quantity(
            "energy per operation",
            "J/FLOP",
            "0.3 pJ/FLOP",
            _scaled("J/FLOP", _SMALL) | _scaled("J/OP", _SMALL) | _scaled("J/MAC", _SMALL, Decimal("0.5")),
            ("fJ/FLOP", "pJ/FLOP", "nJ/FLOP", "J/FLOP"),
        ),
        Quantity(
            "request rate",
            "IO/s",
            "1.4 MIO/s",
            _scaled("IO/s", _SI) | _scaled("IOPS", _SI),
            ("IO/s", "kIO/s", "MIO/s"),
        ),
    )
}


def parse_bytes(text: str) -> int:
    """Bytes, whole: `228 KiB`, `80 GB`, `16 Gbit`. A fraction of a byte is rounded to the nearest. Raises UnitError."""
    return int(QUANTITIES["capacity"].parse(text))


def parse_bandwidth(text: str) -> float:
    """Bytes per second: `3.35 TB/s`, `400 Gbit/s`. Raises UnitError."""
    return QUANTITIES["bandwidth"].parse(text)


def parse_link_bandwidth(text: str) -> float:
    """Bytes per second each way: `450 GB/s`, `450 GB/s per direction`, `900 GB/s both directions`. Raises UnitError."""
    return QUANTITIES["bandwidth per direction"].parse(text)


def parse_rate(text: str) -> float:
    """Operations per second: `989.4 TFLOP/s`, `624 TOP/s`, `84 GMAC/s` (168·10⁹ operations). Raises UnitError."""
    return QUANTITIES["rate"].parse(text)


def parse_time(text: str) -> float:
    """Seconds: `4 us`, `250 ns`. Raises UnitError."""
    return QUANTITIES["time"].parse(text)


def parse_frequency(text: str) -> float:
    """Hertz: `1830 MHz`. Raises UnitError."""
    return QUANTITIES["frequency"].parse(text)


def parse_power(text: str) -> float:
    """Watts: `700 W`, `50 mW`. Raises UnitError."""
    return QUANTITIES["power"].parse(text)


def parse_energy(text: str) -> float:
    """Joules: `3.7 pJ`. Raises UnitError."""
    return QUANTITIES["energy"].parse(text)


def parse_energy_per_byte(text: str) -> float:
    """Joules per byte moved: `31.2 pJ/B`, `3.9 pJ/bit`. Raises UnitError."""
    return QUANTITIES["energy per byte"].parse(text)


def parse_energy_per_op(text: str) -> float:
    """Joules per operation, a MAC being two: `0.3 pJ/FLOP`, `0.6 pJ/MAC`. Raises UnitError."""
    return QUANTITIES["energy per operation"].parse(text)


def parse_count_rate(text: str) -> float:
    """Requests per second of a drive: `1.4 MIO/s`, `1400 kIOPS`. Raises UnitError."""
    return QUANTITIES["request rate"].parse(text)


def format_quantity(name: str, value: float, digits: int | None = 4) -> str:
    """A value in base units of the named quantity as readable text; `digits=None` writes it exactly."""
    return QUANTITIES[name].format(value, digits)


def format_bytes(value: float, digits: int | None = 4) -> str:
    """Bytes as text in binary units: `80 GiB`."""
    for unit, power in (("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if value >= 2**power:
            scaled = value / 2**power
            return f"{scaled:.{max(digits or 17, len(str(int(scaled))))}g} {unit}"
    return f"{value:g} B"


def format_bandwidth(value: float, digits: int | None = 4) -> str:
    """Bytes per second as text: `3.35 TB/s`."""
    return format_quantity("bandwidth", value, digits)


def format_rate(value: float, digits: int | None = 4, unit: str = "FLOP") -> str:
    """Operations per second as text: `989.4 TFLOP/s`; `unit="OP"` for integer formats."""
    return format_quantity("rate", value, digits).replace("FLOP", unit)


def format_time(value: float, digits: int | None = 4) -> str:
    """Seconds as text: `4 us`."""
    return format_quantity("time", value, digits)


def format_frequency(value: float, digits: int | None = 4) -> str:
    """Hertz as text: `1.83 GHz`."""
    return format_quantity("frequency", value, digits)


def format_power(value: float, digits: int | None = 4) -> str:
    """Watts as text: `700 W`."""
    return format_quantity("power", value, digits)


def format_energy(value: float, digits: int | None = 4) -> str:
    """Joules as text: `3.7 pJ`."""
    return format_quantity("energy", value, digits)
