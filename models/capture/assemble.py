"""From a recording to a graph: the last step's operators, and releases where a tensor outlives its last use.

A storage made by an operator of the graph dies after the last operator that touches it. Where the recorded program
freed it later (a Python variable held it, a view was still to be saved), a `release` at that point touches it. What the
last step frees but an earlier step made is tied to the tensor that takes its place (`Graph.previous`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from peakline.models.capture.calls import Call, Free, Recording, Storage
from peakline.models.capture.names import Names
from peakline.models.graph import Block, Graph, Operator, Phase, Tensor
from peakline.models.kernels import Kernel
from peakline.models.operators.captured import kernel_out

__all__ = ["Priced", "assemble"]


@dataclass(frozen=True, slots=True)
class Priced:
    """What one call costs: kernels, compulsory bytes, and blocks allocated and freed inside it.

    `workspace` stands beside the results at once; `passing` is every block, in order, where the rules know them all,
    `before` of them allocated before the first result;
    `results` are the bytes of the results' memory, where they are known better than from their shapes.
    """

    kernels: tuple[Kernel, ...] = ()
    reads: int = 0
    writes: int = 0
    workspace: tuple[int, ...] = ()
    passing: tuple[int, ...] = ()
    results: tuple[int, ...] = ()
    before: int = 0


def assemble(recording: Recording, price: Callable[[Call], Priced], *, name: str, **workload: Any) -> Graph:
    """The graph of the recording's last step, unfolded.

    Args:
        recording: at least one step.
        price: the cost of each call.
        name: of the graph.
        workload: what is computed, in plain values.
    """
    walk = _Assembly(recording, price)
    walk.run()
    graph = Graph(name, walk.tensors, (Block("step", tuple(walk.operators)),), workload, tuple(recording.notes),
                  walk.previous())  # fmt: skip
    graph.check()
    return graph


@dataclass
class _Assembly:
    """State of the walk over the events."""

    recording: Recording
    price: Callable[[Call], Priced]
    names: Names = field(default_factory=Names)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    owner: dict[int, str] = field(default_factory=dict)
    latest: dict[int, str] = field(default_factory=dict)
    touched: dict[int, int] = field(default_factory=dict)
    pending: list[int] = field(default_factory=list)
    makers: dict[int, Call] = field(default_factory=dict)
    freed: list[int] = field(default_factory=list)

    def run(self) -> None:
        last = self.recording.steps - 1
        self._residents(last)
        for event in self.recording.events:
            if event.step != last:
                continue
            if isinstance(event, Free):
                self._free(event.storage)
            elif _computes(event):
                self._release()
                self._operator(event)
        self._release()
        self._end(last)

    # ---- what is there ---------------------------------------------------------------------------------------------
    def _residents(self, last: int) -> None:
        """Storages that exist when the last step begins and that it sees, in order of creation."""
        gone: set[int] = set()
        for event in self.recording.events:
            if isinstance(event, Call):
                self.makers.update(dict.fromkeys(event.makes, event))
            elif event.step < last:
                gone.add(event.storage)
        born = {n for n, call in self.makers.items() if call.step >= last}
        for storage in self.recording.storages:
            number = storage.number
            if number not in born and number not in gone and not storage.host:
                self._as_made(number)
                role = "buffer" if storage.role == "activation" else storage.role
                self._declare(storage, storage.name or self._unnamed(storage), role)

    def _as_made(self, number: int) -> None:
        """What an earlier step made has the size its maker gave it."""
        call = self.makers.get(number)
        if call is not None and len(call.makes) == 1:
            self._resize(call, self.price(call).results)

    def _unnamed(self, storage: Storage) -> str:
        call = self.makers.get(storage.number)
        if call is None:
            return "held"
        return f"{call.module}.{call.packet.split('.', 1)[-1]}.before".lstrip(".")

    def _declare(self, storage: Storage, name: str, role: Any) -> str:
        name = self.names.fresh(name)
        kind, shape = storage.dtype, storage.shape
        plain = Tensor(name, shape, kind, role, trainable=storage.trainable)
        exact = None if plain.bytes == storage.bytes else storage.bytes
        self.tensors[name] = Tensor(name, shape, kind, role, None, None, storage.trainable, exact)
        self.owner[storage.number] = self.latest[storage.number] = name
        return name

    # ---- events ----------------------------------------------------------------------------------------------------
    def _operator(self, call: Call) -> None:
        storages = self.recording.storages
        makes = [n for n in call.makes if not storages[n].host]
        seen = [v.storage for v in (*call.views(), *call.results)]
        inputs = dict.fromkeys(n for n in seen if n not in call.makes and not storages[n].host)
        if not inputs and not makes:
            return  # all of it happens on the host
        for number in inputs:
            if number not in self.latest:
                self._declare(storages[number], storages[number].name or "held", storages[number].role)
        read = tuple([self.latest[number] for number in inputs])
        name = self.names.of_call(call)
        cost = self.price(call)
        self._resize(call, cost.results)
        outputs = []
        for place, number in enumerate(makes):
            storage = storages[number]
            title = storage.name or (name if len(makes) == 1 else f"{name}.{place}")
            outputs.append(self._declare(storage, title if storage.name else f"{title}.out", storage.role))
        for number in call.writes:
            if number in call.makes or storages[number].host:
                continue
            owner = self.tensors[self.owner[number]]
            title = self.names.fresh(f"{owner.name}'")
            self.tensors[title] = Tensor(title, owner.shape, owner.dtype, owner.role, None, owner.name)
            self.latest[number] = title
            outputs.append(title)
        attributes: dict[str, Any] = {"kernels": tuple(map(tuple, map(kernel_out, cost.kernels))), "reads": cost.reads,
                                      "writes": cost.writes}  # fmt: skip
        if cost.workspace:
            attributes["workspace"] = tuple(cost.workspace)
        if cost.passing and cost.passing != cost.workspace:
            attributes["passing"] = tuple(cost.passing)
        if cost.before:
            attributes["before"] = cost.before
        if call.line:
            attributes["line"] = call.line
        self.operators.append(Operator(name, call.packet, read, tuple(outputs), attributes, call.phase, call.module))
        for number in (*inputs, *makes):
            self.touched[number] = len(self.operators) - 1

    def _resize(self, call: Call, results: tuple[int, ...]) -> None:
        """One result whose memory is of another size than its shape says (a reduction's, made of its operand's)."""
        storages = self.recording.storages
        expected, known = Counter(storages[n].bytes for n in call.makes), Counter(results)
        odd, real = expected - known, known - expected
        if len(results) == len(call.makes) and odd.total() == real.total() == 1:
            (size,), (better,) = odd, real
            next(storages[n] for n in call.makes if storages[n].bytes == size).bytes = better

    def _free(self, number: int) -> None:
        if number not in self.owner:
            return
        self.freed.append(number)
        if self.touched.get(number, -1) != len(self.operators) - 1 or not self.operators:
            self.pending.append(number)

    def _release(self, numbers: Iterable[int] = ()) -> None:
        """End the lives of what was freed since the last operator without being used by it."""
        ended = [*self.pending, *numbers]
        self.pending.clear()
        if not ended:
            return
        phase: Phase = self.operators[-1].phase if self.operators else "forward"
        module = self.operators[-1].module if self.operators else ""
        name = self.names.fresh(f"{module}.release" if module else "release")
        self.operators.append(Operator(name, "release", tuple([self.latest[n] for n in ended]), (), {}, phase, module))
        for number in ended:
            self.touched[number] = len(self.operators) - 1

    def _end(self, last: int) -> None:
        """What the step made and left alive stays to its end."""
        gone = set(self.freed)
        left = [
            n for n in self.owner
            if n not in gone and n in self.makers and self.makers[n].step == last
            and self.touched.get(n) != len(self.operators) - 1
        ]  # fmt: skip
        self._release(left)

    # ---- from step to step -----------------------------------------------------------------------------------------
    def previous(self) -> dict[str, str]:
        """What the step frees of an earlier one → what takes its place."""
        last = self.recording.steps - 1
        freed = set(self.freed)
        before = self._by_part({n for n in freed if not self._made_in(n, last)})
        after = self._by_part({n for n in self.owner if self._made_in(n, last) and n not in freed})
        pairs = {}
        for part, number in before.items():
            heir = after.get(part)
            if heir is not None and self.recording.storages[heir].bytes == self.recording.storages[number].bytes:
                old, new = self.owner[number], self.owner[heir]
                role = self.tensors[new].role
                self.tensors[old] = Tensor(old, self.tensors[old].shape, self.tensors[old].dtype, role, None, None,
                                           False, self.tensors[old].bytes_override)  # fmt: skip
                pairs[old] = new
        return pairs

    def _made_in(self, number: int, step: int) -> bool:
        return number in self.makers and self.makers[number].step == step

    def _by_part(self, numbers: set[int]) -> dict[tuple[Any, ...], int]:
        """The part each storage plays: its name, or the how-manieth of its kind that its maker made."""
        counts: Counter[tuple[Any, ...]] = Counter()
        found = {}
        for number in sorted(numbers):
            storage, call = self.recording.storages[number], self.makers.get(number)
            if storage.name:
                key: tuple[Any, ...] = (storage.name,)
            elif call is not None:
                key = (call.op, call.module, call.phase, call.line, storage.bytes)
            else:
                continue
            found[(*key, counts[key])] = number
            counts[key] += 1
        return found


def _computes(call: Call) -> bool:
    """Whether anything runs or is allocated: not for a view, nor for asking a value."""
    return bool(call.makes or call.writes) and call.packet not in ("aten.set_", "aten._assert_async")
