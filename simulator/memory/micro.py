"""What an inference library on a microcontroller adds to the tensors of a network, and what it saves.

Rules read from the libraries' sources, one record each (`LIBRARIES`); three figures are fitted, and say so. Sizes are
bytes. The libraries:

* TensorFlow Lite Micro (`tflm`), with or without CMSIS-NN kernels (`cmsis-nn`): one arena, planned greedily; beside it
  in the arena, structures that live as long as the interpreter (`micro_allocator.cc`, `conv.cc`).
* TinyEngine (`tinyengine`): depthwise convolutions overwrite their input (arXiv:2007.10319 §3.2); one buffer for the
  largest window and one for the widened weights of the first convolution (`GeneralMemoryScheduler.py`,
  `get_sbuf_size` and `get_kbuf_size` of `operators/conv2d.py` and `depthwiseConv2d.py`).
* X-CUBE-AI (`x-cube-ai`): outputs grow over inputs (closed source; the rule is inferred from published figures).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from peakline.memory.lifetimes import Program, Step
from peakline.models.dims import Dim, prod
from peakline.models.graph import Tensor, base_name

__all__ = ["LIBRARIES", "Conv", "Library", "convolution_of", "holds_for", "operators", "weight_window"]

KIB = 1024


@dataclass(frozen=True)
class Conv:
    """A convolution as the rules see it; sizes may be arrays.

    Attributes:
        channels, rows, columns: of the input.
        kernel, padding: along height and width; `explicit` where the graph states the padding as PyTorch does.
    """

    channels: Dim
    rows: Dim
    columns: Dim
    kernel: tuple[int, int]
    padding: tuple[int, int]
    explicit: bool
    depthwise: bool

    @property
    def taps(self) -> int:
        """Products of one window and channel."""
        return self.kernel[0] * self.kernel[1]

    @property
    def padded(self) -> Dim:
        """Elements of the input with its padding."""
        return self.channels * self.plane

    @property
    def plane(self) -> Dim:
        """Positions of one padded channel."""
        return (self.rows + 2 * self.padding[0]) * (self.columns + 2 * self.padding[1])


@dataclass(frozen=True)
class Library:
    """Memory rules of one inference library.

    Attributes:
        name: as `mcu.runtime` of a device names it.
        pads: a padding that is stated explicitly is an operator of its own, with a padded copy of its input. (A
            TensorFlow Lite convolution knows only `SAME` and `VALID`.)
        overwrites: which convolutions' outputs take their input's place: `none`, `depthwise` or `all`.
        window: bytes that a convolution needs while it runs.
        planner: which of equally large tensors is placed first: the `youngest` (TensorFlow Lite Micro) or the `oldest`
            (TinyEngine's `base_allocator.py`, `sortSize`); `unknown` for a closed one, taken to plan well.
        shared_windows: the largest window is a buffer for the whole run beside the arena, not a part of it.
        per_operator, per_channel: SRAM that each operator, and each output channel of an operator with weights, holds.
        flash_per_operator, flash_per_channel, code: the same in flash, and the program itself.
    """

    name: str
    pads: bool
    overwrites: str
    window: Callable[[Conv], Dim]
    planner: str
    shared_windows: bool
    per_operator: int
    per_channel: int
    flash_per_operator: int
    flash_per_channel: int
    code: int


def _no_window(_: Conv) -> Dim:
    return 0


def _cmsis_window(c: Conv) -> Dim:
    """Windows of 16-bit elements: two of a dense convolution, all channels' of a depthwise one but 3×3.

    `arm_convolve_get_buffer_sizes_s8.c`, `arm_depthwise_conv_get_buffer_sizes_s8.c`.
    """
    if c.depthwise:
        return 0 if c.kernel == (3, 3) else 2 * c.channels * c.taps
    return 0 if c.taps == 1 else 4 * (-(-c.channels * c.taps // 4) * 4)


def _tinyengine_window(c: Conv) -> Dim:
    """Twice a padded plane for a depthwise convolution; for a dense one two columns and its widened weights.

    The widened weights (`kbuf`) exist for the first convolution alone: 3×3 over three channels.
    """
    return 2 * c.plane if c.depthwise else 4 * c.channels * c.taps


def _cube_window(c: Conv) -> Dim:
    """As many rows of the input as the kernel is high, which a convolution must keep as it overwrites."""
    return c.kernel[0] * c.columns * c.channels if c.taps > 1 else 0


_TFLM_OPERATOR = 213
"""SRAM of an operator: node and registration (32 bytes), the kernel's data (64), built-in parameters (32), the
descriptors of its tensors (12 each), alignment to 16, and its share of the interpreter. Fitted: the counted parts make
about 165."""

_TFLM_FLASH_OPERATOR = 600
"""Flash of an operator in the model file: its tensors' names and shapes. Fitted."""

_TFLM = Library(
    "tflm", True, "none", _no_window, "youngest", False, _TFLM_OPERATOR, 8, _TFLM_FLASH_OPERATOR, 24, 98 * KIB
)
"""Per channel: `per_channel_output_multiplier` and `_shift`, int32 each; in flash a float32 scale and an int64 zero
point, of the weights and of the bias."""

LIBRARIES = {
    "tflm": _TFLM,
    "cmsis-nn": replace(_TFLM, name="cmsis-nn", window=_cmsis_window, code=116 * KIB),
    "x-cube-ai": Library("x-cube-ai", False, "all", _cube_window, "unknown", False, 541, 0, 0, 8, 59 * KIB),
    "tinyengine": Library("tinyengine", False, "depthwise", _tinyengine_window, "oldest", True, 0, 0, 0, 4, 65 * KIB),
}
"""X-CUBE-AI's 541 bytes: 16.38 KiB of runtime RAM for the 31 operators of MobileNet V1 at any size (STMicroelectronics,
AI model zoo, mobilenetv1/README). The programs' own sizes are fitted (docs/microcontrollers.md)."""


def holds_for(program: Program) -> bool:
    """Whether the libraries run it: inference, every activation an integer of at most 8 bits."""
    if any(step.operator.phase != "forward" for step in program.steps):
        return False
    kinds = {s.tensor.dtype for s in program.storages if s.tensor.role in ("activation", "input")}
    return all(not kind.is_float and kind.bits <= 8 for kind in kinds)


def convolution_of(program: Program, step: Step) -> Conv | None:
    """The convolution that a step runs, None if it is something else."""
    operator = step.operator
    if operator.type != "convolution" or len(operator.inputs) < 2:
        return None
    x, w = _tensor(program, operator.inputs[0]), _tensor(program, operator.inputs[1])
    if len(x.shape) != 4:
        return None
    kernel = tuple(int(k) for k in w.shape[2:])
    stated = operator.attributes.get("padding", (0, 0))
    sides = (stated,) * 2 if isinstance(stated, int | str) else tuple(stated)
    explicit = all(isinstance(side, int) for side in sides)
    padding = sides if explicit else (0, 0)
    groups = operator.attributes.get("groups", 1)
    alone = bool(np.all(np.asarray(groups) > 1)) and w.shape[1] == 1
    return Conv(x.shape[1], x.shape[2], x.shape[3], kernel, padding, explicit, alone)  # type: ignore[arg-type]


def operators(program: Program, library: Library) -> tuple[int, Dim]:
    """(operators that execute, output channels of all weights); views are none, paddings are one each."""
    count = 0
    channels: Any = 0
    seen: set[str] = set()
    for step in program.steps:
        if len(step.operator.inputs) > 1:
            weight = _tensor(program, step.operator.inputs[1])
            if weight.role == "parameter" and weight.name not in seen:
                seen.add(weight.name)  # patches share weights
                channels = channels + weight.shape[0]
        if not step.makes:
            continue
        count += 1
        conv = convolution_of(program, step)
        if conv is not None and library.pads and conv.explicit and max(conv.padding) > 0:
            count += 1
    return count, channels


def weight_window(program: Program, library: Library) -> Dim:
    """Bytes of TinyEngine's widened weights of dense convolutions (`get_kbuf_size`): 16 bits each."""
    largest: Any = 0
    if library.name != "tinyengine":
        return 0
    for step in program.steps:
        conv = convolution_of(program, step)
        if conv is not None and not conv.depthwise and conv.taps > 1:
            elements = prod(_tensor(program, step.operator.inputs[1]).shape)
            largest = np.maximum(largest, 2 * elements) if np.ndim(elements) else max(largest, 2 * elements)
    return largest  # type: ignore[no-any-return]


def _tensor(program: Program, reference: str) -> Tensor:
    return program.graph.tensors[base_name(reference)]
