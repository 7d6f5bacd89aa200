"""Problems in which operators need room beside what they read and make."""

from __future__ import annotations

from collections.abc import Sequence

from peakline.solvers.problem import Operator, Problem, Tensor

__all__ = ["with_workspaces"]


def with_workspaces(problem: Problem, sizes: Sequence[int], purpose: str) -> Problem:
    """The problem in which each operator also makes a tensor of so many bytes that nobody reads.

    It takes room while the operator runs and moves no bytes. Where it needs none the operator is as it was, but for its
    work and what it may overwrite. Operators stay in their order; `purpose` says in the tensors' names what they are.
    """
    tensors, operators = list(problem.tensors), []
    names = {tensor.name for tensor in tensors}
    for operator, size in zip(problem.operators, sizes, strict=True):
        outputs = operator.outputs
        if size:
            name = f"{operator.name} {purpose}"
            while name in names:
                name += "'"
            names.add(name)
            tensors.append(Tensor(name, size))
            outputs = (*outputs, name)
        operators.append(Operator(operator.name, operator.inputs, outputs))
    return Problem(tuple(tensors), tuple(operators))
