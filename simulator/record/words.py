"""What goes into a trace as text: nothing that names a machine or its folders."""

from __future__ import annotations

import re

__all__ = ["describe"]

_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:\\|~?/)[^\s'\"():,;]+")
_LONGEST = 300


def describe(error: BaseException) -> str:
    """An error's kind and first lines, without paths, at most 300 characters."""
    text = " ".join(str(error).split())
    text = _PATH.sub("…", text)
    return f"{type(error).__name__}: {text}"[:_LONGEST] if text else type(error).__name__
