"""What a plan may be asked: words, bytes, objectives."""

from __future__ import annotations

from collections.abc import Collection

__all__ = ["ALLOWED", "bytes_of", "words_of"]

ALLOWED = ("recompute", "swap", "offload-optimizer", "offload-params")
"""What a plan may be allowed to do."""


def words_of(allow: Collection[str]) -> tuple[str, ...]:
    given = (allow,) if isinstance(allow, str) else tuple(allow)
    for word in given:
        if word not in ALLOWED:
            raise ValueError(f"allow: {word!r} is unknown; accepted: {', '.join(ALLOWED)}")
    if not given:
        raise ValueError(f"allow: nothing is allowed; accepted: some of {', '.join(ALLOWED)}")
    return tuple(word for word in ALLOWED if word in given)


def bytes_of(name: str, given: int | str) -> int:
    """Bytes of an option given as a number or as text.

    Raises:
        ValueError: naming the option and what is accepted.
    """
    from peakline.hardware.units import parse_bytes

    if isinstance(given, str):
        given = int(parse_bytes(given))
    if isinstance(given, bool) or not isinstance(given, int) or given <= 0:
        raise ValueError(f"{name}: {given!r} is not a number of bytes above 0 or a text like '24 GiB'")
    return given
