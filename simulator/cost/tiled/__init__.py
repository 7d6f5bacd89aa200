"""Bytes that tiled kernels move, in closed form: one module per loop nest, exact to the byte.

Each function sums what the programs of a kernel load and store for a given tile, from the loops that the module's
documentation writes out. `peakline.kernels` holds a Triton kernel for each of them, and tests count the bytes of
every `tl.load` and `tl.store` under Triton's interpreter: the two agree to the byte.
"""

from peakline.cost.tiled.traffic import Traffic

__all__ = ["Traffic"]
