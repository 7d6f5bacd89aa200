"""The selective scan of Mamba with its states on the chip; traffic in `peakline.cost.tiled.scan`."""

# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,untyped-decorator"

import torch
import triton
import triton.language as tl

from peakline.cost.tiled.traffic import check_tiles, power_of_two
from peakline.kernels.launch import check_contiguous, check_shapes

__all__ = ["selective_scan"]


@triton.jit
def _selective_scan(
    x, dt, a, b, c, skip, y, state, length, channels, states,
    CHANNELS: tl.constexpr, STATES: tl.constexpr, SKIP: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    batch = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, STATES)
    real = channel < channels
    inside = real[:, None] & (n < states)[None, :]
    decay = tl.load(a + channel[:, None] * states + n[None, :], mask=inside, other=0.0)
    if SKIP:
        direct = tl.load(skip + channel, mask=real, other=0.0)
    h = tl.zeros((CHANNELS, STATES), dtype=tl.float32)
    for t in range(0, length):
        token = batch * length + t
        value = tl.load(x + token * channels + channel, mask=real, other=0.0).to(tl.float32)
        delta = tl.load(dt + token * channels + channel, mask=real, other=0.0).to(tl.float32)
        into = tl.load(b + token * states + n, mask=n < states, other=0.0).to(tl.float32)
        out = tl.load(c + token * states + n, mask=n < states, other=0.0).to(tl.float32)
        h = tl.exp(delta[:, None] * decay) * h + (delta * value)[:, None] * into[None, :]
        result = tl.sum(h * out[None, :], axis=1)
        if SKIP:
            result += direct * value
        tl.store(y + token * channels + channel, result.to(y.dtype.element_ty), mask=real)
    tl.store(state + (batch * channels + channel[:, None]) * states + n[None, :], h, mask=inside)


def selective_scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    skip: torch.Tensor | None = None,
    *,
    tile_channels: int = 32,
    warps: int = 4,
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = exp(dt·a)·h + dt·x·b and y = Σ h·c + skip·x along tokens, from h = 0.

    Args:
        x, dt: [batch, length, channels] contiguous, any float format; dt after its softplus.
        a: [channels, states] float32, negative.
        b, c: [batch, length, states] of x's format.
        skip: [channels] float32 or None.
        tile_channels: channels of one program, a power of two.
        warps: of the compiled kernel.

    Returns:
        y [batch, length, channels] of x's format, the last state [batch, channels, states] float32.

    Raises:
        ValueError: naming the argument that does not fit.
    """
    batch, length, channels = x.shape
    states = a.shape[1]
    check_tiles((("tile_channels", tile_channels),))
    check_shapes(dt=(dt.shape, x.shape), a=(a.shape, (channels, states)), b=(b.shape, (batch, length, states)),
                 c=(c.shape, (batch, length, states)))  # fmt: skip
    check_contiguous(x=x, dt=dt, a=a, b=b, c=c, skip=skip)
    y = torch.empty_like(x)
    state = x.new_empty((batch, channels, states), dtype=torch.float32)
    _selective_scan[(triton.cdiv(channels, tile_channels), batch)](
        x, dt, a, b, c, x if skip is None else skip, y, state, length, channels, states,
        CHANNELS=tile_channels, STATES=power_of_two(states), SKIP=skip is not None, num_warps=warps,
    )  # fmt: skip
    return y, state
