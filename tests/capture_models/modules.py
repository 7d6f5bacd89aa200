"""Compact models that people write themselves: a U-Net, a diffusion transformer, a GAN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Twice(nn.Sequential):
    """Convolution, group norm, SiLU, twice."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1), nn.GroupNorm(8, outside), nn.SiLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al., arXiv:1505.04597: down by pooling, up by transposed convolutions, across by concatenation."""

    def __init__(self, width: int = 16, depth: int = 3) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(depth + 1)]
        self.down = nn.ModuleList([_Twice(3 if i == 0 else widths[i - 1], widths[i]) for i in range(depth)])
        self.middle = _Twice(widths[-2], widths[-1])
        self.rise = nn.ModuleList([nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in reversed(range(depth))])
        self.up = nn.ModuleList([_Twice(2 * widths[i], widths[i]) for i in reversed(range(depth))])
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        kept = []
        for block in self.down:
            x = block(x)
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for rise, block in zip(self.rise, self.up):
            x = block(torch.cat([rise(x), kept.pop()], 1))
        return F.mse_loss(self.out(x), target)


class _DiTBlock(nn.Module):
    """Attention and MLP, shifted, scaled and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.condition = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def attend(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, w // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, s, w))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        s1, m1, g1, s2, m2, g2 = self.condition(c)[:, None].chunk(6, -1)
        x = x + g1 * self.attend(self.norm1(x) * (1 + m1) + s1)
        return x + g2 * self.mlp(self.norm2(x) * (1 + m2) + s2)


class DiT(nn.Module):
    """Peebles and Xie, arXiv:2212.09748: a transformer over patches of a latent picture."""

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4, size: int = 16, patch: int = 2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(4, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(1001, width)
        self.blocks = nn.ModuleList([_DiTBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, patch * patch * 4)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, noise: Tensor) -> Tensor:
        frequencies = torch.exp(torch.arange(128, device=x.device) * (-9.21 / 128))
        angles = t[:, None].float() * frequencies
        c = self.time(torch.cat([angles.cos(), angles.sin()], -1).to(x.dtype)) + self.label(y)
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            h = block(h, c)
        h = self.out(self.norm(h))
        return F.mse_loss(F.pixel_shuffle(h.transpose(1, 2).reshape(x.shape[0], -1, 8, 8), 2), noise)


class Generator(nn.Sequential):
    """From noise to a picture of 32 × 32 (Radford et al., arXiv:1511.06434)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.ConvTranspose2d(32, 4 * width, 4), nn.BatchNorm2d(4 * width), nn.ReLU(),
            nn.ConvTranspose2d(4 * width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip


class Critic(nn.Sequential):
    """From a picture of 32 × 32 to one number."""

    def __init__(self, width: int = 16) -> None:
        super().__init__(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, 1), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.BatchNorm2d(4 * width), nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 4), nn.Flatten(0),
        )  # fmt: skip


class Square(torch.autograd.Function):
    """x² that keeps x alone, in half the format."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x.half())
        return x * x

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        return 2 * x.float() * gradient


class Blocks(nn.Module):
    """Residual blocks, each recomputed in the backward pass or not."""

    def __init__(self, width: int = 64, depth: int = 6, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(depth)]
        )

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = x * 1.0 if self.reentrant is None else x.detach().requires_grad_()
        for layer in self.layers:
            x = x + (layer(x) if self.reentrant is None else checkpoint(layer, x, use_reentrant=self.reentrant))
        return x.square().mean()
