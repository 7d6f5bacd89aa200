"""Weights with zeros left out: what a bitmap and packed values take, and what a product that streams them takes.

One bit for each weight says whether it is there; those that are follow each other. A product with few rows reads its
weights once, so that it is as much faster as they are smaller, until something else is slower: expanding them into
dense tiles (on AMX: AVX-512 `vpexpandw`, 32 values an instruction), or the arithmetic, which skips nothing.

References: SparAMX, arXiv:2502.12444, §4; Endor, arXiv:2406.11674, §3 (the same format on its way to a GPU).
"""

from __future__ import annotations

__all__ = ["bitmap_bytes", "expansion_seconds", "streaming_seconds"]

EXPANDED = 32
"""16-bit values that one AVX-512 expanding load brings (`vpexpandw` on 512 bits, Intel SDM)."""


def bitmap_bytes(weights: float, sparsity: float, bits: int) -> float:
    """Bytes of `weights` values of `bits` each, of which a share `sparsity` is zero.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity: must be between 0 and 1; got {sparsity}")
    return weights * (1.0 + (1.0 - sparsity) * bits) / 8.0


def expansion_seconds(weights: float, cores: int, clock: float, cycles: float = 2.0) -> float:
    """Seconds in which all cores expand packed 16-bit values to dense tiles.

    Args:
        cycles: of one expanding load; 2 on Golden Cove (uops.info, VPEXPANDW zmm).
    """
    return weights / EXPANDED * cycles / (cores * clock)


def streaming_seconds(weights: float, sparsity: float, bits: int, bandwidth: float, expanding: float = 0.0) -> float:
    """Seconds of a product with one row whose sparse weights stream from memory: the slower of bytes and expansion."""
    return max(bitmap_bytes(weights, sparsity, bits) / bandwidth, expanding)
