"""What a plan may be asked: words, bytes, objectives."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["ALLOWED", "FITS", "OBJECTIVES", "budget_of", "bytes_of", "one_of", "slowdown_of", "words_of"]

ALLOWED = ("recompute", "swap", "offload-optimizer", "offload-params", "quantise-activations")
"""What a plan may be allowed to do."""

OBJECTIVES = ("time", "memory")
"""The least time within a budget, or the least memory within a time."""

FITS = ("allocated", "reserved")
"""What must fit: tensors alive at once, or what PyTorch's caching allocator holds for them."""


def one_of(name: str, given: str, accepted: tuple[str, ...]) -> str:
    """The word, if it is accepted.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    if given not in accepted:
        raise ValueError(f"{name}: {given!r} is unknown; accepted: {', '.join(accepted)}")
    return given


def slowdown_of(given: float | None, objective: str) -> float | None:
    """How many times as long as with memory enough a step may take; None without bound.

    Raises:
        ValueError: below 1, or where the objective is time.
    """
    if given is None:
        return None
    if objective != "memory":
        raise ValueError(
            "slowdown: bounds the time where memory is the objective; add objective='memory' or leave it out"
        )
    if isinstance(given, bool) or not isinstance(given, int | float) or not 1.0 <= given < float("inf"):
        raise ValueError(f"slowdown: {given!r} is not a number of at least 1 (1.1: a tenth longer)")
    return float(given)


def words_of(allow: Collection[str]) -> tuple[str, ...]:
    given = (allow,) if isinstance(allow, str) else tuple(allow)
    for word in given:
        if word not in ALLOWED:
            raise ValueError(f"allow: {word!r} is unknown; accepted: {', '.join(ALLOWED)}")
    if not given:
        raise ValueError(f"allow: nothing is allowed; accepted: some of {', '.join(ALLOWED)}")
    return tuple(word for word in ALLOWED if word in given)


def bytes_of(name: str, given: int | str, *, least: int = 1) -> int:
    """Bytes of an option given as a number or as text.

    Args:
        least: the smallest number accepted; 0 where none of it is a choice.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    from peakline.hardware.units import parse_bytes

    if isinstance(given, str):
        try:
            given = 0 if given.strip() == "0" else int(parse_bytes(given))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(given, bool) or not isinstance(given, int) or given < least:
        accepted = "above 0" if least else "of at least 0"
        raise ValueError(f"{name}: {given!r} is not a number of bytes {accepted} or a text like '24 GiB'")
    return given


def budget_of(given: int | str, device: str, capacity: int | None) -> int:
    """Bytes of a device that may be used.

    Raises:
        ValueError: not a number of bytes, or more than the device's capacity, where that is known.
    """
    from peakline.hardware.units import format_bytes

    asked = bytes_of("budget", given)
    if capacity and asked > capacity:
        raise ValueError(
            f"budget: {format_bytes(asked)} is more than {device} has ({format_bytes(capacity)}); "
            "accepted: at most that"
        )
    return asked
