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
from types import MappingProxyType

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
            self._declare(f"{p.name}.{suffix}", p.shape, kind or p.dtype, p, "optimizer_state") for p in self.parameters
        ]

    def temporary(self, suffix: str, like: list[Tensor], kind: DType | None = None) -> list[Tensor]:
        """One temporary per tensor of a list; the next pass must make it."""
        return [self._declare(f"{t.name}.{suffix}", t.shape, kind or t.dtype, t, "workspace") for t in like]

    def _declare(self, name: str, shape: Shape, kind: DType, like: Tensor, role: Role) -> Tensor:
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
        workspace: int = 0,
    ) -> None:
        """One pass that overwrites `writes`, reads `reads` and makes `makes`, over all tensors of the lists."""
        overwritten = [t for tensors in writes or [] for t in tensors]
        read = [t for tensors in reads or [] for t in tensors]
        made = makes or []
        longest = len((writes or reads or [made])[0])
        attributes: dict[str, int] = {"writes": len(overwritten), "tensors": longest, "work": work}
        if workspace:
            attributes["workspace"] = workspace
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

    def _count(self, tensor: Tensor) -> int:
        return self.layers[tensor.family] if tensor.family else 1


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
    """Adam and AdamW: two states; the foreach form makes √v for all parameters at once."""
    m, v = step.state("exp_avg"), step.state("exp_avg_sq")
    p, g = step.parameters, step.gradients
    if step.implementation == "fused":
        step.update("step", writes=[p, m, v], reads=[g], work=12)
        return
    step.update("decay", writes=[p], work=1)
    step.update("exp_avg", writes=[m], reads=[g])
    step.update("exp_avg_sq_decay", writes=[v], work=1)
    step.update("exp_avg_sq", writes=[v], reads=[g], work=3)
    if step.implementation == "loop":
        _loop_denominator(step, v, [p, m])
        return
    root = step.temporary("sqrt", v)
    step.update("sqrt", reads=[v], makes=root)
    step.update("bias_correction", writes=[root], work=1)
    step.update("eps", writes=[root], work=1)
    step.update("step", writes=[p], reads=[m, root], work=3)


def _loop_denominator(step: Step, v: list[Tensor], update: list[list[Tensor]]) -> None:
    """Tensor by tensor, √v, its quotient by the bias correction and the previous tensor's are alive together."""
    largest = max(v, key=lambda t: int(t.elements) if isinstance(t.elements, int) else int(t.elements.max()))
    held = [Tensor(f"{largest.name}.denominator_{i}", largest.shape, largest.dtype, "workspace") for i in range(3)]
    for tensor in held:
        step.tensors[tensor.name] = tensor
    step.update("denominator", reads=[v], makes=held, work=4)
    step.update("step", writes=update[:1], reads=[*update[1:], held], work=3)


def rmsprop(step: Step) -> None:
    """v ← αv + (1−α)g²; p ← p − lr·g/√v: foreach makes √v for all."""
    v = step.state("square_avg")
    step.update("square_avg", writes=[v], reads=[step.gradients], work=4)
    root = step.temporary("avg", v)
    step.update("sqrt", reads=[v], makes=root)
    step.update("step", writes=[step.parameters], reads=[step.gradients, root], work=3)


def adagrad(step: Step) -> None:
    """s ← s + g²; p ← p − lr·g/√s: foreach makes √s and the scaled gradient for all."""
    s = step.state("sum")
    step.update("sum", writes=[s], reads=[step.gradients], work=2)
    root, numerator = step.temporary("std", s), step.temporary("numerator", s)
    step.update("sqrt", reads=[s], makes=root)
    step.update("scale", reads=[step.gradients], makes=numerator)
    step.update("step", writes=[step.parameters], reads=[numerator, root], work=3)


def adam8bit(step: Step) -> None:
    """Two states in blockwise 8-bit; one fused kernel per tensor dequantises, updates and requantises.

    Tensors below 4,096 elements keep float32 states (bitsandbytes `min_8bit_size`).
    """

    def kind(p: Tensor) -> DType:
        small = isinstance(p.elements, int) and p.elements < 4096
        return dtype("fp32") if small else dtype("adam8bit")

    states = [
        [step._declare(f"{p.name}.{s}", p.shape, kind(p), p, "optimizer_state") for p in step.parameters]
        for s in ("state1", "state2")
    ]
    step.implementation = "loop"
    step.update("step", writes=[step.parameters, *states], reads=[step.gradients], work=20)


def adafactor(step: Step) -> None:
    """Row and column statistics for matrices; tensor by tensor, with float32 temporaries of the largest tensor's size.

    transformers' Adafactor makes `update = grad**2 + eps`, its product with the factored root, and float32 copies
    of gradient and parameter when they are in half precision.
    """
    fp32 = dtype("fp32")
    matrices = [p for p in step.parameters if len(p.shape) >= 2]
    others = [p for p in step.parameters if len(p.shape) < 2]
    row = [step._declare(f"{p.name}.row", p.shape[:-1], fp32, p, "optimizer_state") for p in matrices]
    column = [
        step._declare(f"{p.name}.column", (*p.shape[:-2], p.shape[-1]), fp32, p, "optimizer_state") for p in matrices
    ]
    full = [step._declare(f"{p.name}.square", p.shape, fp32, p, "optimizer_state") for p in others]
    step.implementation = "loop"
    largest = max(step.parameters, key=lambda t: int(t.elements) if isinstance(t.elements, int) else 0)
    copies = 2 if largest.dtype.bits == 32 else 4
    held = [Tensor(f"{largest.name}.update_{i}", largest.shape, fp32, "workspace") for i in range(copies)]
    for tensor in held:
        step.tensors[tensor.name] = tensor
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
    "adam8bit": adam8bit, "adamw8bit": adam8bit, "adafactor": adafactor, "muon": muon,
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
