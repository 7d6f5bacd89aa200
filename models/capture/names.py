"""Names for what a program makes: by the module that ran and the operator, numbered where they repeat."""

from __future__ import annotations

from collections import Counter

from peakline.models.capture.calls import Call

__all__ = ["Names"]


class Names:
    """Gives out names once each."""

    def __init__(self) -> None:
        """Nothing is taken."""
        self._taken: set[str] = set()
        self._counts: Counter[str] = Counter()

    def of_call(self, call: Call) -> str:
        """`model.layers.0.mlp.up_proj.mm`, or with `.2` where the module runs the operator a second time."""
        operator = call.packet.split(".", 1)[-1].lstrip("_")
        if call.phase == "backward" and "backward" not in operator:
            operator = f"backward.{operator}"
        if call.phase in ("optimizer", "recompute"):
            operator = f"{call.phase}.{operator}"
        return self.fresh(f"{call.module}.{operator}" if call.module else operator)

    def fresh(self, name: str) -> str:
        """The name, with a number where it is taken."""
        candidate = name
        while candidate in self._taken:
            self._counts[name] += 1
            candidate = f"{name}.{self._counts[name] + 1}"
        self._taken.add(candidate)
        return candidate
