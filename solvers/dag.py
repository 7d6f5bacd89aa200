"""A problem as numbers and bit masks: what the solvers of order and traffic share.

Operators and tensors are numbered as in the problem; a set of either is an int whose bit i stands for number i.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

from peakline.solvers.problem import OFF_CHIP, Problem

__all__ = ["Dag", "Ordered", "bits"]


def bits(mask: int) -> Iterator[int]:
    """Positions of the ones, lowest first."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


@dataclass(frozen=True)
class Dag:
    """A problem compiled.

    Attributes:
        problem: what was compiled.
        size: bytes of each tensor.
        inputs, outputs: tensors of each operator.
        touch: mask of the tensors of each operator.
        users: mask of the operators that touch (make or read) each tensor.
        readers: mask of the operators that read each tensor.
        maker: operator that makes each tensor; −1 for what exists off-chip.
        dear: mask of the tensors whose eviction costs a store besides the reload: activations. All others lie
            off-chip anyway, or must be stored sooner or later.
    """

    problem: Problem
    size: tuple[int, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    touch: tuple[int, ...]
    users: tuple[int, ...]
    readers: tuple[int, ...]
    maker: tuple[int, ...]
    dear: int

    @classmethod
    def of(cls, problem: Problem) -> Dag:
        """Compile a problem."""
        number = {tensor.name: i for i, tensor in enumerate(problem.tensors)}
        inputs = tuple(tuple(dict.fromkeys(number[name] for name in o.inputs)) for o in problem.operators)
        outputs = tuple(tuple(number[name] for name in o.outputs) for o in problem.operators)
        users, readers, maker = [0] * len(number), [0] * len(number), [-1] * len(number)
        touch = []
        for i, (read, made) in enumerate(zip(inputs, outputs)):
            for a in read:
                readers[a] |= 1 << i
            for a in made:
                maker[a] = i
            for a in (*read, *made):
                users[a] |= 1 << i
            touch.append(sum(1 << a for a in {*read, *made}))
        dear = sum(1 << i for i, tensor in enumerate(problem.tensors) if tensor.role == "activation")
        return cls(
            problem, tuple(t.bytes for t in problem.tensors), inputs, outputs, tuple(touch), tuple(users),
            tuple(readers), tuple(maker), dear,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def everything(self) -> int:
        """Mask of all operators."""
        return (1 << len(self)) - 1

    @cached_property
    def off_chip(self) -> int:
        """Mask of the inputs and parameters."""
        return sum(1 << i for i, tensor in enumerate(self.problem.tensors) if tensor.role in OFF_CHIP)

    @cached_property
    def results(self) -> int:
        """Mask of the problem's outputs, which must end off-chip."""
        return sum(1 << i for i, tensor in enumerate(self.problem.tensors) if tensor.role == "output")

    @cached_property
    def reads(self) -> tuple[int, ...]:
        """Mask of the tensors that each operator reads."""
        return tuple(sum(1 << a for a in read) for read in self.inputs)

    @cached_property
    def makes(self) -> tuple[int, ...]:
        """Mask of the tensors that each operator makes."""
        return tuple(sum(1 << a for a in made) for made in self.outputs)

    @cached_property
    def overlays(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each operator the (output, input) pairs of which the output may lie within the input's bytes."""
        names = [tensor.name for tensor in self.problem.tensors]
        found = []
        for operator, read, made in zip(self.problem.operators, self.inputs, self.outputs):
            allowed = operator.in_place
            pairs = ((b, a) for b in made for a in read if self.size[a] >= self.size[b])
            found.append(tuple((b, a) for b, a in pairs if allowed is None or (names[b], names[a]) in allowed))
        return tuple(found)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Mask of the operators that each operator needs at once: the makers of its inputs."""
        return tuple(sum(1 << j for j in {self.maker[a] for a in read} if j >= 0) for read in self.inputs)

    @cached_property
    def after(self) -> tuple[int, ...]:
        """Mask of the operators that read what each operator makes."""
        found = []
        for made in self.outputs:
            mask = 0
            for a in made:
                mask |= self.readers[a]
            found.append(mask)
        return tuple(found)

    @cached_property
    def ancestors(self) -> tuple[int, ...]:
        """Mask of all operators that must run earlier."""
        found = [0] * len(self)
        for i in self.problem.given_order:
            mask = self.before[i]
            for j in bits(mask):
                mask |= found[j]
            found[i] = mask
        return tuple(found)

    @cached_property
    def descendants(self) -> tuple[int, ...]:
        """Mask of all operators that must run later."""
        found = [0] * len(self)
        for i in reversed(self.problem.given_order):
            mask = self.after[i]
            for j in bits(mask):
                mask |= found[j]
            found[i] = mask
        return tuple(found)

    def weigh(self, tensors: int) -> int:
        """Bytes of a set of tensors."""
        total = 0
        size = self.size
        while tensors:
            low = tensors & -tensors
            total += size[low.bit_length() - 1]
            tensors ^= low
        return total

    @cached_property
    def working_sets(self) -> tuple[int, ...]:
        """Bytes that each operator touches."""
        return tuple(self.weigh(mask) for mask in self.touch)

    def read_by(self, operators: int) -> int:
        """Tensors that one of these operators or more read."""
        return sum(1 << a for a, readers in enumerate(self.readers) if readers & operators)

    def live_after(self, executed: int) -> int:
        """Tensors that an executed operator touched and one to come reads, in the set of the executed ones."""
        live = 0
        for a, users in enumerate(self.users):
            if users & executed and self.readers[a] & ~executed:
                live |= 1 << a
        return live

    def peak_of(self, order: tuple[int, ...] | list[int]) -> int:
        """Most bytes alive at once in an order, nothing being evicted before its last use."""
        return max(self.alive_along(order))

    def alive_along(self, order: tuple[int, ...] | list[int]) -> list[int]:
        """Bytes alive while each operator of an order runs, nothing being evicted before its last use.

        A tensor lives from the operator that makes it (or first reads it, if it exists off-chip) to its last reader.
        """
        left = [mask.bit_count() for mask in self.users]
        seen = [False] * len(self.size)
        alive, found = 0, []
        for i in order:
            touched = (*self.inputs[i], *self.outputs[i])
            for a in touched:
                if not seen[a]:
                    seen[a] = True
                    alive += self.size[a]
            found.append(alive)
            for a in touched:
                left[a] -= 1
                if not left[a]:
                    alive -= self.size[a]
        return found


@dataclass(frozen=True)
class Ordered(Dag):
    """A problem whose operators run in no order but those in which i comes after all of `extra[i]`, a mask."""

    extra: tuple[int, ...] = ()

    @classmethod
    def by(cls, dag: Dag, extra: tuple[int, ...]) -> Ordered:
        """`dag` with further precedences.

        Raises ValueError if they contradict the order in which the problem lists its operators.
        """
        seen = 0
        for i in dag.problem.given_order:
            if extra[i] & ~seen:
                raise ValueError(f"extra: operator {i} is listed before one that it waits for")
            seen |= 1 << i
        return cls(**{field.name: getattr(dag, field.name) for field in fields(Dag)}, extra=extra)

    @cached_property
    def before(self) -> tuple[int, ...]:
        """Mask of the operators that each operator waits for."""
        return tuple(mask | more for mask, more in zip(super().before, self.extra))

    @cached_property
    def after(self) -> tuple[int, ...]:
        """Mask of the operators that wait for each operator."""
        found = list(super().after)
        for i, mask in enumerate(self.extra):
            for k in bits(mask):
                found[k] |= 1 << i
        return tuple(found)
