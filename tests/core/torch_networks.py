"""The networks of `networks.py` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from networks import BATCH, HEADS, INNER, SEQ, SHAPE, VOCABULARY, WIDTH  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, x: Any) -> Any:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class RmsNorm(nn.Module):
    """`transformers.models.llama.modeling_llama.LlamaRMSNorm`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Any) -> Any:
        kind = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + 1e-6)
        return self.weight * x.to(kind)


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = RmsNorm()
        self.gate, self.up = nn.Linear(WIDTH, INNER, bias=False), nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class SelfAttention(nn.Module):
    """transformers' `eager_attention_forward` between four projections."""

    def __init__(self, kv_heads: int = HEADS, bias: bool = False) -> None:
        super().__init__()
        self.kv_heads, self.head = kv_heads, WIDTH // HEADS
        kv = kv_heads * self.head
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.k, self.v = nn.Linear(WIDTH, WIDTH, bias), nn.Linear(WIDTH, kv, bias), nn.Linear(WIDTH, kv, bias)
        self.o = nn.Linear(WIDTH, WIDTH, bias)

    def forward(self, x: Any) -> Any:
        y = self.norm(x)
        q = self.q(y).view(BATCH, SEQ, HEADS, self.head).transpose(1, 2)
        k = self._repeated(self.k(y).view(BATCH, SEQ, self.kv_heads, self.head).transpose(1, 2))
        v = self._repeated(self.v(y).view(BATCH, SEQ, self.kv_heads, self.head).transpose(1, 2))
        weights = torch.matmul(q, k.transpose(2, 3)) * self.head**-0.5
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(q.dtype)
        out = torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(SHAPE)
        return x + self.o(out)

    def _repeated(self, x: Any) -> Any:
        if self.kv_heads == HEADS:
            return x
        shape = (BATCH, self.kv_heads, HEADS // self.kv_heads, SEQ, self.head)
        return x[:, :, None].expand(shape).reshape(BATCH, HEADS, SEQ, self.head)


class Stack(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module], layers: int, *, recompute: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.recompute = recompute

    def forward(self, x: Any) -> Any:
        x = self.first(x)
        for layer in self.layers:
            if self.recompute:  # the CPU's generator state is no GPU memory
                x = checkpoint(layer, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x)
        return x

    def loss(self, kind: Any = torch.float32) -> Callable[[], Any]:
        """A step's forward pass on fixed data."""
        x, target = torch.randn(SHAPE, dtype=kind), torch.randn(SHAPE, dtype=kind)
        return lambda: F.mse_loss(self(x), target)


class LanguageModel(nn.Module):
    def __init__(self, layer: Callable[[], nn.Module] = FeedForward, layers: int = 2, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(layer() for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Any) -> Any:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def loss(self) -> Callable[[], Any]:
        """A step's forward pass on fixed data."""
        ids = torch.randint(0, VOCABULARY, (BATCH, SEQ))
        labels = torch.randint(0, VOCABULARY, (BATCH * SEQ,))
        return lambda: F.cross_entropy(self(ids).view(-1, VOCABULARY), labels)
