"""What a cost model needs to know of one operator: a *kernel*, in plain numbers.

Every operator family describes its work as one of these shapes of computation. The simulator prices a kernel on
a device and knows nothing of operators; `models` knows nothing of devices. Dimensions may be arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from peakline.models.dims import Dim, Flops, flops, prod, to_flops
from peakline.models.dtypes import DType

__all__ = ["Attention", "Convolution", "Gemm", "GroupedGemm", "Kernel", "Scan", "Stream"]


@dataclass(frozen=True, slots=True)
class Gemm:
    """`batch` independent products C[m,n] = A[m,k] · B[k,n].

    `a`, `b`, `c` are the formats in which the operands and the result lie in memory.
    """

    batch: Dim
    m: Dim
    n: Dim
    k: Dim
    a: DType
    b: DType
    c: DType

    @property
    def flops(self) -> Flops:
        """2·batch·m·n·k (a multiply and an add each)."""
        return flops(2, self.batch, self.m, self.n, self.k)


@dataclass(frozen=True, slots=True)
class GroupedGemm:
    """`groups` products that share n and k and split `rows` rows of A between them (a mixture of experts).

    `groups` is the number of experts that receive at least one row.
    """

    groups: Dim
    rows: Dim
    n: Dim
    k: Dim
    a: DType
    b: DType
    c: DType

    @property
    def flops(self) -> Flops:
        """2·rows·n·k: each row meets one expert's matrix."""
        return flops(2, self.rows, self.n, self.k)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution over `space` output positions per image, as the implicit GEMM it is computed by.

    Per group: m = batch·space, n = out_channels/groups, k = taps·in_channels/groups. A `transposed` one scatters
    every input position to `taps` outputs: m = batch·in_space, n = taps·out_channels/groups, k = in_channels/groups.
    `in_space` is the number of input positions per image. Tensors not `channels_last` lie channel by channel, and a
    matrix engine that reads channels together has them converted before and after (`cudnn_workspace`).
    """

    batch: Dim
    in_channels: Dim
    out_channels: Dim
    groups: Dim
    taps: Dim
    in_space: Dim
    space: Dim
    a: DType
    b: DType
    c: DType
    transposed: bool = False
    channels_last: bool = True

    @property
    def flops(self) -> Flops:
        """2·batch·positions·out_channels·taps·in_channels/groups: positions of the output, transposed of the input."""
        positions = self.in_space if self.transposed else self.space
        return flops(2, self.batch, positions, self.out_channels, self.taps, self.in_channels // self.groups)


@dataclass(frozen=True, slots=True)
class Attention:
    """softmax(Q·Kᵀ)·V without the score matrix in memory (flash, memory-efficient, cuDNN).

    Shapes: Q `[batch, heads, queries, qk_dim]`, K `[batch, kv_heads, keys, qk_dim]`,
    V `[batch, kv_heads, keys, v_dim]`. `pairs` is the number of (query, key) pairs per head that the mask leaves:
    queries·keys without a mask, about half of it under a causal one, at most queries·window under a sliding window.
    """

    batch: Dim
    heads: Dim
    kv_heads: Dim
    queries: Dim
    keys: Dim
    pairs: Dim
    qk_dim: Dim
    v_dim: Dim
    kind: DType
    kv_kind: DType
    backward: bool = False

    @property
    def flops(self) -> Flops:
        """Forward 2·pairs·(qk_dim + v_dim) per head; backward recomputes QKᵀ and makes dQ, dK, dV, dP.

        Backward: 2·pairs·(3·qk_dim + 2·v_dim) per head (FlashAttention-2, arXiv:2307.08691, §3.1: 5 matmuls to 2).
        """
        per_pair = 3 * self.qk_dim + 2 * self.v_dim if self.backward else self.qk_dim + self.v_dim
        return flops(2, self.batch, self.heads, self.pairs, per_pair)


@dataclass(frozen=True, slots=True)
class Stream:
    """Elementwise, reduction, copy, normalisation, gather, optimizer: work limited by the bytes it passes over.

    `work` counts scalar operations on the vector units in format `kind`. `launches` is the number of kernels started.

    A kernel that reduces rows says how, because a reduction must end before its result is used: `threads` threads share
    one of `rows` rows and walk it `passes` times (softmax: maximum, sum, result), in `steps` rounds of loads each; the
    passes after the first find the row in a cache or read it again. A fraction of a pass touches part of the operands.
    `rows` 0: every element for itself, one pass. `again` is bytes that the operator's other kernels pass over a second
    time (batch statistics first, then the normalised tensor).
    """

    work: Dim
    kind: DType
    launches: Dim = 1
    rows: Dim = 0
    passes: Dim | float = 1
    threads: Dim = 128
    steps: Dim = 1
    again: Dim = 0

    @property
    def flops(self) -> Flops:
        """The scalar operations, as FLOPs."""
        return to_flops(self.work)


@dataclass(frozen=True, slots=True)
class Scan:
    """A recurrence along `steps` with `width` independent channels of `state` numbers each (selective scan)."""

    batch: Dim
    steps: Dim
    width: Dim
    state: Dim
    kind: DType
    per_state: int = 6

    @property
    def flops(self) -> Flops:
        """per_state·batch·steps·width·state: discretise, multiply-add into the state, multiply-add out."""
        return to_flops(prod((self.per_state, self.batch, self.steps, self.width, self.state)))


Kernel: TypeAlias = Gemm | GroupedGemm | Convolution | Attention | Stream | Scan
