"""Networks that transformers does not have, in plain PyTorch: ResNet, a diffusion U-Net, and DiT.

They follow the published architectures and the settings of `cases`; parameter counts are tested against the papers'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

__all__ = ["NETWORKS", "DiT", "ResNet", "UNet"]


def _run(block: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """The block, under activation checkpointing if asked."""
    out: Tensor = checkpoint(block, *inputs, use_reentrant=False) if recompute else block(*inputs)
    return out


# ---- ResNet (arXiv:1512.03385; stride in the 3×3 convolution as in torchvision's v1.5) -----------------------------
class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions with a residual; the output has four times `planes` channels."""

    def __init__(self, inside: int, planes: int, stride: int) -> None:
        super().__init__()
        outside = 4 * planes
        self.conv1, self.bn1 = nn.Conv2d(inside, planes, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.shortcut = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N, 4·planes, H/stride, W/stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.shortcut is None else self.shortcut(x)
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """ResNet with bottlenecks; `layers=(3, 4, 6, 3)` is ResNet-50 with 25,557,032 parameters for 1,000 classes."""

    def __init__(self, layers: Sequence[int], width: int, classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        blocks: list[nn.Module] = []
        inside = width
        for stage, count in enumerate(layers):
            planes = width << stage
            for block in range(count):
                blocks.append(Bottleneck(inside, planes, 2 if stage and not block else 1))
                inside = 4 * planes
        self.blocks = nn.ModuleList(blocks)
        self.fc = nn.Linear(inside, classes)
        self.recompute = False

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) → logits (N, classes)."""
        x = self.pool(self.relu(self.bn1(self.conv1(images))))
        for block in self.blocks:
            x = _run(block, x, recompute=self.recompute)
        out: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return out


# ---- U-Net for diffusion (arXiv:2006.11239, with the residual blocks of arXiv:2102.09672) --------------------------
def time_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embedding of time steps (N,) → (N, width), in float32."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(10000.0) / half))
    angles = t[:, None].float() * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group norm and SiLU; the time is added in between."""

    def __init__(self, inside: int, outside: int, times: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(32, inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.time = nn.Linear(times, outside)
        self.norm2, self.conv2 = nn.GroupNorm(32, outside), nn.Conv2d(outside, outside, 3, padding=1)
        self.skip = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """(N, C, H, W) and (N, times) → (N, outside, H, W)."""
        y = self.conv1(F.silu(self.norm1(x))) + self.time(F.silu(t))[:, :, None, None]
        out: Tensor = self.skip(x) + self.conv2(F.silu(self.norm2(y)))
        return out


class SpatialAttention(nn.Module):
    """Self-attention over all positions of an image, with heads of 64 channels or fewer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(channels // 64, 1)
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → the same shape."""
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, 3, self.heads, c // self.heads, h * w).transpose(3, 4).unbind(1)
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.out(y.transpose(2, 3).reshape(n, c, h, w))
        return out


class UNet(nn.Module):
    """Predicts the noise in an image; levels from `attention_from` on have self-attention."""

    def __init__(self, width: int, multipliers: Sequence[int], blocks: int, channels: int, attention_from: int) -> None:
        super().__init__()
        times = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, times), nn.SiLU(), nn.Linear(times, times))
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.up, self.middle = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        kept, inside = [width], width
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(self._block(inside, multiplier * width, times, level >= attention_from))
                inside = multiplier * width
                kept.append(inside)
            if level < len(multipliers) - 1:
                self.down.append(nn.Conv2d(inside, inside, 3, 2, 1))
                kept.append(inside)
        self.middle.append(self._block(inside, inside, times, True))
        self.middle.append(self._block(inside, inside, times, False))
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(self._block(inside + kept.pop(), multiplier * width, times, level >= attention_from))
                inside = multiplier * width
            if level:
                self.up.append(nn.Conv2d(inside, inside, 3, padding=1))
        self.norm, self.last = nn.GroupNorm(32, inside), nn.Conv2d(inside, channels, 3, padding=1)
        self.recompute = False

    @staticmethod
    def _block(inside: int, outside: int, times: int, attention: bool) -> nn.Module:
        found = nn.ModuleList([ResidualBlock(inside, outside, times)])
        if attention:
            found.append(SpatialAttention(outside))
        return found

    def _apply_block(self, block: Any, x: Tensor, t: Tensor) -> Tensor:
        x = _run(block[0], x, t, recompute=self.recompute)
        return _run(block[1], x, recompute=self.recompute) if len(block) > 1 else x

    def forward(self, images: Tensor, t: Tensor) -> Tensor:
        """(N, C, H, W) and time steps (N,) → the same shape."""
        emb = self.time(time_embedding(t, self.width).to(images.dtype))
        x = self.first(images)
        kept = [x]
        for block in self.down:
            x = block(x) if isinstance(block, nn.Conv2d) else self._apply_block(block, x, emb)
            kept.append(x)
        for block in self.middle:
            x = self._apply_block(block, x, emb)
        for block in self.up:
            if isinstance(block, nn.Conv2d):
                x = block(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            else:
                x = self._apply_block(block, torch.cat([x, kept.pop()], dim=1), emb)
        out: Tensor = self.last(F.silu(self.norm(x)))
        return out


# ---- DiT (arXiv:2212.09748, adaLN-Zero) ----------------------------------------------------------------------------
class DiTBlock(nn.Module):
    """A transformer block whose norms are shifted and scaled by the condition."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.norm2 = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.qkv, self.proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(N, T, hidden) under the condition (N, hidden)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c)[:, None].chunk(6, dim=2)
        n, t, h = x.shape
        y = self.norm1(x) * (1 + scale1) + shift1
        q, k, v = self.qkv(y).reshape(n, t, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, h)
        x = x + gate1 * self.proj(y)
        out: Tensor = x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return out


class DiT(nn.Module):
    """Diffusion transformer on latents; hidden 1152, depth 28, 16 heads, patch 2 is DiT-XL/2 (675 M parameters)."""

    def __init__(self, hidden: int, depth: int, heads: int, patch: int, channels: int, classes: int) -> None:
        super().__init__()
        self.hidden, self.patch, self.channels = hidden, patch, channels
        self.embed = nn.Conv2d(channels, hidden, patch, patch)
        self.time = nn.Sequential(nn.Linear(256, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden)  # one more for "no class"
        self.blocks = nn.ModuleList(DiTBlock(hidden, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))
        self.last = nn.Linear(hidden, patch * patch * 2 * channels)  # noise and its variance
        self.recompute = False

    def forward(self, latents: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """(N, C, H, W), time steps (N,), classes (N,) → (N, 2·C, H, W)."""
        x = self.embed(latents)
        n, _, rows, columns = x.shape
        x = x.flatten(2).transpose(1, 2)
        position = time_embedding(torch.arange(rows * columns, device=x.device), self.hidden)
        x = x + position.to(x.dtype)
        c = self.time(time_embedding(t, 256).to(latents.dtype)) + self.label(labels)
        for block in self.blocks:
            x = _run(block, x, c, recompute=self.recompute)
        shift, scale = self.modulation(c)[:, None].chunk(2, dim=2)
        x = self.last(self.norm(x) * (1 + scale) + shift)
        p = self.patch
        x = x.reshape(n, rows, columns, p, p, 2 * self.channels).permute(0, 5, 1, 3, 2, 4)
        out: Tensor = x.reshape(n, 2 * self.channels, rows * p, columns * p)
        return out


NETWORKS: dict[str, Callable[..., nn.Module]] = {"ResNet": ResNet, "UNet": UNet, "DiT": DiT}
"""Networks by the `architecture` of a case."""
