"""Parts of a graph that may change places: of equal ones it is enough to look at the orders that begin the first first.

A *swap* exchanges operators and tensors in pairs, of equal sizes and roles, so that every operator reads and makes what
its partner did and waits for what its partner waited for. Experts of a layer, groups of a convolution, or the
projections to queries and keys can be swapped. A swap turns a plan into one with the same peak and the same traffic.
So if operator x can be exchanged with each of y, z, … by a swap, whatever else moves with them, any plan can be turned
into one in which x, y, z, … run in the order in which they are listed, and demanding that order loses nothing.

Groups are put in order one after another, those of the smallest swaps first; a swap must respect what has been demanded
before. Of k equal parts it then matters how far they are, and hardly which of them is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from peakline.solvers.dag import Dag, Ordered, bits

__all__ = ["Swap", "in_listed_order", "swaps"]

_ROUNDS = 40  # of telling kinds apart
_MOST_LOOKED = 100_000  # pairs of operators, in all swaps together
_MOST_OPERATORS = 2_000  # of a problem that is looked at


@dataclass(frozen=True, slots=True)
class Swap:
    """Operators and tensors with their partners, in both directions; what is not listed stays in its place."""

    operators: dict[int, int] = field(default_factory=dict)
    tensors: dict[int, int] = field(default_factory=dict)


def in_listed_order(dag: Dag) -> Dag:
    """The same problem with precedences among operators that can change places; `dag` itself where none can.

    The smallest peak and the least traffic over all orders are those of `dag`.
    """
    if len(dag) > _MOST_OPERATORS:
        return dag
    extra = list(dag.extra) if isinstance(dag, Ordered) else [0] * len(dag)
    demanded = False
    for group in swaps(dag):
        if all(_keeps(dag, extra, swap) for swap in group.values()):
            listed = list(group)
            for one, next_ in pairwise(listed):
                extra[next_] |= 1 << one
            demanded = True
    return Ordered.by(dag, tuple(extra)) if demanded else dag


def swaps(dag: Dag) -> list[dict[int, Swap]]:
    """Groups of operators that the first of each can be swapped with, by operator as listed, the smallest swaps first.

    The first operator's own swap changes nothing.
    """
    kinds = _Kinds(dag)
    alike: dict[int, list[int]] = {}
    for i in dag.problem.given_order:
        alike.setdefault(kinds.operators[i], []).append(i)
    found: list[dict[int, Swap]] = []
    looked = [0]
    for members in alike.values():
        while len(members) > 1:
            first, *others = members
            group = {first: Swap()}
            for other in others:
                swap = _Swapping(dag, kinds, looked).of(first, other)
                if swap is not None:
                    group[other] = swap
            if len(group) > 1:
                found.append(group)
            members = [i for i in others if i not in group]
    return sorted(found, key=lambda group: max(len(swap.operators) for swap in group.values()))


def _keeps(dag: Dag, extra: list[int], swap: Swap) -> bool:
    """Whether the problem with all its precedences is the same after the swap."""
    operators, tensors = swap.operators, swap.tensors

    def moved(mask: int, to: dict[int, int]) -> int:
        return sum(1 << to.get(k, k) for k in bits(mask))

    these, those = sum(1 << i for i in operators), sum(1 << a for a in tensors)
    for i in range(len(dag)):
        if not (these >> i & 1 or dag.touch[i] & those or (dag.before[i] | extra[i]) & these):
            continue
        j = operators.get(i, i)
        if moved(dag.reads[i], tensors) != dag.reads[j] or moved(dag.makes[i], tensors) != dag.makes[j]:
            return False
        if moved(dag.before[i] | extra[i], operators) != dag.before[j] | extra[j]:
            return False
    return True


class _Kinds:
    """Numbers for operators and tensors that differ where a swap cannot exchange them: sizes, roles and neighbours'."""

    def __init__(self, dag: Dag) -> None:
        makers = [[m] if m >= 0 else [] for m in dag.maker]
        readers = [list(bits(mask)) for mask in dag.readers]
        before = [list(bits(mask)) for mask in dag.before]
        self.tensors = _numbered(
            (size, dag.dear >> a & 1, dag.off_chip >> a & 1, dag.results >> a & 1) for a, size in enumerate(dag.size)
        )
        self.operators = [0] * len(dag)
        count = 0
        for _ in range(_ROUNDS):

            def of(tensors: Iterable[int]) -> tuple[int, ...]:
                return tuple(sorted(self.tensors[a] for a in tensors))

            def like(operators: Iterable[int]) -> tuple[int, ...]:
                return tuple(sorted(self.operators[i] for i in operators))

            self.operators = _numbered(
                (self.operators[i], of(dag.inputs[i]), of(dag.outputs[i]), like(before[i])) for i in range(len(dag))
            )
            self.tensors = _numbered((self.tensors[a], like(makers[a]), like(readers[a])) for a in range(len(dag.size)))
            if count == (count := len(set(self.operators)) + len(set(self.tensors))):
                break


def _numbered(keys: Iterable[object]) -> list[int]:
    numbers: dict[object, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


class _Swapping:
    """One attempt: what must move if two operators change places, and what moves with that."""

    def __init__(self, dag: Dag, kinds: _Kinds, looked: list[int]) -> None:
        self.dag, self.kinds, self.looked = dag, kinds, looked
        self.operators: dict[int, int] = {}
        self.tensors: dict[int, int] = {}
        self.waiting: list[tuple[int, int]] = []

    def of(self, one: int, other: int) -> Swap | None:
        """A swap of these two operators that keeps all that is read and made; None if none was found."""
        self.looked[0] += 1
        if self.looked[0] > _MOST_LOOKED or not self._exchange(one, other):
            return None
        while self.waiting:
            self.looked[0] += 1
            if self.looked[0] > _MOST_LOOKED or not self._neighbours(*self.waiting.pop()):
                return None
        return Swap(self.operators, self.tensors)

    def _exchange(self, i: int, j: int) -> bool:
        """Let two operators change places, unless that cannot be."""
        if i in self.operators or j in self.operators:
            return self.operators.get(i) == j
        comparable = i == j or (self.dag.ancestors[i] >> j | self.dag.ancestors[j] >> i) & 1
        if comparable or self.kinds.operators[i] != self.kinds.operators[j]:
            return False
        self.operators[i], self.operators[j] = j, i
        self.waiting.append((i, j))
        return True

    def _neighbours(self, i: int, j: int) -> bool:
        """Let the tensors change places that only one of two operators touches."""
        dag = self.dag
        return self._pair(dag.inputs[i], dag.inputs[j]) and self._pair(dag.outputs[i], dag.outputs[j])

    def _pair(self, ones: tuple[int, ...], others: tuple[int, ...]) -> bool:
        pairs = _matched(ones, others, self.tensors, self.kinds.tensors)
        return pairs is not None and all(self._move(a, b) for a, b in pairs)

    def _move(self, a: int, b: int) -> bool:
        """Let two tensors change places, and those who make or read only one of them."""
        dag = self.dag
        if a in self.tensors or b in self.tensors:
            return self.tensors.get(a) == b
        self.tensors[a], self.tensors[b] = b, a
        if dag.maker[a] != dag.maker[b] and (
            min(dag.maker[a], dag.maker[b]) < 0 or not self._exchange(dag.maker[a], dag.maker[b])
        ):
            return False
        pairs = _matched(bits(dag.readers[a]), bits(dag.readers[b]), self.operators, self.kinds.operators)
        return pairs is not None and all(self._exchange(i, j) for i, j in pairs)


def _matched(
    ones: Iterable[int], others: Iterable[int], partner: dict[int, int], kinds: list[int]
) -> list[tuple[int, int]] | None:
    """Pairs of what is not in both: partners where known, else equal kinds as they are listed; None if they differ."""
    first, second = set(ones), set(others)
    pairs = [(a, partner[a]) for a in sorted(first) if a in partner]
    if any(b not in second for _, b in pairs):
        return None
    known = {b for _, b in pairs}
    left = sorted(first - second - partner.keys(), key=lambda a: (kinds[a], a))
    right = sorted(second - first - known, key=lambda b: (kinds[b], b))
    if [kinds[a] for a in left] != [kinds[b] for b in right]:
        return None
    return pairs + list(zip(left, right))
