"""What a recorded program is made of: storages, and the calls and frees that happen to them, in order.

Everything is plain: no tensor, no module and no torch type is kept, so that a recording outlives the program and its
rules can be read and tested without running anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from peakline.models.dims import prod
from peakline.models.dtypes import DType, nbytes
from peakline.models.graph import Phase, Role

__all__ = ["Call", "Event", "Free", "Recording", "Storage", "View"]


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as an operator sees it: a look at a storage.

    Attributes:
        storage: number of the storage in the recording.
        shape, strides: in elements.
        offset: first element, counted from the storage's start.
        dtype: format of the elements.
    """

    storage: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: DType

    @property
    def elements(self) -> int:
        """Number of elements looked at."""
        return int(prod(self.shape))

    @property
    def bytes(self) -> int:
        """Bytes of the elements looked at; an expanded dimension (stride 0) counts once."""
        distinct = prod(tuple(n for n, stride in zip(self.shape, self.strides) if stride or n == 0))
        return int(nbytes(int(distinct), self.dtype))


@dataclass(slots=True)
class Storage:
    """One piece of memory.

    Attributes:
        number: its place in `Recording.storages`.
        bytes: its size.
        role: what it is for.
        name: a name a user recognises (`model.layers.0.mlp.up_proj.weight`), or "" for what has none.
        dtype: format of the tensor that was first seen on it; `shape`: its shape.
        trainable: a leaf for which autograd computes a gradient.
        host: lies in the host's memory, not the device's.
    """

    number: int
    bytes: int
    role: Role
    name: str
    dtype: DType
    shape: tuple[int, ...]
    trainable: bool = False
    host: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an ATen operator.

    Attributes:
        op: the operator with its overload, `aten.addmm.default`.
        arguments: by the names of the operator's schema, defaults filled in; tensors are `View`s, lists of tensors
            tuples of them, formats `DType`s, everything else plain Python values.
        results: the tensors it returned.
        makes: storages that first exist with this call.
        phase: part of the step.
        module: path of the innermost module that ran (`model.layers.0.mlp`).
        line: `file.py:12` of the user's code that asked for it; a backward call has its forward call's.
        step: number of the step, from 0; −1 while the model is set up.
        writes: storages among the arguments that the operator changes in place.
        tracked: autograd records what is done (some kernels then keep more).
    """

    op: str
    arguments: Mapping[str, Any]
    results: tuple[View, ...]
    makes: tuple[int, ...]
    phase: Phase = "forward"
    module: str = ""
    line: str = ""
    step: int = 0
    writes: tuple[int, ...] = ()
    tracked: bool = False

    @property
    def packet(self) -> str:
        """The operator without its overload: `aten.addmm`."""
        return self.op.rsplit(".", 1)[0]

    def views(self) -> Iterator[View]:
        """Every tensor among the arguments, lists included."""
        for value in self.arguments.values():
            if isinstance(value, View):
                yield value
            elif isinstance(value, tuple):
                yield from (v for v in value if isinstance(v, View))


@dataclass(frozen=True, slots=True)
class Free:
    """A storage goes back to the allocator: nothing refers to it any more."""

    storage: int
    step: int = 0


Event: TypeAlias = Call | Free


@dataclass
class Recording:
    """A program as it ran.

    Attributes:
        storages: by number, in order of creation.
        events: calls and frees in order.
        steps: number of steps recorded.
        notes: what a user should know of how it was recorded.
    """

    storages: list[Storage] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    steps: int = 0
    notes: list[str] = field(default_factory=list)
