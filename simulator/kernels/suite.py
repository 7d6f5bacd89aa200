"""Every kernel with its shapes, tiles, float64 reference, closed-form traffic and lower bound.

`suite()` is what `python -m peakline.kernels` prints, what the tests walk, and what a recorder on a GPU can launch with
larger shapes: nothing in a `Kernel` knows whether it is interpreted or compiled.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from peakline.cost.tiled.traffic import Traffic
from peakline.kernels.counting import count_bytes

__all__ = ["Kernel", "Shape", "Tensors", "Tile", "error_of", "gradients", "measure",
           "measure_all", "suite"]  # fmt: skip

Shape = Mapping[str, Any]
"""Sizes and switches of one problem: integers, and `causal`, `lengths`, `activation` where a kernel has them."""

Tile = Mapping[str, Any]
"""Tile parameters of one launch, integers named as the launcher's keywords."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel and what is known of it.

    Attributes:
        name: as the table prints it.
        shapes, tiles: the grid that tests and the documentation run, small enough for the interpreter.
        inputs: (shape, format, device, generator) to input tensors.
        launch: (inputs, shape, tile) to results.
        reference: (inputs, shape) to the same results by torch; called with float64 inputs.
        traffic: (shape, tile, bytes of an element) to bytes by tensor, in closed form.
        footprint: (shape, tile, bytes of an element) to bytes that one program holds.
        bound: (shape, capacity, bytes of an element) to the bytes that no schedule with so much fast memory beats.
    """

    name: str
    shapes: Sequence[Shape]
    tiles: Sequence[Tile]
    inputs: Callable[[Shape, torch.dtype, torch.device, torch.Generator], Tensors]
    launch: Callable[[Tensors, Shape, Tile], Tensors]
    reference: Callable[[Tensors, Shape], Tensors]
    traffic: Callable[[Shape, Tile, int], Traffic]
    footprint: Callable[[Shape, Tile, int], int]
    bound: Callable[[Shape, int, int], float]


def suite() -> dict[str, Kernel]:
    """All kernels by name."""
    from peakline.kernels.attention_cases import ATTENTION_CASES
    from peakline.kernels.cases import CASES

    return {kernel.name: kernel for kernel in (*CASES, *ATTENTION_CASES)}


def measure_all(
    kernels: Sequence[str], dtype: str, shape: Shape | None = None, tile: Tile | None = None
) -> list[dict[str, Any]]:
    """`measure` for each shape and tile of the named kernels, or for those given.

    Raises:
        ValueError: naming a size or tile parameter that the kernel does not have, or lacks, or a value of no use.
    """
    known = suite()
    rows = []
    for kernel in (known[name] for name in kernels):
        shapes = kernel.shapes if shape is None else (_checked("shape", shape, kernel.name, kernel.shapes),)
        tiles = kernel.tiles if tile is None else (_checked("tile", tile, kernel.name, kernel.tiles),)
        rows += [measure(kernel, one, each, dtype) for one in shapes for each in tiles]
    return rows


def _checked(
    field: str, given: Mapping[str, Any], kernel: str, examples: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """`given`, if it has the sizes that all examples have, nothing that none has, and values of their kinds."""
    known = {name: value for example in examples for name, value in example.items()}
    sizes = [name for name in known if type(known[name]) is int and all(name in example for example in examples)]
    for name in sizes:
        if name not in given:
            raise ValueError(f"{field}: {kernel} needs {name}; give {', '.join(sizes)}")
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{field}: {kernel} has no {name!r}; give {', '.join(known)}")
        kind = type(known[name])
        if type(value) is not kind or (kind is int and value < 1):
            wanted = {int: "an integer of at least 1", bool: "true or false", str: "a word"}.get(kind, "integers")
            raise ValueError(f"{field}: {name} of {kernel} is {value!r}; give {wanted}")
    return given


def measure(kernel: Kernel, shape: Shape, tile: Tile, dtype: str = "float32", seed: int = 0) -> dict[str, Any]:
    """Run a kernel under the interpreter, count its bytes, and set them beside the formula and the bound.

    Returns:
        kernel, shape, tile, dtype; `measured` and `predicted` bytes, and both by tensor, loaded and stored; `footprint`
        bytes; `bound` bytes at that footprint; `ratio` measured over bound; `error`, the largest difference
        to the float64 reference over the result's largest value.

    Raises:
        RuntimeError: if Triton compiles its kernels in this process.
    """
    kind: torch.dtype = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    inputs = kernel.inputs(shape, kind, torch.device("cpu"), generator)
    with count_bytes() as counter:
        results = kernel.launch(inputs, shape, tile)
    element = kind.itemsize
    predicted = kernel.traffic(shape, tile, element)
    footprint = kernel.footprint(shape, tile, element)
    bound = kernel.bound(shape, footprint, element)
    return {
        "kernel": kernel.name,
        "shape": {name: list(v) if isinstance(v, tuple) else v for name, v in shape.items()},
        "tile": dict(tile),
        "dtype": dtype,
        "measured": counter.traffic.total,
        "predicted": predicted.total,
        "footprint": footprint,
        "bound": bound,
        "ratio": counter.traffic.total / max(bound, 1.0),
        "error": error_of(results, kernel.reference(_float64(inputs), shape)),
        "measured_by_tensor": _by_tensor(counter.traffic),
        "predicted_by_tensor": _by_tensor(predicted),
    }


def gradients(result: torch.Tensor, upstream: torch.Tensor, **leaves: torch.Tensor) -> Tensors:
    """The gradients of `result` for each leaf under the name given to it."""
    return dict(zip(leaves, torch.autograd.grad(result, tuple(leaves.values()), upstream)))


def _by_tensor(traffic: Traffic) -> dict[str, dict[str, int]]:
    return {name: {"loaded": loaded, "stored": stored} for name, (loaded, stored) in traffic.nonzero().items()}


def error_of(results: Tensors, reference: Tensors) -> float:
    """The largest |result - reference| over the reference's largest magnitude, result by result."""
    worst = 0.0
    for name, expected in reference.items():
        difference = (results[name].double().cpu() - expected.cpu()).abs().max()
        worst = max(worst, float(difference / expected.abs().max().clamp_min(1e-300)))
    return worst


def _float64(tensors: Tensors) -> Tensors:
    return {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
