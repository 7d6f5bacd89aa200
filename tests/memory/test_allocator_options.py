"""Settings and rounding, against the figures of PyTorch's own tests and comments, and its parser where installed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.memory.options import MIB, AllocatorOptions, OptionError

ACCEPTED = [
    "",
    "expandable_segments:True",
    " expandable_segments:True , max_split_size_mb:128",
    "max_split_size_mb:20",
    "large_segment_size_mb:11",
    "large_segment_size_mb:64,max_split_size_mb:64",
    "garbage_collection_threshold:0.8",
    "roundup_power2_divisions:1",
    "roundup_power2_divisions:[64:8,128:2,256:4,>:0]",
    "max_non_split_rounding_mb:64,large_segment_size_mb:20",
]
REFUSED = [
    "max_split_size_mb:19",
    "max_split_size_mb:many",
    "expandable_segments:true",
    "garbage_collection_threshold:1.0",
    "garbage_collection_threshold:0",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:0",
    "roundup_power2_divisions:[63:8]",
    "roundup_power2_divisions:[64:3]",
    "large_segment_size_mb:10",
    "max_split_size_mb:32,large_segment_size_mb:64",
    "max_non_split_rounding_mb:19,large_segment_size_mb:20",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted_settings(text: str) -> None:
    AllocatorOptions.parse(text)


@pytest.mark.parametrize("text", [*REFUSED, "magic:1", "expandable_segments", "backend:cudaMallocAsync", "a:[1"])
def test_refused_settings_name_the_setting(text: str) -> None:
    with pytest.raises(OptionError) as error:
        AllocatorOptions.parse(text)
    first = text.partition(":")[0].removesuffix("_mb")
    assert str(error.value).startswith((first, "max_split_size", "allocator settings"))


def test_the_installed_torch_accepts_and_refuses_the_same() -> None:
    torch = pytest.importorskip("torch")
    apply = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if apply is None:
        pytest.skip("this torch has no device-independent allocator settings")
    try:
        for text in ACCEPTED:
            apply(text)
        for text in REFUSED:
            with pytest.raises((ValueError, RuntimeError)):
                apply(text)
    finally:
        apply("large_segment_size_mb:20")


def test_the_divisions_of_pytorchs_own_test() -> None:
    """c10/test/core/AllocatorConfig_test.cpp; before torch 2.9 `>` also overwrote the last interval named."""
    text = "roundup_power2_divisions:[64:8,128:2,256:4,512:2,1024:4,>:1]"
    expected = {32: 8, 64: 8, 128: 2, 256: 4, 512: 2, 1024: 4, 2048: 1, 4096: 1, 8192: 1}
    new = AllocatorOptions.parse(text).roundup_power2_divisions
    old = AllocatorOptions.parse(text, torch=(2, 8)).roundup_power2_divisions
    for interval, divisions in expected.items():
        assert new[interval.bit_length() - 1] == divisions
    assert (new[10], old[10]) == (4, 1)


def test_rounding_to_divisions_follows_the_comment_in_the_source() -> None:
    """ "if we need to round-up 1200 and number of divisions is 4 … the values are 1024, 1280, 1536, and 1792"."""
    four = AllocatorOptions(roundup_power2_divisions=(4,) * 16)
    kib = 1024  # the comment's figures in KiB, as small requests are rounded to 512 bytes whatever the divisions
    assert [four.round_size(n * kib) // kib for n in (1024, 1200, 1281, 1793)] == [1024, 1280, 1536, 2048]
    assert four.round_size(1200) == 1536  # not above 4 × 512 bytes


@pytest.mark.parametrize(
    ("asked", "rounded", "segment"),
    [
        (0, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 1, 10 * MIB, 10 * MIB),
        (10 * MIB - 513, 10 * MIB - 512, 20 * MIB),
        (21 * MIB + 1, 21 * MIB + 512, 22 * MIB),
    ],
)
def test_a_request_is_rounded_and_its_segment_is_this_large(asked: int, rounded: int, segment: int) -> None:
    options = AllocatorOptions()
    assert options.round_size(asked) == rounded
    assert options.segment_size(rounded) == segment


@given(st.lists(st.integers(0, 1 << 40)), st.sampled_from([0, 1, 2, 16]))
def test_rounding_an_array_equals_rounding_one_by_one(sizes: list[int], divisions: int) -> None:
    options = AllocatorOptions(roundup_power2_divisions=(divisions,) * 16)
    rounded = options.round_sizes(np.array(sizes, dtype=np.int64))
    assert rounded.tolist() == [options.round_size(size) for size in sizes]
    assert all(r >= s and r % 512 == 0 for r, s in zip(rounded.tolist(), sizes))


def test_a_share_of_memory_needs_a_share() -> None:
    with pytest.raises(OptionError, match=r"memory_fraction: must lie in \[0, 1\], got 1.5"):
        AllocatorOptions(memory_fraction=1.5)
