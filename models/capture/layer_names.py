"""Names of layers: `model.layers.3.mlp.up.out` is layer 3 of `model.layers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peakline.models.flatten import instance_name

__all__ = ["Names", "Numbering", "numbering"]


@dataclass(frozen=True, slots=True)
class Numbering:
    """Layer i of the family has the numbers `first + i·step` to `first + i·step + step − 1` behind `prefix`."""

    prefix: str
    first: int
    step: int

    @property
    def family(self) -> str:
        """The family's name, as `flatten.instance_name` reads it."""
        if self.step > 1:
            return f"{self.prefix}@{self.first}/{self.step}"
        return f"{self.prefix}@{self.first}" if self.first else self.prefix

    def layer(self, name: str, repeat: int) -> tuple[int, str] | None:
        """Layer and the rest of the name (with the place in a group of layers), if the name is one of the family's."""
        number, _, rest = name[len(self.prefix) + 1 :].partition(".")
        if not number.isdigit():
            return None
        layer, place = divmod(int(number) - self.first, self.step)
        if not 0 <= layer < repeat:
            return None
        return layer, ".".join(p for p in (str(place) if self.step > 1 else "", rest) if p)


def numbering(names: Iterable[Sequence[str]]) -> Numbering | None:
    """How most names are numbered, given each tensor's names layer by layer; None if they are not."""
    votes: Counter[tuple[str, int]] = Counter()
    lowest: dict[tuple[str, int], int] = {}
    for one, other, *_ in names:
        a, b = one.split("."), other.split(".")
        places = [i for i, (x, y) in enumerate(zip(a, b)) if x != y]
        if len(a) != len(b) or len(places) != 1:
            continue
        depth = places[0]
        if depth and a[depth].isdigit() and b[depth].isdigit() and int(b[depth]) > int(a[depth]):
            key = ".".join(a[:depth]), int(b[depth]) - int(a[depth])
            votes[key] += 1
            lowest[key] = min(lowest.get(key, int(a[depth])), int(a[depth]))
    if not votes:
        return None
    key = votes.most_common(1)[0][0]
    return Numbering(key[0], lowest[key], key[1])


class Names:
    """Gives family names to what flat names call layer by layer, each instance's name once.

    Where the flat names are numbered as the family is, flattening gives them back. Where they are not, the first
    layer's is taken, changed until no instance's name is another's.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self.taken = set(taken)
        self.given: set[str] = set()

    def of(self, family: str, style: Numbering | None, names: Sequence[str]) -> str:
        """The family's name for what the flat program calls `names`, in the order of layers."""
        if style is not None and style.family == family and names[0].startswith(style.prefix + "."):
            found = style.layer(names[0], len(names))
            if found is not None and found[0] == 0:
                name = f"{family}.{found[1]}" if found[1] else family
                if name not in self.given and self._numbered(style, name, names):
                    self.given.add(name)
                    return name
        rest = names[0]
        if style is not None and rest.startswith(style.prefix + "."):
            found = style.layer(rest, len(names))
            rest = found[1] if found is not None else rest[len(style.prefix) + 1 :]
        return self.fresh(f"{family}.{rest or 'layer'}", family, len(names))

    @staticmethod
    def _numbered(style: Numbering, name: str, names: Sequence[str]) -> bool:
        """Whether flattening would give these names back."""
        if style.step > 1:
            return all(instance_name(name, style.family, i) == n for i, n in enumerate(names))
        rest, first = name[len(style.family) :], style.first
        return all(n == f"{style.prefix}.{first + i}{rest}" for i, n in enumerate(names))

    def fresh(self, name: str, family: str, repeat: int) -> str:
        """The name, numbered until neither it nor any instance's name is taken."""
        candidate, n = name, 1
        while candidate in self.given or not self.taken.isdisjoint(
            instances := [instance_name(candidate, family, i) for i in range(repeat)]
        ):
            n += 1
            candidate = f"{name}_{n}"
        self.given.add(candidate)
        self.taken.update(instances)
        return candidate
