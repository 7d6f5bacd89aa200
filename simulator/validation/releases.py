"""What earlier releases of PyTorch kept that the operators here, which follow current ones, do not."""

from __future__ import annotations

from dataclasses import replace

from peakline.models.graph import Graph, Operator

__all__ = ["softmax_keeps_input"]


def softmax_keeps_input(step: Graph) -> Graph:
    """The training step with softmax's and log-softmax's input saved beside the output: PyTorch up to 1.10.

    There `_softmax_backward_data(grad, result, dim, self)` took the input for its format alone, and so autograd saved
    it; since 1.11 it takes an `input_dtype` (`tools/autograd/derivatives.yaml`, `_softmax` and `_log_softmax`).
    """
    inputs = {
        operator.outputs[0]: operator.inputs[0]
        for _, operator in step.operators()
        if operator.type in ("softmax", "log_softmax")
    }
    blocks = []
    for block in step.blocks:
        operators: list[Operator] = []
        for operator in block.operators:
            operators.append(operator)
            if operator.type == "softmax_backward":
                saved = tuple(inputs[name] for name in operator.inputs if name in inputs)
                name = f"{operator.name}.saved_input"
                operators.append(replace(operator, name=name, type="release", inputs=saved, outputs=(), attributes={}))
        blocks.append(replace(block, operators=tuple(operators)))
    return replace(step, blocks=tuple(blocks))
