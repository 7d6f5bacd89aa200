"""Number formats: how many bytes a tensor of each really takes, sub-byte packing and block scales included."""

from __future__ import annotations

from dataclasses import dataclass

from peakline.models.dims import Dim, ceil_div

__all__ = ["DTYPES", "DType", "dtype", "nbytes"]


@dataclass(frozen=True, slots=True)
class DType:
    """A number format.

    Attributes:
        name: canonical short name.
        bits: bits of one element's payload.
        block: elements that share one scale (0: no scales).
        scale_bits: bits of scale and zero point per block.
        is_float: whether autograd can give it a gradient.
        source: where block and scale come from.
    """

    name: str
    bits: int
    block: int = 0
    scale_bits: int = 0
    is_float: bool = True
    source: str = "IEEE 754-2019 / OCP OFP8"

    def __str__(self) -> str:
        return self.name

    def __hash__(self) -> int:
        return hash(self.name)


_ALL = [
    DType("fp64", 64),
    DType("fp32", 32),
    DType("tf32", 32, source="NVIDIA A100 whitepaper: 19-bit multiply operands stored as fp32"),
    DType("bf16", 16, source="bfloat16: 8 exponent bits, 7 mantissa bits"),
    DType("fp16", 16),
    DType("fp8", 8),
    DType("complex128", 128, source="two fp64"),
    DType("complex64", 64, source="two fp32"),
    DType("int64", 64, is_float=False, source="two's complement"),
    DType("int32", 32, is_float=False, source="two's complement"),
    DType("int16", 16, is_float=False, source="two's complement"),
    DType("int8", 8, is_float=False, source="two's complement"),
    DType("uint8", 8, is_float=False, source="unsigned"),
    DType("bool", 8, is_float=False, source="PyTorch stores a bool in one byte"),
    DType("int4", 4, is_float=False, source="two elements a byte"),
    DType("int4-g128", 4, block=128, scale_bits=20, source="GPTQ/AWQ: fp16 scale and 4-bit zero point per 128 weights"),
    DType("nf4", 4, block=64, scale_bits=32, source="QLoRA (arXiv:2305.14314) §3: fp32 absmax per 64 weights"),
    DType("nf4-dq", 4, block=64, scale_bits=8, source="QLoRA (arXiv:2305.14314) §3: absmax quantised to 8 bits"),
    DType("mxfp8", 8, block=32, scale_bits=8, source="OCP Microscaling v1.0: E8M0 scale per 32 elements"),
    DType("mxfp4", 4, block=32, scale_bits=8, source="OCP Microscaling v1.0: E8M0 scale per 32 elements"),
    DType("nvfp4", 4, block=16, scale_bits=8, source="NVIDIA Blackwell: E4M3 scale per 16 elements"),
    DType("adam4bit", 4, block=128, scale_bits=32, source="arXiv:2309.01507, torchao: fp32 scale per 128 elements"),
    DType("adamfp8", 8, block=256, scale_bits=32, source="torchao OptimStateFp8: fp32 scale per 256 elements"),
    DType("adam8bit", 8, block=256, scale_bits=32, source="bitsandbytes: fp32 absmax per block of 256 state elements"),
]

DTYPES: dict[str, DType] = {d.name: d for d in _ALL}

_ALIASES = {
    "float64": "fp64", "double": "fp64", "float32": "fp32", "float": "fp32", "bfloat16": "bf16", "float16": "fp16",
    "half": "fp16", "float8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "float8_e4m3fn": "fp8", "long": "int64",
    "int": "int32", "fp4": "nvfp4", "w4": "int4-g128", "int4_g128": "int4-g128", "nf4_dq": "nf4-dq",
}  # fmt: skip


def dtype(name: str | DType) -> DType:
    """Look a number format up by name or common alias (`float16`, `half`, `torch.float16` are `fp16`).

    Raises:
        ValueError: naming the formats known.
    """
    if isinstance(name, DType):
        return name
    key = str(name).lower().removeprefix("torch.")
    key = _ALIASES.get(key, key)
    if key not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; known: {', '.join(DTYPES)}")
    return DTYPES[key]


def nbytes(elements: Dim, kind: DType) -> Dim:
    """Bytes that `elements` numbers of format `kind` occupy, packed, scales included.

    Payload ⌈elements·bits/8⌉ plus ⌈elements/block⌉ scales of `scale_bits`, rounded up to whole bytes.
    """
    payload = elements * (kind.bits // 8) if kind.bits % 8 == 0 else ceil_div(elements * kind.bits, 8)
    if not kind.block:
        return payload
    return payload + ceil_div(ceil_div(elements, kind.block) * kind.scale_bits, 8)
