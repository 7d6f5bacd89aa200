"""Training on a microcontroller: peak memory of a full and of a sparse update of an int8 network.

Three things decide it (J. Lin et al., "On-device training under 256KB memory", arXiv:2206.15472, §3): which inputs wait
for the backward pass (those of layers whose *weights* are updated; a bias needs none), how far the backward pass
reaches (to the first layer that is updated at all), and when a weight's gradient is applied (at the end, or in place as
soon as it is known, which the paper calls operator reordering).

Assumptions: batch 1, SGD without momentum; activations and their gradients in the network's integer format; a ReLU
keeps one bit per output; gradients of weights and biases in `gradient_bytes` each; updated weights lie in SRAM, frozen
ones in flash; the frozen network's tensors live as in inference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peakline.memory.lifetimes import Program, unroll
from peakline.models.graph import Graph, Tensor, base_name

__all__ = [
    "SparseUpdate",
    "TrainingPeak",
    "extra_memory",
    "full_update",
    "training_peak",
    "update_shares",
    "weighted_operators",
]


@dataclass(frozen=True)
class SparseUpdate:
    """What is updated, by number of the operator with weights (0 is the first; negative counts from the last).

    Attributes:
        weights: operator → share of its weights that is updated (first input channels), 0 < share ≤ 1.
        biases: how many of the last operators update their bias.
        reorder: a gradient is applied as soon as it is known.
        gradient_bytes: of one weight's or bias's gradient.
    """

    weights: Mapping[int, float]
    biases: int = 0
    reorder: bool = True
    gradient_bytes: int = 4


@dataclass(frozen=True)
class TrainingPeak:
    """Bytes at the peak of a training step and what they are.

    Attributes:
        total: most bytes alive at once.
        by_kind: `activations` (with saved ones), `errors`, `masks`, `gradients`, `weights` at that moment.
        updated: number of updated weights and biases.
    """

    total: int
    by_kind: Mapping[str, int]
    updated: int


def weighted_operators(graph: Graph) -> list[str]:
    """Names of the operators with weights, in program order: what `SparseUpdate` numbers."""
    return _Training(unroll(graph)).names


def full_update(graph: Graph, *, reorder: bool = False) -> SparseUpdate:
    """Every weight and bias is updated."""
    count = len(weighted_operators(graph))
    return SparseUpdate(dict.fromkeys(range(count), 1.0), biases=count, reorder=reorder)


def extra_memory(graph: Graph, update: SparseUpdate) -> int:
    """Bytes that an update needs beyond inference, as the paper counts them when it searches for schemes.

    Updated weights and biases, the updated channels of the inputs that their gradients need, and a bit for each output
    of an operator whose bias is updated and whose activation clips (mit-han-lab/tiny-training,
    `core/utils/partial_backward.py`, `nelem_saved_for_backward`, without momentum). An operator in `weights` updates
    its bias only if it is among the last `biases`.

    Raises:
        ValueError: as `training_peak`.
    """
    return _Training(unroll(graph)).extra(update)


def training_peak(graph: Graph, update: SparseUpdate) -> TrainingPeak:
    """Peak memory of one training step of `graph`, an integer inference, under `update`.

    Raises:
        ValueError: an operator number or share that does not exist, or nothing to update.
    """
    return _Training(unroll(graph)).peak(update)


def update_shares(graph: Graph, update: SparseUpdate) -> dict[int, float]:
    """Share of the weights that learns, by the operator's position in the program; 0 where a bias alone does.

    Raises:
        ValueError: as `training_peak`.
    """
    training = _Training(unroll(graph))
    biased = training.weighted[len(training.weighted) - update.biases :]
    return dict.fromkeys(biased, 0.0) | training._shares(update)


class _Training:
    """A program with its operators that have weights; time runs 0 … N−1 forward, backward of p at 2N − 1 − p."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.steps = program.steps
        self.weighted = [p for p, _ in enumerate(self.steps) if self._parameters(p)]

    @property
    def names(self) -> list[str]:
        """Of the operators with weights."""
        return [self.steps[p].name for p in self.weighted]

    @cached_property
    def last_use(self) -> dict[int, int]:
        """The last operator that touches each storage."""
        return {key: p for p, step in enumerate(self.steps) for key in step.touches}

    def _parameters(self, position: int) -> list[Tensor]:
        tensors = [self.program.graph.tensors[base_name(name)] for name in self.steps[position].operator.inputs]
        return [t for t in tensors if t.role == "parameter"]

    def _shares(self, update: SparseUpdate) -> dict[int, float]:
        count = len(self.weighted)
        shares: dict[int, float] = {}
        for number, share in update.weights.items():
            if not -count <= number < count:
                raise ValueError(f"weights: there is no operator {number}; the network has {count} with weights")
            if not 0 < share <= 1:
                raise ValueError(f"weights: the share of operator {number} must be above 0 and at most 1; got {share}")
            shares[self.weighted[number]] = share
        if not 0 <= update.biases <= count:
            raise ValueError(f"biases: must be between 0 and {count}; got {update.biases}")
        if not shares and not update.biases:
            raise ValueError("weights, biases: nothing is updated")
        return shares

    def peak(self, update: SparseUpdate) -> TrainingPeak:
        """See `training_peak`."""
        shares = self._shares(update)
        biased = set(self.weighted[len(self.weighted) - update.biases :])
        n = len(self.steps)
        first = min([*shares, *biased])
        held = {kind: np.zeros(2 * n, dtype=np.int64) for kind in ("activations", "errors", "masks", "gradients")}
        self._activations(held["activations"], shares)
        self._errors(held["errors"], first)
        for p in range(first, n):
            if self.steps[p].operator.attributes.get("activation") is not None:
                elements = int(self.program.storages[self.steps[p].makes[0]].tensor.elements)
                held["masks"][p : 2 * n - p] += -(-elements // 8)
        weights = updated = 0
        for p in sorted({*shares, *biased}):
            matrix, *rest = self._parameters(p)
            count = round(int(matrix.elements) * shares.get(p, 0.0))
            biases = sum(int(t.elements) for t in rest) if p in biased else 0
            weights += -(-count * matrix.dtype.bits // 8) + sum(int(t.bytes) for t in rest if p in biased)
            updated += count + biases
            time = 2 * n - 1 - p
            end = time + 1 if update.reorder else 2 * n
            held["gradients"][time:end] += (count + biases) * update.gradient_bytes
        total: NDArray[np.int64] = np.sum(list(held.values()), axis=0) + weights
        worst = int(np.argmax(total))
        by_kind = {kind: int(series[worst]) for kind, series in held.items()}
        return TrainingPeak(int(total[worst]), {**by_kind, "weights": weights}, updated)

    def extra(self, update: SparseUpdate) -> int:
        """See `extra_memory`."""
        shares = self._shares(update)
        total = 0
        for p, share in shares.items():
            matrix = self._parameters(p)[0]
            kept = self.program.storages[self.steps[p].touches[0]]
            total += -(-round(int(matrix.elements) * share) * matrix.dtype.bits // 8)
            total += round(int(kept.tensor.bytes) * share)
        for p in self.weighted[len(self.weighted) - update.biases :]:
            total += sum(int(t.bytes) for t in self._parameters(p)[1:])
            if self.steps[p].operator.attributes.get("activation") is not None:
                total += -(-int(self.program.storages[self.steps[p].makes[0]].tensor.elements) // 8)
        return total

    def _activations(self, held: NDArray[np.int64], shares: Mapping[int, float]) -> None:
        """Tensors of the forward pass, those that a weight's gradient needs kept until its backward step."""
        n = len(self.steps)
        inputs = {k for k in self.program.resident if self.program.storages[k].tensor.role == "input"}
        for key, size in enumerate(self.program.sizes):
            born = 0 if key in inputs else self.program.births[key]
            if born < 0 or key not in self.last_use:
                continue
            end = self.last_use[key] + 1
            held[born:end] += int(size)
            kept = [(2 * n - p, share) for p, share in shares.items() if self.steps[p].touches[0] == key]
            for until, share in kept:
                held[end:until] += round(int(size) * share)

    def _errors(self, held: NDArray[np.int64], first: int) -> None:
        """Gradients of activations: from the backward step of their last consumer to that of their producer."""
        n = len(self.steps)
        for p in range(first, n):
            for key in self.steps[p].makes:
                begin = max(2 * n - 1 - self.last_use[key], n)
                held[begin : 2 * n - p] += int(self.program.sizes[key])
