"""Quantities with units: what a text means, what is refused, and that nothing is lost on the way back."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.hardware import units as u


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (u.parse_bytes, "228 KiB", 233472),
        (u.parse_bytes, "80 GB", 80_000_000_000),
        (u.parse_bytes, "80 GiB", 80 * 2**30),
        (u.parse_bytes, "96gib", 96 * 2**30),
        (u.parse_bytes, "16 Gbit", 2_000_000_000),
        (u.parse_bytes, "1_024 B", 1024),
        (u.parse_bandwidth, "3.35 TB/s", 3.35e12),
        (u.parse_bandwidth, "400 Gbit/s", 50e9),
        (u.parse_link_bandwidth, "450 GB/s per direction", 450e9),
        (u.parse_link_bandwidth, "900 GB/s both directions", 450e9),
        (u.parse_rate, "989.4 TFLOP/s", 989.4e12),
        (u.parse_rate, "624 TOP/s", 624e12),
        (u.parse_rate, "84 GMAC/s", 168e9),
        (u.parse_time, "4 us", 4e-6),
        (u.parse_time, "4 µs", 4e-6),
        (u.parse_frequency, "1830 MHz", 1.83e9),
        (u.parse_power, "50 mW", 0.05),
        (u.parse_energy, "3.7 pJ", 3.7e-12),
        (u.parse_energy_per_byte, "3.9 pJ/bit", 31.2e-12),
        (u.parse_energy_per_op, "0.6 pJ/MAC", 0.3e-12),
        (u.parse_count_rate, "1.4 MIO/s", 1.4e6),
    ],
)
def test_a_text_means_its_si_value_exactly(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == value


@pytest.mark.parametrize("text", ["80 GB/s", "3 Foo", "80", "-3 GB", "nan GB", "inf B", "1e999 GB", "80 gb", "", "GB"])
def test_what_is_no_capacity_is_refused_and_the_message_shows_one_that_is(text: str) -> None:
    with pytest.raises(u.UnitError, match="80 GiB") as refused:
        u.parse_bytes(text)
    assert repr(text) in str(refused.value)


def test_a_unit_of_another_quantity_is_named() -> None:
    with pytest.raises(u.UnitError, match="is a bandwidth: a capacity"):
        u.parse_bytes("80 GB/s")


def test_a_bare_number_has_no_unit() -> None:
    with pytest.raises(u.UnitError, match="no unit"):
        u.QUANTITIES["capacity"].parse(80)  # type: ignore[arg-type]


def test_a_huge_exponent_is_refused_at_once() -> None:
    with pytest.raises(u.UnitError):
        u.parse_bytes("1e999999999999 GB")


@given(st.integers(0, 2**60))
def test_bytes_written_exactly_come_back(count: int) -> None:
    assert u.parse_bytes(u.QUANTITIES["capacity"].format(count)) == count


@given(
    st.sampled_from(["bandwidth", "rate", "time", "frequency", "power", "energy"]),
    st.floats(1e-15, 1e21, allow_subnormal=False),
)
def test_any_figure_written_exactly_comes_back(name: str, value: float) -> None:
    assert u.QUANTITIES[name].parse(u.QUANTITIES[name].format(value)) == value


@given(st.floats(1e-12, 1e20), st.integers(2, 6))
def test_a_rounded_figure_is_within_its_digits(value: float, digits: int) -> None:
    back = u.parse_bandwidth(u.format_bandwidth(value, digits))
    assert math.isclose(back, value, rel_tol=10.0 ** (1 - digits))


@given(st.integers(1, 2**50), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB", "kB", "MB", "GB", "TB"]))
def test_units_scale_linearly(count: int, unit: str) -> None:
    assert u.parse_bytes(f"{count} {unit}") == count * u.parse_bytes(f"1 {unit}")


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_unit_error(text: str) -> None:
    for quantity in u.QUANTITIES.values():
        try:
            assert quantity.parse(text) >= 0
        except u.UnitError:
            continue
