"""One forward and backward pass under a plan: what autograd saves goes through here, and so does every operator.

In the forward pass each operator is lined up with the plan's. A storage that the plan lets go is saved as a mere
reference, and gone when nobody else uses it; what must be executed to have it again is written down. In the backward
pass the next operator, or the first request for a storage, says which step has come: what the plan does until then
(fetch what was sent away, execute a segment again) is done first.

Variables of a `forward` may hold a storage that no operator will touch again before the backward pass. Those that are
seen to let it go before the forward pass is over find it emptied at its planned time from the next pass on.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import defaultdict
from typing import Any

import torch

from peakline.execution.in_place import in_place
from peakline.execution.parameters import Parameters
from peakline.execution.replay import (
    FRESH,
    Outside,
    Reference,
    Written,
    execute,
    is_random,
    mutable,
    random_state,
    refer,
    storage_of,
    write_down,
)
from peakline.execution.script import PACKED, Action, Expected, Script
from peakline.execution.stores import Store, Stored, Ticket
from peakline.models.capture.views import schema_of, tensors_in

__all__ = ["Handle", "Iteration"]

_UNCOUNTED = ("aten.set_", "aten._assert_async")
"""Operators that capture does not count as work either."""


class _Memory:
    """A storage of the forward pass that somebody will want again: here, in a tier, or to be made."""

    __slots__ = ("__weakref__", "base", "key", "stored", "ticket")

    def __init__(self, key: int, base: torch.Tensor | None) -> None:
        self.key, self.base = key, base
        self.stored: Stored | None = None
        self.ticket: Ticket | None = None

    def __del__(self) -> None:
        if self.stored is not None:
            self.stored.free()


class Handle:
    """What autograd keeps in the place of a saved tensor."""

    __slots__ = ("iteration", "memory", "reference", "tensor")

    def __init__(
        self, iteration: Iteration, tensor: torch.Tensor | None, memory: _Memory | None, reference: Reference
    ) -> None:
        self.iteration, self.tensor, self.memory, self.reference = iteration, tensor, memory, reference

    def get(self) -> torch.Tensor:
        """The saved tensor."""
        self.iteration.reach(self.reference.key)
        if self.tensor is not None:
            return self.tensor
        assert self.memory is not None
        return self.reference.view(self.iteration.there(self.memory))


class Iteration:
    """State of one forward pass and its backward pass."""

    def __init__(
        self, script: Script, stores: dict[str, Store], lingering: set[int], parameters: Parameters | None = None,
        *, training: bool = True,
    ) -> None:  # fmt: skip
        """Nothing has run.

        Args:
            lingering: storages that variables hold for a while beyond their last use, as earlier iterations found;
                this one adds to them.
            parameters: those that lie elsewhere.
            training: whether the module is in training mode.
        """
        self.script, self.stores, self.lingering, self.parameters = script, stores, lingering, parameters
        self.position = 0
        self.inside = True
        self.written: dict[int, Written] = {}
        self.needed: dict[int, _Memory] = {}
        self.users: dict[int, int] = defaultdict(int)
        for read in script.operands.values():
            for key in read:
                self.users[key] += 1
        self._keys: dict[int, tuple[weakref.ref[Any], int | None]] = {}
        self._memories: weakref.WeakValueDictionary[int, _Memory] = weakref.WeakValueDictionary()
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._held: list[int] = []
        self._owed: set[int] = set()
        self._due = sorted(script.actions)
        self._done = 0
        self._behind = 0
        self._waiting: list[tuple[int, Action]] = []
        self.busy = False
        self._after: int | None = None
        self.training, self.called_again = training, False

    @property
    def recording(self) -> bool:
        """Whether operators of the forward pass are still to come."""
        return self.position < len(self.script.expected)

    # ---- storages -------------------------------------------------------------------------------------------------
    def key_of(self, tensor: torch.Tensor) -> int | None:
        """The plan's number of the tensor's storage; None if the step did not make it."""
        found = self._keys.get(storage_of(tensor))
        return found[1] if found is not None and found[0]() is not None else None

    def _known(self, tensor: torch.Tensor) -> bool:
        found = self._keys.get(storage_of(tensor))
        return found is not None and found[0]() is not None

    def _learn(self, tensor: torch.Tensor, key: int | None) -> None:
        reference = weakref.ref(tensor.untyped_storage())
        self._keys[storage_of(tensor)] = (reference, key)
        if key is not None:
            self._storages[key] = reference

    # ---- the forward pass -----------------------------------------------------------------------------------------
    def run(self, operator: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operator of the forward pass and line it up with the plan."""
        if not schema_of(operator).is_view:  # autograd detaches what it saves while the operands are still held
            self._settle()
        given = [] if operator is FRESH else list(tensors_in([*args, *kwargs.values()]))
        for tensor in given:
            if not self._known(tensor):
                self._learn(tensor, None)
        if self.parameters is not None:
            self._until(self.script.expected[self.position].step)
            self.ensure(given)
        step = self.script.expected[self.position]
        called, operator = operator, _unheard(operator, step)
        again = self.script.segment_of.get(step.step)
        plain = write_down(operator, args, kwargs, self.key_of) if again is not None else None
        device = given[0].device if given else kwargs.get("device") or torch.device("cpu")
        state = random_state(torch.device(device)) if again is not None and is_random(operator) else None
        result = operator(*args, **kwargs)
        if operator is not called:
            result = result.detach()  # autograd gives the result of what was called a history of its own
        made: dict[int, torch.Tensor] = {}
        for tensor in tensors_in(result):
            if not self._known(tensor):
                made.setdefault(storage_of(tensor), tensor)
        packet = packet_of(operator)
        if not (made or mutable(operator)) or packet in _UNCOUNTED:
            return result
        difference = _difference(step, packet, list(made.values()))
        if difference:
            if not self.inside:
                return result  # the loss is somebody else's; what the plan says of it is missed when it is needed
            why = "the module changed since the plan was made" if self.training else (
                "the module is in evaluation mode, the plan's was not"
            )  # fmt: skip
            raise ValueError(f"{difference}; {why}: capture and plan it again")
        for key, tensor in zip(step.makes, made.values()):
            self._learn(tensor, key)
            if key in self.users:
                self.needed[key] = self._memory(key, tensor.detach())
        if again is not None and plain is not None:
            self.written[step.step] = Written(operator, *plain, step.makes, state)
        self.position += 1
        self._after = step.step
        return result

    def _settle(self) -> None:
        """What the plan does after the operator that has run last: whoever called it has let go of its operands now."""
        if self._after is None:
            return
        first, self._after = self._after, None
        following = self.script.expected[self.position].step if self.recording else self.script.turn
        self.busy = True
        try:
            for done in range(first, following):
                for key in self.script.sends.get(done, ()):
                    self._send(key)
                for key in self.script.lets.get(done, ()):
                    self._let_go(key)
        finally:
            self.busy = False
        self._until(following)

    def leave(self) -> None:
        """The module returns: what is held now may be seen by whoever called it, and must stay what it is."""
        self._settle()
        self.inside = False
        self.lingering.update(key for key in self._held if self._storages[key]() is None)

    def _let_go(self, key: int) -> None:
        """A storage is gone by the plan; where variables hold it for a while yet, it is emptied."""
        storage = self._storages[key]() if key in self._storages else None
        if storage is None or not self.inside:
            return
        if key in self.lingering:
            storage.resize_(0)
        else:
            self._held.append(key)

    def _memory(self, key: int, base: torch.Tensor | None) -> _Memory:
        found = self._memories.get(key)
        if found is None:
            found = self._memories[key] = _Memory(key, base)
        elif found.base is None and base is not None and found.stored is None:
            found.base = base
        return found

    def save(self, tensor: torch.Tensor) -> Any:
        """What autograd keeps of a tensor it saves."""
        plain = tensor.detach()
        key = self.key_of(plain)
        if self.parameters is not None and key is None:
            key = self.parameters.number_of(plain)
            return plain if key is None else _SavedParameter(self, plain, key)
        if key is None or plain.layout is not torch.strided or plain.is_conj() or plain.is_neg():
            return plain
        reference = refer(plain, key)
        if key in self.script.again:
            return Handle(self, None, self._memory(key, None), reference)
        if key in self.script.moved:
            memory = self._memory(key, plain)
            if key in self._owed:  # autograd saves results when the operator has returned
                self._owed.discard(key)
                self.busy = True
                self._send(key)
                self.busy = False
            return Handle(self, None, memory, reference)
        return Handle(self, plain, None, reference)

    # ---- what the plan does, when its time has come ---------------------------------------------------------------
    def reach(self, key: int) -> None:
        """Autograd asks for a storage: do all that comes before the step that reads it first.

        Raises:
            ValueError: the forward pass did not run as planned.
        """
        if self.recording:
            awaited = self.script.expected[self.position]
            if self.called_again:
                raise ValueError(
                    "the module was called again before the backward pass of its last call; a plan is of one call, its "
                    "loss and its backward pass"
                )
            raise ValueError(
                f"the backward pass begins, but {awaited.name} ({awaited.type}{_at(awaited.line)}) of the plan has not "
                "run: the loss is another than the captured one; capture and plan it again"
            )
        self._settle()
        step = self.script.first_use.get(key, -1)
        begins = self.script.began.get(step, step)  # operators before the one that reads it may still be to come
        self._behind = max(self._behind, bisect_left(self.script.backward, (begins, "")))
        self._until(step, begins)

    def follow(self, operator: Any, args: tuple[Any, ...]) -> Any:
        """An operator of the backward pass is about to run: do all that comes before its step, if it is the next.

        Returns the operator to run, which PyTorch would have called if nobody listened.
        """
        self._settle()
        if self._behind >= len(self.script.backward):
            return operator
        step, kind = self.script.backward[self._behind]
        operator = in_place(operator, kind, args)
        if kind == packet_of(operator):
            self._behind += 1
            self._until(step)
        return operator

    def ensure(self, tensors: list[torch.Tensor]) -> None:
        """Have the parameters among the tensors in."""
        if self.parameters is not None:
            before, self.busy = self.busy, True
            try:
                self.parameters.ensure(tensors)
            finally:
                self.busy = before

    def _until(self, step: int, begun: int | None = None) -> None:
        """Do what comes before a step; parameters come and go only up to `begun`, where that is an earlier one."""
        begun = step if begun is None else begun
        self._catch_up(begun)
        while self._done < len(self._due) and self._due[self._done] <= step:
            due = self._due[self._done]
            self._done += 1
            for action in self.script.actions[due]:
                if action.kind in ("leave", "bring") and due > begun:
                    self._waiting.append((due, action))
                else:
                    self._perform(action)
        self._catch_up(begun)

    def _catch_up(self, step: int) -> None:
        while self._waiting and self._waiting[0][0] <= step:
            self._perform(self._waiting.pop(0)[1])

    def _perform(self, action: Action) -> None:
        self.busy = True
        try:
            self._do(action)
        finally:
            self.busy = False

    def _do(self, action: Action) -> None:
        if action.kind == "recompute":
            self._again(action.number)
            return
        if action.kind in ("leave", "bring"):
            assert self.parameters is not None
            (self.parameters.drop if action.kind == "leave" else self.parameters.fetch)(action.number)
            return
        memory = self._memories.get(action.number)
        if memory is None or memory.stored is None:
            return
        if action.kind == "drop":
            memory.stored.ticket.wait()
            memory.base = None
            self._let_go(action.number)
        else:
            self._fetch(memory)

    def _send(self, key: int) -> None:
        memory = self._memories.get(key)
        if memory is not None and memory.base is not None:
            memory.stored = self.stores[self.script.moved[key]].put(memory.base)
            if self.script.moved[key] == PACKED:  # packed there and then
                memory.base = None
                self._let_go(key)
        else:
            self._owed.add(key)

    def _fetch(self, memory: _Memory) -> None:
        if memory.stored is not None and memory.base is None:
            memory.base, memory.ticket = memory.stored.fetch()
            if self.script.moved[memory.key] == PACKED:  # it takes memory of the device until then
                memory.stored.free()

    def there(self, memory: _Memory) -> torch.Tensor:
        """The memory with its bytes in it."""
        if memory.base is None:
            self._fetch(memory)
        if memory.base is None:
            raise ValueError(f"{self.script.names[memory.key]} is gone; a plan cannot serve this backward pass")
        if memory.ticket is not None:
            memory.ticket.wait()
            memory.ticket = None
        return memory.base

    def _again(self, segment: int) -> None:
        """Execute a segment's chosen operators again, in their order; what nobody saved is freed on the way."""
        steps = self.script.segments[segment]
        calls = [self.written.pop(step) for step in steps]
        last = _last_uses(calls)
        mine: dict[int, torch.Tensor] = {}

        def memory(key: int) -> torch.Tensor:
            return mine[key] if key in mine else self.there(self.needed[key])

        for i, call in enumerate(calls):
            self.ensure(_outside(call))
            mine.update(execute(call, memory))
            for key in [key for key in mine if last.get(key, i) <= i]:
                base, wanted = mine.pop(key), self._memories.get(key)
                if key in self.script.again and wanted is not None:
                    wanted.base = base
        for key in self.script.operands[segment]:
            self.users[key] -= 1
            if not self.users[key]:
                self.needed.pop(key, None)


class _SavedParameter(Handle):
    """What autograd keeps of a parameter that comes and goes: a look at its storage."""

    __slots__ = ("number",)

    def __init__(self, iteration: Iteration, tensor: torch.Tensor, number: int) -> None:
        self.iteration, self.tensor, self.number = iteration, tensor, number

    def get(self) -> torch.Tensor:
        """The parameter, with its memory."""
        assert self.tensor is not None
        self.iteration.reach(self.number)
        self.iteration.ensure([self.tensor])
        return self.tensor


def _outside(call: Written) -> list[torch.Tensor]:
    """Tensors that a call reads and the step did not make."""
    found: list[torch.Tensor] = []

    def look(value: Any) -> None:
        if isinstance(value, Outside):
            found.append(value.tensor)
        elif isinstance(value, tuple | list):
            for inner in value:
                look(inner)

    look([*call.args, *call.kwargs.values()])
    return found


def packet_of(operator: Any) -> str:
    """An operator's name without its overload: `aten.addmm`."""
    return f"{operator.namespace}.{operator._schema.name.partition('::')[2]}"


def _last_uses(calls: list[Written]) -> dict[int, int]:
    """The last of the calls that reads or makes each storage."""
    last: dict[int, int] = {}

    def look(value: Any, number: int) -> None:
        if isinstance(value, Reference):
            last[value.key] = number
        elif isinstance(value, tuple | list):
            for inner in value:
                look(inner, number)

    for number, call in enumerate(calls):
        look([*call.args, *call.kwargs.values()], number)
        for key in call.makes:
            last[key] = number
    return last


def _unheard(operator: Any, step: Expected) -> Any:
    """The operator PyTorch would call if nobody listened: attention adds its mask in place unless a dispatch mode is on
    (`_scaled_dot_product_attention_math`, transformers/attention.cpp), and the plan was made for runs without one."""
    if operator is torch.ops.aten.add.Tensor and step.type == "aten.add_":
        return torch.ops.aten.add_.Tensor
    return operator


def _difference(step: Expected, packet: str, made: list[torch.Tensor]) -> str:
    """What an operator of the module has that the plan's has not; empty if they are alike."""
    planned = f"{step.name} ({step.type}{_at(step.line)})"
    if packet != step.type:
        return f"the plan's next operator is {planned}, the module runs {packet}"
    if len(made) != len(step.makes):
        return f"{planned} makes {len(step.makes)} tensors in the plan, {len(made)} in the module"
    for tensor, shape in zip(made, step.shapes):
        if tuple(tensor.shape) != shape and 0 not in shape:  # a fake tensor knows no size of oneDNN's workspaces
            return f"{planned} makes a tensor of shape {shape} in the plan, of {tuple(tensor.shape)} in the module"
    return ""


def _at(line: str) -> str:
    return f" at {line}" if line else ""
