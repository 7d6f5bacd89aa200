"""Settings and size rules of PyTorch's CUDA caching allocator.

The rules are those of `c10/cuda/CUDACachingAllocator.cpp` (`round_size`, `roundup_power2_next_division`,
`get_allocation_size`) and of the option parser (`CUDAAllocatorConfig.cpp` up to torch 2.8,
`c10/core/AllocatorConfig.cpp` from 2.9).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

__all__ = [
    "LARGE_SEGMENT",
    "MIB",
    "MIN_BLOCK",
    "MIN_LARGE_ALLOC",
    "ROUND_LARGE",
    "SMALL_SEGMENT",
    "SMALL_SIZE",
    "AllocatorOptions",
    "OptionError",
]

MIB = 1024 * 1024
# c10/core/AllocatorConfig.h (before 2.9: c10/cuda/CUDACachingAllocator.cpp); unchanged since 2019 (#17120).
MIN_BLOCK = 512  # kMinBlockSize: every block is a multiple of this
SMALL_SIZE = 1 * MIB  # kSmallSize: the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # kSmallBuffer: a segment of the small pool
LARGE_SEGMENT = 20 * MIB  # kLargeBuffer: a segment for requests below MIN_LARGE_ALLOC
MIN_LARGE_ALLOC = 10 * MIB  # kMinLargeAlloc
ROUND_LARGE = 2 * MIB  # kRoundLarge: larger segments are multiples of this
_INTERVALS = 16  # kRoundUpPowerOfTwoIntervals: 1 MiB, 2 MiB, … 32 GiB and above

_IGNORED_KEYS = frozenset(
    # They change speed, host memory or graph capture, never the addresses or sizes of this replay.
    {
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_free_catch_all",
        "graph_capture_record_stream_reuse",
        "throw_on_cudamalloc_oom",
    }
)
_KEYS = (
    "backend",
    "expandable_segments",
    "garbage_collection_threshold",
    "large_segment_size_mb",
    "max_non_split_rounding_mb",
    "max_split_size_mb",
    "per_process_memory_fraction",
    "roundup_power2_divisions",
)


class OptionError(ValueError):
    """An allocator setting that PyTorch would refuse, too."""


@dataclass(frozen=True)
class AllocatorOptions:
    """Settings of the caching allocator; the defaults are PyTorch's.

    Attributes:
        expandable_segments: map pages into one growing reservation per stream and pool instead of asking for a
            segment per request.
        max_split_size: bytes; cached blocks at least this large are neither split nor given to smaller requests.
            None: no limit.
        max_non_split_rounding: bytes by which a block may exceed a request of at least `max_split_size`
            (#136174); None: the large segment size.
        garbage_collection_threshold: share of the allowed memory above which cached blocks are given back, in
            (0, 1); it acts only together with `memory_fraction`. 0: off.
        memory_fraction: share of the device's memory this process may reserve (`per_process_memory_fraction`,
            `torch.cuda.set_per_process_memory_fraction`). None or 1: no limit.
        roundup_power2_divisions: divisions of each power-of-two interval to which sizes are rounded up: sixteen
            numbers for sizes below 2 MiB, below 4 MiB, … and from 32 GiB on; 0 or 1: multiples of 512 bytes.
        large_segment_size: bytes of a segment for requests below 10 MiB, and of a page of a large expandable
            segment.

    Raises OptionError, naming the field, for a value PyTorch would refuse.
    """

    expandable_segments: bool = False
    max_split_size: int | None = None
    max_non_split_rounding: int | None = None
    garbage_collection_threshold: float = 0.0
    memory_fraction: float | None = None
    roundup_power2_divisions: tuple[int, ...] = (0,) * _INTERVALS
    large_segment_size: int = LARGE_SEGMENT

    def __post_init__(self) -> None:
        if isinstance(self.roundup_power2_divisions, int):
            object.__setattr__(self, "roundup_power2_divisions", (self.roundup_power2_divisions,) * _INTERVALS)
        if self.large_segment_size <= MIN_LARGE_ALLOC or self.large_segment_size % MIB:
            raise OptionError(
                f"large_segment_size: must be a whole number of MiB above 10 MiB, got {self.large_segment_size} bytes"
            )
        for name in ("max_split_size", "max_non_split_rounding"):
            value = getattr(self, name)
            if value is not None and value < self.large_segment_size:
                raise OptionError(
                    f"{name}: must be at least the large segment size ({self.large_segment_size // MIB} MiB), "
                    f"got {value} bytes"
                )
        if self.garbage_collection_threshold and not 0 < self.garbage_collection_threshold < 1:
            raise OptionError(
                f"garbage_collection_threshold: must lie in (0, 1), got {self.garbage_collection_threshold}"
            )
        if self.memory_fraction is not None and not 0 <= self.memory_fraction <= 1:
            raise OptionError(f"memory_fraction: must lie in [0, 1], got {self.memory_fraction}")
        divisions = self.roundup_power2_divisions
        if len(divisions) != _INTERVALS or any(d < 0 or d & (d - 1) for d in divisions):
            raise OptionError(
                f"roundup_power2_divisions: must be one power of two (or 0), or {_INTERVALS} of them, got {divisions}"
            )

    @property
    def rounding_limit(self) -> int:
        """Bytes by which an unsplittable block may exceed the request (`max_non_split_rounding_size`)."""
        return self.large_segment_size if self.max_non_split_rounding is None else self.max_non_split_rounding

    def allowed(self, device_total: int | None) -> int | None:
        """Bytes this process may reserve on a device of `device_total` bytes; None: no limit but the device's."""
        if self.memory_fraction is None or self.memory_fraction >= 1 or device_total is None:
            return None
        return int(self.memory_fraction * float(device_total))

    def round_size(self, size: int) -> int:
        """Bytes of the block for a request of `size` bytes (`DeviceCachingAllocator::round_size`)."""
        if size < MIN_BLOCK:
            return MIN_BLOCK
        divisions = self.roundup_power2_divisions[min(max(size.bit_length() - 21, 0), _INTERVALS - 1)]
        if divisions > 1 and size > MIN_BLOCK * divisions:
            return _round_to_division(size, divisions)
        return -(-size // MIN_BLOCK) * MIN_BLOCK

    def round_sizes(self, sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """`round_size` of every element; int64 array of the same shape."""
        if any(divisions > 1 for divisions in self.roundup_power2_divisions):
            return np.fromiter((self.round_size(int(size)) for size in sizes), dtype=np.int64, count=len(sizes))
        return np.maximum((sizes + (MIN_BLOCK - 1)) // MIN_BLOCK, 1) * MIN_BLOCK

    def segment_size(self, size: int) -> int:
        """Bytes asked of the driver for a block of `size` bytes (`get_allocation_size`)."""
        if size <= SMALL_SIZE:
            return SMALL_SEGMENT
        if size < MIN_LARGE_ALLOC:
            return self.large_segment_size
        return -(-size // ROUND_LARGE) * ROUND_LARGE

    def page_size(self, small: bool) -> int:
        """Bytes of a physical page of an expandable segment."""
        return SMALL_SEGMENT if small else self.large_segment_size

    @classmethod
    def parse(cls, text: str, *, torch: tuple[int, int] = (2, 13)) -> AllocatorOptions:
        """Options from a `PYTORCH_CUDA_ALLOC_CONF` string such as "expandable_segments:True,max_split_size_mb:128".

        `torch` is the version whose parser is meant: up to 2.8 the last entry of a list, `>`, also overwrote the
        interval named just before it.

        Raises OptionError naming the setting, its value and what is accepted.
        """
        values: dict[str, str] = {}
        for item in _split(text):
            key, colon, value = item.partition(":")
            if not colon or not value:
                raise OptionError(f"{key or 'empty setting'}: expected key:value, got {item!r}")
            if key in values:
                raise OptionError(f"{key}: set twice")
            if key not in _KEYS and key not in _IGNORED_KEYS:
                raise OptionError(f"{key}: unknown allocator setting; known are {', '.join(_KEYS)}")
            values[key] = value
        backend = values.get("backend", "native")
        if backend != "native":
            raise OptionError(f"backend: only the native caching allocator is replayed, got {backend!r}")
        options = cls()
        if "large_segment_size_mb" in values:  # read first: the bounds of others depend on it
            options = replace(options, large_segment_size=_mib("large_segment_size_mb", values))
        if "expandable_segments" in values:
            options = replace(options, expandable_segments=_boolean("expandable_segments", values))
        if "max_split_size_mb" in values:
            options = replace(options, max_split_size=_mib("max_split_size_mb", values))
        if "max_non_split_rounding_mb" in values:
            options = replace(options, max_non_split_rounding=_mib("max_non_split_rounding_mb", values))
        if "garbage_collection_threshold" in values:
            threshold = _number("garbage_collection_threshold", values)
            if not 0 < threshold < 1:
                raise OptionError(f"garbage_collection_threshold: must lie in (0, 1), got {threshold}")
            options = replace(options, garbage_collection_threshold=threshold)
        if "per_process_memory_fraction" in values:
            options = replace(options, memory_fraction=_number("per_process_memory_fraction", values))
        if "roundup_power2_divisions" in values:
            divisions = _divisions(values["roundup_power2_divisions"], keep_last=torch >= (2, 9))
            options = replace(options, roundup_power2_divisions=divisions)
        return options


def _round_to_division(size: int, divisions: int) -> int:
    """Next multiple of floor_pow2(size)/divisions; powers of two stay (`roundup_power2_next_division`)."""
    if size & (size - 1) == 0:
        return size
    floor = 1 << (size.bit_length() - 1)
    step = floor // divisions
    if step == 0:
        return floor * 2
    return -(-size // step) * step


def _split(text: str) -> list[str]:
    """Settings separated by commas outside brackets, blanks removed."""
    items: list[str] = []
    depth, current = 0, ""
    for char in text:
        if char.isspace():
            continue
        depth += (char == "[") - (char == "]")
        if depth < 0:
            raise OptionError(f"allocator settings: a ']' without '[' in {text!r}")
        if char == "," and depth == 0:
            items.append(current)
            current = ""
        else:
            current += char
    if depth:
        raise OptionError(f"allocator settings: a '[' is never closed in {text!r}")
    return [*items, current] if current or items else []


def _mib(key: str, values: dict[str, str]) -> int:
    if not values[key].isdecimal():
        raise OptionError(f"{key}: expected a whole number of MiB, got {values[key]!r}")
    return int(values[key]) * MIB


def _number(key: str, values: dict[str, str]) -> float:
    try:
        return float(values[key])
    except ValueError:
        raise OptionError(f"{key}: expected a number, got {values[key]!r}") from None


def _boolean(key: str, values: dict[str, str]) -> bool:
    if values[key] not in ("True", "False"):
        raise OptionError(f"{key}: expected True or False, got {values[key]!r}")
    return values[key] == "True"


def _divisions(value: str, *, keep_last: bool) -> tuple[int, ...]:
    """Sixteen divisions from "4" or "[64:8,128:2,256:4,>:1]" (intervals in MiB)."""
    key = "roundup_power2_divisions"

    def power(text: str, zero: bool) -> int:
        number = int(text) if text.isdecimal() else -1
        if number < 0 or number & (number - 1) or (number == 0 and not zero):
            raise OptionError(f"{key}: expected a power of two{' or 0' if zero else ''}, got {text!r}")
        return number

    if not value.startswith("["):
        return (power(value, zero=False),) * _INTERVALS
    table = [0] * _INTERVALS
    last = 0
    for position, item in enumerate(value[1:-1].split(",")):
        boundary, colon, text = item.partition(":")
        if not colon:
            raise OptionError(f"{key}: expected [MiB:divisions,…,>:divisions], got {value!r}")
        divisions = power(text, zero=True)
        if boundary == ">":
            first = last + 1 if keep_last else last
            table[first:] = [divisions] * (_INTERVALS - first)
            continue
        last = min(power(boundary, zero=False).bit_length() - 1, _INTERVALS - 1)
        if position == 0:
            table[:last] = [divisions] * last
        table[last] = divisions
    return tuple(table)
