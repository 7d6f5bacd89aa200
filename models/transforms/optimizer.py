"""Optimizers: their states, and a step as the passes PyTorch runs, with the temporaries of each implementation.

Each algorithm is a few lines: which states a parameter has, and which passes over (parameter, gradient, states)
a step makes. `foreach` runs every pass over all tensors at once, so a pass that makes a temporary makes it for all
parameters together; `fused` makes one pass and no temporary; `loop` goes tensor by tensor.
Sources: torch/optim/{sgd,adam,adamw,rmsprop,adagrad}.py (`_multi_tensor_*`, `_single_tensor_*`, `_fused_*`);
Adafactor: transformers/optimization.py; 8-bit: arXiv:2110.02861; Muon: torch/optim/_muon.py.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from types import MappingProxyType

import numpy as np

from peakline.models.dims import Shape
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Block, Operator, Role, Tensor

__all__ = ["IMPLEMENTATIONS", "OPTIMIZERS", "add_optimizer", "parse_optimizer"]

IMPLEMENTATIONS = ("foreach", "fused", "loop")


@dataclass
class Step:
    """A step being written: one list per role over all parameters, and the operators so far."""

    implementation: str
    tensors: dict[str, Tensor]
    parameters: list[Tensor]
    gradients: list[Tensor]
    layers: Mapping[str, int]
    operators: list[Operator] = field(default_factory=list)

    def state(self, suffix: str, kind: DType | None = None) -> list[Tensor]:
        """One state per parameter, in the parameter's format unless said otherwise."""
        return [
            self.declare(f"{p.name}.{suffix}", p.shape, kind or p.dtype, p, "optimizer_state") for p in self.parameters
        ]

    def temporary(self, suffix: str, like: list[Tensor], kind: DType | None = None) -> list[Tensor]:
        """One temporary per tensor of a list; the next pass must make it."""
        return [self.declare(f"{t.name}.{suffix}", t.shape, kind or t.dtype, t, "workspace") for t in like]

    def declare(self, name: str, shape: Shape, kind: DType, like: Tensor, role: Role) -> Tensor:
        """A tensor beside `like`, in each of its layers."""
        tensor = Tensor(name, shape, kind, role, like.family)
        self.tensors[name] = tensor
        return tensor

    def update(
        self,
        name: str,
        *,
        writes: list[list[Tensor]] | None = None,
        reads: list[list[Tensor]] | None = None,
        makes: list[Tensor] | None = None,
        work: int = 2,
    ) -> None:
        """One pass that overwrites `writes`, reads `reads` and makes `makes`, over all tensors of the lists."""
        overwritten = [t for tensors in writes or [] for t in tensors]
        read = [t for tensors in reads or [] for t in tensors]
        made = makes or []
        longest = len((writes or reads or [made])[0])
        attributes: dict[str, int] = {"writes": len(overwritten), "tensors": longest, "work": work}
        if self.implementation == "loop":
            attributes["launches"] = sum(self._count(t) for t in (overwritten or read or made)[:longest])
        self.operators.append(
            Operator(
                f"optimizer.{name}",
                "update_pass",
                tuple(_every(t) for t in (*overwritten, *read)),
                tuple(_every(t) for t in made),
                MappingProxyType(attributes),
                "optimizer",
                "optimizer",
            )
        )

    def held_in_turn(self, suffix: str, *, previous: int, current: int, kind: DType | None = None) -> list[Tensor]:
        """Temporaries of a loop over the parameters, at its worst turn; the next pass must make them.

        Each turn holds `current` copies of its parameter while Python's variables still hold `previous` of the last
        one's. Turns follow `module.parameters()`: layer by layer.
        """

        def cost(pair: tuple[Tensor | None, Tensor]) -> int:
            last, now = pair
            return current * _size(now) + (previous * _size(last) if last else 0)

        last, now = max(self._turns(), key=cost)
        copies = [now] * current + ([last] * previous if last else [])
        held = [Tensor(f"{t.name}.{suffix}_{i}", t.shape, kind or t.dtype, "workspace") for i, t in enumerate(copies)]
        self.tensors.update((t.name, t) for t in held)
        return held

    def _turns(self) -> list[tuple[Tensor | None, Tensor]]:
        """(parameter before, parameter) of every turn of a loop, each distinct pair once."""
        turns: list[tuple[Tensor | None, Tensor]] = [(None, self.parameters[0]), *pairwise(self.parameters)]
        for family, run in groupby(self.parameters, key=lambda t: t.family):
            first, *rest = run
            if family and self.layers[family] > 1:
                turns.append((rest[-1] if rest else first, first))
        return turns

    def _count(self, tensor: Tensor) -> int:
        return self.layers[tensor.family] if tensor.family else 1


def _size(tensor: Tensor) -> int:
    return int(np.max(tensor.elements))


def _every(tensor: Tensor) -> str:
    return f"{tensor.name}[*]" if tensor.family else tensor.name


# ---- the algorithms --------------------------------------------------------------------------------------------------
def sgd(step: Step) -> None:
    """p ← p − lr·g: in place, no state."""
    step.update("step", writes=[step.parameters], reads=[step.gradients])


def momentum(step: Step) -> None:
    """v ← μv + g; p ← p − lr·v."""
    v = step.state("momentum")
    step.update("momentum", writes=[v], reads=[step.gradients])
    step.update("step", writes=[step.parameters], reads=[v])


def adam(step: Step) -> None:
    """Adam and AdamW: two states; the foreach form makes √v for all parameters at once.

    The loop makes √v and its quotient by the bias correction, while the last turn's is still in its variable. The
    fused form counts steps on the device, in a float32 scalar per parameter (torch/optim/adam.py, `_init_group`).
    """
    m, v = step.state("exp_avg"), step.state("exp_avg_sq")
    p, g = step.parameters, step.gradients
    if step.implementation == "fused":
        count = [step.declare(f"{t.name}.step", (), dtype("fp32"), t, "optimizer_state") for t in p]
        step.update("step", writes=[p, m, v, count], reads=[g], work=12)
        return
    step.update("decay", writes=[p], work=1)
    step.update("exp_avg", writes=[m], reads=[g])
    step.update("exp_avg_sq_decay", writes=[v], work=1)
    step.update("exp_avg_sq", writes=[v], reads=[g], work=3)
    if step.implementation == "loop":
        root = step.held_in_turn("denominator", previous=1, current=2)
        step.update("sqrt", reads=[v], makes=root, work=4)
    else:
        root = step.temporary("sqrt", v)
        step.update("sqrt", reads=[v], makes=root)
        step.update("bias_correction", writes=[root], work=1)
        step.update("eps", writes=[root], work=1)
    step.update("step", writes=[p], reads=[m, root], work=3)


def rmsprop(step: Step) -> None:
    """v ← αv + (1−α)g²; p ← p − lr·g/√v: foreach makes √v for all."""
    v = step.state("square_avg")
    step.update("square_avg", writes=[v], reads=[step.gradients], work=4)
    root = _root(step, "avg", v)
    step.update("sqrt", reads=[v], makes=root)
    step.update("step", writes=[step.parameters], reads=[step.gradients, root], work=3)


def adagrad(step: Step) -> None:
    """s ← s + g²; p ← p − lr·g/√s: foreach makes √s and the scaled gradient for all, the loop √s only."""
    s = step.state("sum")
    step.update("sum", writes=[s], reads=[step.gradients], work=2)
    root = _root(step, "std", s)
    step.update("sqrt", reads=[s], makes=root)
    numerator = step.gradients
    if step.implementation == "foreach":
        numerator = step.temporary("numerator", s)
        step.update("scale", reads=[step.gradients], makes=numerator)
    step.update("step", writes=[step.parameters], reads=[numerator, root], work=3)


def _root(step: Step, suffix: str, state: list[Tensor]) -> list[Tensor]:
    """√state: of all parameters at once (foreach), or of one beside the last turn's (loop)."""
    if step.implementation == "foreach":
        return step.temporary(suffix, state)
    return step.held_in_turn(suffix, previous=1, current=1)


def adam8bit(step: Step) -> None:
    """Two states in blockwise 8-bit; one fused kernel per tensor dequantises, updates and requantises.

    Tensors below 4,096 elements keep float32 states (bitsandbytes `min_8bit_size`).
    """
    _quantised_adam(step, dtype("adam8bit"))


def adam4bit(step: Step) -> None:
    """Two states in 4 bits, blocks of 128 (arXiv:2309.01507; torchao `_AdamBase._new_buffer`, lpmm)."""
    _quantised_adam(step, dtype("adam4bit"))


def adamfp8(step: Step) -> None:
    """Two states in fp8 E4M3, blocks of 256 (torchao `OptimStateFp8`)."""
    _quantised_adam(step, dtype("adamfp8"))


def _quantised_adam(step: Step, small: DType) -> None:
    """Adam on states in `small`; tensors below 4,096 elements keep them in float32."""

    def kind(p: Tensor) -> DType:
        return dtype("fp32") if isinstance(p.elements, int) and p.elements < 4096 else small

    states = [
        [step.declare(f"{p.name}.{s}", p.shape, kind(p), p, "optimizer_state") for p in step.parameters]
        for s in ("state1", "state2")
    ]
    step.implementation = "loop"
    step.update("step", writes=[step.parameters, *states], reads=[step.gradients], work=20)


def adafactor(step: Step) -> None:
    """Row and column statistics for matrices, in float32; tensor by tensor.

    transformers' Adafactor makes grad² and grad² + ε, beside float32 copies of gradient and parameter when they are
    in half precision, while the last turn's update is still in its variable.
    """
    fp32 = dtype("fp32")
    matrices = [p for p in step.parameters if len(p.shape) >= 2]
    others = [p for p in step.parameters if len(p.shape) < 2]
    row = [step.declare(f"{p.name}.row", p.shape[:-1], fp32, p, "optimizer_state") for p in matrices]
    column = [
        step.declare(f"{p.name}.column", (*p.shape[:-2], p.shape[-1]), fp32, p, "optimizer_state") for p in matrices
    ]
    full = [step.declare(f"{p.name}.square", p.shape, fp32, p, "optimizer_state") for p in others]
    step.implementation = "loop"
    copies = 2 if step.parameters[0].dtype.bits >= 32 else 4
    held = step.held_in_turn("update", previous=1, current=copies, kind=fp32)
    step.update("statistics", writes=[row, column, full], reads=[step.gradients], makes=held, work=6)
    step.update("step", writes=[step.parameters], reads=[row, column, full, step.gradients, held], work=8)


def muon(step: Step) -> None:
    """Layer matrices: momentum orthogonalised by five Newton–Schulz steps in bf16; everything else uses Adam."""
    inside = [(p, g) for p, g in zip(step.parameters, step.gradients) if len(p.shape) == 2 and p.family]
    outside = [(p, g) for p, g in zip(step.parameters, step.gradients) if not (len(p.shape) == 2 and p.family)]
    everything = step.parameters, step.gradients
    if outside:
        step.parameters, step.gradients = [p for p, _ in outside], [g for _, g in outside]
        adam(step)
    step.parameters, step.gradients = [p for p, _ in inside], [g for _, g in inside]
    if inside:
        v = step.state("momentum")
        step.update("muon.momentum", writes=[v], reads=[step.gradients])
        for p, m in zip(step.parameters, v):
            update = Tensor(f"{p.name}.orthogonal", p.shape, dtype("bf16"), "workspace")
            step.tensors[update.name] = update
            step.operators.append(
                Operator(
                    f"optimizer.newton_schulz.{p.name}",
                    "newton_schulz",
                    (_every(m),),
                    (update.name,),
                    MappingProxyType({"steps": 5}),
                    "optimizer",
                    "optimizer",
                )
            )
            step.operators.append(
                Operator(
                    f"optimizer.muon.{p.name}",
                    "update_pass",
                    (_every(p), update.name),
                    (),
                    MappingProxyType({"writes": 1, "tensors": 1, "work": 2}),
                    "optimizer",
                    "optimizer",
                )
            )
    step.parameters, step.gradients = everything


OPTIMIZERS: dict[str, Callable[[Step], None]] = {
    "sgd": sgd, "momentum": momentum, "adam": adam, "adamw": adam, "rmsprop": rmsprop, "adagrad": adagrad,
    "adam8bit": adam8bit, "adamw8bit": adam8bit, "adam4bit": adam4bit, "adamw4bit": adam4bit,
    "adamfp8": adamfp8, "adamwfp8": adamfp8, "adafactor": adafactor, "muon": muon,
}  # fmt: skip


def parse_optimizer(name: str, implementation: str | None = None) -> tuple[str, str]:
    """Algorithm and implementation from `adamw`, `adamw-fused`, `adam_loop`, …; foreach is CUDA's default.

    Raises:
        ValueError: unknown optimizer or implementation, naming the nearest.
    """
    algorithm, _, variant = name.lower().replace("_", "-").partition("-")
    if algorithm + variant in OPTIMIZERS:
        algorithm, variant = algorithm + variant, ""
    variant = implementation or variant or "foreach"
    if algorithm not in OPTIMIZERS:
        near = difflib.get_close_matches(algorithm, OPTIMIZERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"optimizer {name!r} is unknown{hint} Known: {', '.join(OPTIMIZERS)}")
    if variant not in IMPLEMENTATIONS:
        raise ValueError(f"optimizer implementation {variant!r} is unknown; accepted: {', '.join(IMPLEMENTATIONS)}")
    return algorithm, variant


def add_optimizer(
    name: str,
    implementation: str | None,
    tensors: dict[str, Tensor],
    gradients: Mapping[str, str],
    layers: Mapping[str, int],
    *,
    master: bool = False,
    free_gradients: bool = True,
) -> list[Block]:
    """The optimizer step's block; declares states in `tensors`.

    Args:
        gradients: parameter name → gradient tensor name.
        master: keep a float32 copy of every parameter and update that (states are then float32 too).
        free_gradients: `zero_grad(set_to_none=True)` after the step.
    """
    algorithm, variant = parse_optimizer(name, implementation)
    parameters = [tensors[p] for p in tensors if p in gradients]
    step = Step(variant, tensors, parameters, [tensors[gradients[p.name]] for p in parameters], layers)
    if master:
        originals = step.parameters
        step.parameters = step.state("master", dtype("fp32"))
        OPTIMIZERS[algorithm](step)
        step.update("copy_to_model", writes=[originals], reads=[step.parameters], work=1)
    else:
        OPTIMIZERS[algorithm](step)
    if free_gradients:
        step.operators.append(
            Operator(
                "optimizer.zero_grad",
                "release",
                tuple(_every(g) for g in step.gradients),
                (),
                phase="optimizer",
                module="optimizer",
            )
        )
    return [Block("optimizer", tuple(step.operators))]
