"""Read fields of a `config.json`: typed, with defaults, with errors that name the field, its value and what fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Fields", "positive"]

_MISSING = object()


class Fields:
    """Typed access to a configuration mapping.

    Every getter takes alternative names, the first present one wins; null counts as absent. Without a default, an
    absent field is an error.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def has(self, *names: str) -> bool:
        """Whether one of the names is present and not null."""
        return any(self.values.get(n) is not None for n in names)

    def raw(self, *names: str, default: Any = _MISSING) -> tuple[str, Any]:
        """Name and value of the first field present.

        Raises:
            ValueError: absent, and no default.
        """
        for name in names:
            if self.values.get(name) is not None:
                return name, self.values[name]
        if default is _MISSING:
            others = f" (or {', '.join(names[1:])})" if len(names) > 1 else ""
            raise ValueError(f"field {names[0]!r}{others} is missing")
        return names[0], default

    def int(self, *names: str, default: Any = _MISSING, least: int = 1) -> Any:
        """An integer of at least `least`.

        Raises:
            ValueError: absent, not an integer, or too small.
        """
        name, value = self.raw(*names, default=default)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"field {name!r} is {value!r}; accepted: an integer of at least {least}")
        return value

    def number(self, *names: str, default: Any = _MISSING) -> Any:
        """A number (None where the default is None).

        Raises:
            ValueError: absent or not a number.
        """
        name, value = self.raw(*names, default=default)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"field {name!r} is {value!r}; accepted: a number")
        return value

    def flag(self, *names: str, default: bool) -> bool:
        """True or false.

        Raises:
            ValueError: something else.
        """
        name, value = self.raw(*names, default=default)
        if not isinstance(value, bool):
            raise ValueError(f"field {name!r} is {value!r}; accepted: true or false")
        return value

    def text(self, *names: str, default: Any = _MISSING, among: Sequence[str] = ()) -> Any:
        """A string, one of `among` if given.

        Raises:
            ValueError: absent, not a string, or not accepted.
        """
        name, value = self.raw(*names, default=default)
        if value is None:
            return None
        if not isinstance(value, str) or (among and value not in among):
            accepted = ", ".join(among) if among else "a string"
            raise ValueError(f"field {name!r} is {value!r}; accepted: {accepted}")
        return value

    def items(self, *names: str, default: Any = _MISSING) -> Any:
        """A list.

        Raises:
            ValueError: absent or not a list.
        """
        name, value = self.raw(*names, default=default)
        if value is not None and not isinstance(value, list | tuple):
            raise ValueError(f"field {name!r} is {value!r}; accepted: a list")
        return value


MOST_LAYERS = 100_000
"""Layers of a model: a hundred times the deepest ever trained (1,000 layers, arXiv:2203.00555)."""


def positive(config: object, *names: str, least: int = 1) -> None:
    """Check that fields of a configuration are integers of at least `least`, and layers few enough to be listed.

    Raises:
        ValueError: naming the field and its value.
    """
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"field {name!r} is {value!r}; accepted: an integer of at least {least}")
        if name.endswith("layers") and value > MOST_LAYERS:
            raise ValueError(f"field {name!r} is {value}; accepted: at most {MOST_LAYERS}")
