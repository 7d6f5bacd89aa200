"""Sizes: one formula for a number and for an array of numbers; bytes and FLOPs exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.models.dims import as_dim, ceil_div, flops, maximum, minimum, prod, round_up
from peakline.models.dtypes import DTYPES, dtype, nbytes

SIZES = st.integers(0, 1 << 20)
FACTORS = st.lists(st.integers(1, 1 << 40), min_size=1, max_size=5)


@given(st.lists(FACTORS, min_size=2, max_size=2))
def test_an_array_of_flop_counts_rounds_each_exact_count_once(pair: list[list[int]]) -> None:
    """flops([a, b]) is the float64 nearest to each exact integer while products fit int64, within 1e-15 beyond."""
    left, right = (factors + [1] * (5 - len(factors)) for factors in pair)
    together = flops(*(np.array(column) for column in zip(left, right)))
    for found, factors in zip(together, (left, right)):
        exact = flops(*factors)
        assert isinstance(exact, int)
        assert found == pytest.approx(exact, rel=1e-15)
        if max(np.prod([float(max(column)) for column in zip(left, right)]), 0.0) < 2.0**62:
            assert found == float(exact)


@given(SIZES, st.integers(1, 1 << 10))
def test_rounding_up_is_the_least_multiple(value: int, multiple: int) -> None:
    rounded = round_up(value, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - value < multiple
    assert ceil_div(value, multiple) * multiple == rounded
    assert round_up(np.array([value]), multiple) == [rounded]


def test_arrays_of_different_axes_broadcast() -> None:
    batch, seq = np.arange(1, 4)[:, None], np.array([16, 32])
    assert np.shape(prod((batch, seq, 2))) == (3, 2)
    assert np.array_equal(minimum(batch, 2), [[1], [2], [2]])
    assert np.array_equal(maximum(batch, 2), [[2], [2], [3]])


@pytest.mark.parametrize("value", [1.0, "4", True, [1.5, 2.0], [], None, np.array([True])])
def test_a_size_is_an_integer(value: object) -> None:
    with pytest.raises(TypeError, match="integer"):
        as_dim(value)


def test_an_unsigned_array_of_sizes_becomes_int64() -> None:
    sizes = as_dim(np.array([3, 5], dtype=np.uint8))
    assert isinstance(sizes, np.ndarray)
    assert sizes.dtype == np.int64
    assert as_dim(np.int32(7)) == 7


@given(SIZES, st.sampled_from(sorted(DTYPES)))
def test_bytes_of_an_array_are_the_bytes_of_each(elements: int, name: str) -> None:
    one = nbytes(elements, dtype(name))
    assert isinstance(one, int)
    assert nbytes(np.array([elements, 1]), dtype(name))[0] == one  # type: ignore[index]


@pytest.mark.parametrize(
    ("name", "elements", "expected"),
    [
        ("fp32", 3, 12),
        ("bool", 3, 3),
        ("int4", 3, 2),  # two to a byte, the last one alone
        ("nf4", 64, 32 + 4),  # one float32 scale per 64
        ("nf4", 65, 33 + 8),  # a second block begins
        ("mxfp4", 32, 16 + 1),
        ("nvfp4", 16, 8 + 1),
        ("int4-g128", 128, 64 + 3),  # 16-bit scale and 4-bit zero point: 20 bits
        ("int4-g128", 256, 128 + 5),  # two of them: 40 bits
        ("adam8bit", 256, 256 + 4),
    ],
)
def test_sub_byte_formats_are_packed_and_carry_their_scales(name: str, elements: int, expected: int) -> None:
    assert nbytes(elements, dtype(name)) == expected


def test_a_format_is_found_by_pytorch_s_name_too() -> None:
    assert dtype("torch.bfloat16") is dtype("bf16") is dtype(dtype("bfloat16"))
    with pytest.raises(ValueError, match="dtype 'fp17' is unknown; known: fp64"):
        dtype("fp17")
