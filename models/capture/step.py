"""What a user hands over, a module or a step, run and recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from peakline.models.capture.around import as_without_fakes, surroundings
from peakline.models.capture.calls import Recording
from peakline.models.capture.changes import Change
from peakline.models.capture.compiled import plain
from peakline.models.capture.errors import CaptureError, explained
from peakline.models.capture.fakes import Faker
from peakline.models.capture.known import Known
from peakline.models.capture.place import Places
from peakline.models.capture.reach import reached
from peakline.models.capture.recorder import Recorder
from peakline.models.capture.roles import Roles
from peakline.models.capture.shapes import Shapes
from peakline.models.capture.target import Target

__all__ = ["Workload", "record"]

_DEVICE_OF = torch.ops.prim.device.default
MODES = ("training", "inference")


@dataclass
class Workload:
    """What to record.

    Attributes:
        program: a module, a function that makes one, a step, or a function that makes a step.
        inputs: the module's arguments: a tensor, a tuple of positional or a dict of named ones; None for a step.
        optimizer: a class, partial, instance or name; None: forward and backward only.
        loss: from the module's output to the tensor to differentiate.
        mode: `training` or `inference`, where `program` is or makes a module.
        autocast: dtype of an autocast region around the forward pass.
        dtype: convert the module's floating-point parameters and inputs to this one.
        steps: number of steps.
        real: compute every value with the example inputs.
        change: something to do differently (`peakline.models.capture.changes`).
    """

    program: Any
    inputs: Any = None
    optimizer: Any = None
    loss: Callable[[Any], torch.Tensor] | None = None
    mode: str = "training"
    autocast: torch.dtype | None = None
    dtype: torch.dtype | None = None
    steps: int = 2
    real: bool = False
    change: str = ""


@dataclass
class _Session:
    """A recording under way."""

    faker: Faker
    known: Known
    recorder: Recorder
    places: Places
    roles: Roles
    change: Change
    flags: list[tuple[torch.nn.Module, bool]] = field(default_factory=list)


def record(workload: Workload, target: Target) -> Recording:
    """Run the workload's steps under fake tensors and write down what happens.

    Raises:
        CaptureError: the program cannot be run so; the message says why and what to do.
    """
    with ExitStack() as stack:
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        known = Known(everything=workload.real)
        faker = Faker(mode, known)
        stack.enter_context(faker.restoring())
        places = Places()
        recorder = Recorder(places, known, Shapes(mode))
        session = _Session(faker, known, recorder, places, Roles(recorder), Change(workload.change))
        stack.callback(session.change.undo)
        stack.callback(_restore_flags, session.flags)
        stack.enter_context(mode)
        stack.enter_context(surroundings(recorder, target))
        stack.enter_context(places.watching(session.roles.updating))
        with explained("building the program"):
            step = _prepare(workload, session)
        stack.enter_context(as_without_fakes())  # again: building may have been the first to import transformers
        session.change.check()
        for number in range(workload.steps):
            recorder.step = number
            places.restart()
            with explained(f"step {number + 1} of {workload.steps}", places.paths), recorder:
                step()
            session.roles.step_ended()
        recorder.step = workload.steps
        recorder.recording.steps = workload.steps
    return recorder.recording


def _prepare(workload: Workload, session: _Session) -> Callable[[], None]:
    """Build what has to be built, under fake tensors; the step to run."""
    program, inputs, optimizer = workload.program, workload.inputs, workload.optimizer
    if not isinstance(program, torch.nn.Module):
        if not callable(program):
            raise CaptureError(f"program: expected a module or a function, not {type(program).__name__}")
        if inputs is None:
            _adopt(program, session)
            with _building(session.known) as learning:
                made = program()
            if learning.calls and not _is_program(made) and not _holds_module(made):
                return _bare(program)  # it ran a step
            program, inputs, optimizer = _unpack(made, optimizer)
            if not isinstance(program, torch.nn.Module):
                _adopt(program, session)
                return _bare(program)
        else:
            with _building(session.known):
                program = program()
    elif inputs is None:
        raise CaptureError("inputs: a module needs example inputs; pass a tensor, a tuple or a dict of them")
    return _module_step(workload, program, inputs, optimizer, session)


def _is_program(made: Any) -> bool:
    is_pair = isinstance(made, tuple) and len(made) in (2, 3) and isinstance(made[0], torch.nn.Module)
    return is_pair or (callable(made) and not isinstance(made, torch.nn.Module))


def _holds_module(made: Any) -> bool:
    """Whether somebody who returned this meant to hand over a program."""
    parts = made.values() if isinstance(made, Mapping) else made if isinstance(made, tuple | list) else (made,)
    return any(isinstance(part, torch.nn.Module) for part in parts)


def _unpack(made: Any, optimizer: Any) -> tuple[Any, Any, Any]:
    if not _is_program(made):
        raise CaptureError(
            f"the function returned {_described(made)}; accepted: (module, inputs), (module, inputs, optimizer), "
            "or a function that runs one step"
        )
    if isinstance(made, tuple):
        return made[0], made[1], made[2] if len(made) == 3 else optimizer
    return made, None, None


def _adopt(step: Any, session: _Session) -> None:
    """Put fakes in the place of what a step function uses, and learn the names."""
    found = reached(step)
    for name, module in found.modules.items():
        session.faker.module(module)
        session.roles.module(module, found.prefix(name))
        session.places.name(module, found.prefix(name))
        session.change.module(module)
    for optimizer in found.optimizers:
        session.faker.optimizer(optimizer)
        session.change.optimizer(optimizer)


def _described(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(map(_kind, value))}" if value else "an empty tuple"
    return _kind(value)


def _kind(value: Any) -> str:
    return "Tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def _bare(step: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        step()

    return run


def _module_step(
    workload: Workload, module: torch.nn.Module, inputs: Any, optimizer: Any, session: _Session
) -> Callable[[], None]:
    training = workload.mode == "training"
    module = plain(module, session.recorder.recording.notes)
    session.flags += [(m, m.training) for m in module.modules()]
    module.train(training)
    session.faker.module(module)
    if workload.dtype is not None:
        session.faker.convert(module, workload.dtype)
        inputs = _cast(inputs, workload.dtype)
    session.change.module(module)
    with _Learning(session.known):
        passes = [session.faker.tree(part) for part in session.change.inputs(inputs)]
    session.roles.module(module)
    session.roles.inputs(passes if len(passes) > 1 else passes[0])
    session.places.name(module)
    calls = [_caller(module, part) for part in passes]
    if workload.autocast is not None:
        calls = [_autocast(call, workload.autocast) for call in calls]
    if not training:
        return _inference(calls[0])
    update = _optimizer(optimizer, module, session)
    return _training(calls, workload.loss or default_loss, module, update)


def _inference(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            call()

    return run


def _training(
    calls: list[Callable[[], Any]], loss_of: Callable[[Any], torch.Tensor], module: torch.nn.Module, optimizer: Any
) -> Callable[[], None]:
    """The loop everybody writes: `loss` is a variable of the loop, which the next step's replaces."""
    held: dict[str, torch.Tensor] = {}

    def run() -> None:
        if optimizer is None:
            module.zero_grad(set_to_none=True)
        for call in calls:
            held["loss"] = loss_of(call())
            if not held["loss"].requires_grad:
                raise CaptureError(_no_gradient(module))
            mean = held["loss"] if len(calls) == 1 else held["loss"] / len(calls)
            mean.backward()  # type: ignore[no-untyped-call]
            del mean
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return run


def _no_gradient(module: torch.nn.Module) -> str:
    frozen = not any(p.requires_grad for p in module.parameters())
    why = "has no trainable parameters" if frozen else "computes a loss that depends on none of its parameters"
    return f"the module {why}, so there is nothing to train; for a forward pass alone pass mode='inference'"


def default_loss(output: Any) -> torch.Tensor:
    """The output's `loss`, the output where it is one number, else its sum.

    Raises:
        CaptureError: an output that is none of these.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, torch.Tensor):
        return loss
    if isinstance(output, torch.Tensor):
        return output if output.numel() == 1 else output.sum()
    raise CaptureError(
        f"loss: the module's output is {_described(output)} without a loss; pass loss=, a function of the output, "
        "or inputs (labels) that let the module compute one"
    )


def _caller(module: torch.nn.Module, inputs: Any) -> Callable[[], Any]:
    if isinstance(inputs, Mapping):
        return lambda: module(**inputs)
    if isinstance(inputs, tuple | list):
        return lambda: module(*inputs)
    return lambda: module(inputs)


def _autocast(call: Callable[[], Any], kind: torch.dtype) -> Callable[[], Any]:
    def run() -> Any:
        with torch.autocast("cpu", dtype=kind):
            return call()

    return run


def _cast(value: Any, kind: torch.dtype) -> Any:
    from torch.utils._pytree import tree_map_only

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(kind) if tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, cast, value)


def _optimizer(given: Any, module: torch.nn.Module, session: _Session) -> Any:
    """An optimizer over the module's trainable parameters."""
    if given is None:
        return None
    if isinstance(given, torch.optim.Optimizer):
        session.faker.optimizer(given)
        session.change.optimizer(given)
        return given
    if isinstance(given, str):
        given = optimizer_class(given)
    if not callable(given):
        raise CaptureError(f"optimizer: expected a class, an instance or a name, not {type(given).__name__}")
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return None  # the forward pass may have more to say; then its loss has no gradient
    made = session.change.optimizer_class(given)(parameters)
    if not hasattr(made, "step"):
        raise CaptureError(f"optimizer: {given!r} made a {type(made).__name__}, which has no step()")
    return made


_IMPLEMENTATIONS = {"": {}, "fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}


def optimizer_class(name: str) -> Any:
    """The optimizer of `torch.optim` of that name, whatever its case (`adamw`, `SGD`), `-fused`, `-foreach` or `-loop`.

    Raises:
        CaptureError: unknown; the message names those there are.
    """
    kinds = {
        key.lower(): kind
        for key, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    plain, _, implementation = name.lower().partition("-")
    if plain not in kinds or implementation not in _IMPLEMENTATIONS:
        raise CaptureError(
            f"optimizer {name!r} is unknown; accepted: {', '.join(sorted(kinds))}, each with -fused, -foreach or -loop"
        )
    kind: Any = kinds[plain]
    options = _IMPLEMENTATIONS[implementation]
    return partial(kind, lr=1e-3, **options) if plain == "sgd" else partial(kind, **options) if options else kind


@contextmanager
def _building(known: Known) -> Iterator[_Learning]:
    """A model is made: known values stay known, and initialisers, whose values nobody will see, do nothing."""
    if known.everything:
        with _conversions(), _Learning(known) as learning:
            yield learning
        return

    def unchanged(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return tensor

    with ExitStack() as stack:
        for name in ("torch.nn.init", "transformers.initialization"):
            module = sys.modules.get(name)
            for key, function in list(vars(module).items()) if module else ():
                if key.endswith("_") and not key.startswith("_") and callable(function):
                    stack.callback(setattr, module, key, function)
                    setattr(module, key, unchanged)
        stack.enter_context(_conversions())
        yield stack.enter_context(_Learning(known))


@contextmanager
def _conversions() -> Iterator[None]:
    """`module.to(dtype)` of a model of fakes: torch swaps its parameters for converted ones, and refuses to where
    anything refers weakly to them, as the making of every fake parameter does. Those references outlive a swap."""
    kept = torch.utils.swap_tensors

    def swap(one: torch.Tensor, other: torch.Tensor) -> None:
        one.__class__, other.__class__ = other.__class__, one.__class__
        one.__dict__, other.__dict__ = other.__dict__, one.__dict__
        torch._C._swap_tensor_impl(one, other)

    torch.utils.swap_tensors = swap
    try:
        yield
    finally:
        torch.utils.swap_tensors = kept


class _Learning(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps known values known while a model and its inputs are made."""

    def __init__(self, known: Known) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known = known
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is not _DEVICE_OF
        return self.known.run(func, args, kwargs or {})


def _restore_flags(flags: list[tuple[torch.nn.Module, bool]]) -> None:
    for module, training in flags:
        module.training = training
