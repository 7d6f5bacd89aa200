"""Small real training steps of many kinds, each made by a function; what the CPU truth is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


class Perceptron(nn.Module):
    """Linear layers with normalisation and dropout."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(width, width), nn.BatchNorm1d(width), nn.SiLU(), nn.Linear(width, 10),
        )  # fmt: skip

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.layers(x), y)


class Block(nn.Module):
    """A transformer layer written by hand, attention by matrix products or by `scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int, *, fused: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.fused, self.dropout = heads, fused, dropout
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-1, -2) / (c // self.heads) ** 0.5
            mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
            probabilities = scores.masked_fill(~mask, float("-inf")).softmax(-1)
            y = F.dropout(probabilities, self.dropout, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attend(self.norm1(x)), self.dropout, self.training)
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    """A small language model with tied embeddings."""

    def __init__(self, *, fused: bool = True, dropout: float = 0.0, reentrant: bool | None = None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.token, self.position = nn.Embedding(500, 128), nn.Embedding(64, 128)
        self.blocks = nn.ModuleList(Block(128, 4, fused=fused, dropout=dropout) for _ in range(3))
        self.norm = nn.LayerNorm(128)
        self.head = nn.Linear(128, 500, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].reshape(-1, 500), ids[:, 1:].reshape(-1))


class Residual(nn.Module):
    """A residual convolution block."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.short = nn.Conv2d(inside, outside, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class ConvNet(nn.Module):
    """A small residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
        self.layers = nn.Sequential(Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1).flatten(1)), y)


class UNet(nn.Module):
    """An encoder and decoder with skips, group normalisation and transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, padding=1), nn.GroupNorm(4, 32), nn.SiLU())
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.out = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.up(self.down2(a))
        return F.mse_loss(self.out(torch.cat([a, b], 1)), x)


class Recurrent(nn.Module):
    """An LSTM over embeddings, classified by its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.lstm = nn.LSTM(32, 64, num_layers=2, batch_first=True)
        self.head = nn.Linear(64, 5)

    def forward(self, ids: Tensor, y: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(ids))
        return F.cross_entropy(self.head(states[:, -1]), y)


class RMSNorm(nn.Module):
    """As transformers writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class Mixture(nn.Module):
    """Gated experts that every token visits, weighted."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = RMSNorm(96)
        self.router = nn.Linear(96, 4)
        self.up = nn.Parameter(torch.randn(4, 96, 192) * 0.05)
        self.down = nn.Parameter(torch.randn(4, 192, 96) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        weight = self.router(h).softmax(-1)
        inner = F.silu(torch.einsum("btc,ecf->betf", h, self.up))
        out = torch.einsum("betf,efc->betc", inner, self.down)
        y = x + (out * weight.permute(0, 2, 1).unsqueeze(-1)).sum(1)
        return (y - x.roll(1, 1)).pow(2).mean()


@dataclass(frozen=True)
class Case:
    """A named step: a module, its inputs, and its optimizer."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    optimizer: Any
    dtype: torch.dtype = torch.float32

    def build(self) -> tuple[nn.Module, tuple[Tensor, ...]]:
        """A fresh module with its inputs."""
        module, inputs = self.module().to(self.dtype), self.inputs()
        return module, tuple(x.to(self.dtype) if x.is_floating_point() else x for x in inputs)

    def real(self) -> Callable[[], None]:
        """The training loop's body, for real."""
        module, inputs = self.build()
        optimizer = self.optimizer(module.parameters())
        held: dict[str, Tensor] = {}

        def step() -> None:
            held["loss"] = module(*inputs)
            held["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return step


def _vectors() -> tuple[Tensor, ...]:
    return torch.randn(512, 64), torch.randint(0, 10, (512,))


def _tokens() -> tuple[Tensor, ...]:
    return (torch.randint(0, 500, (4, 64)),)


def _images() -> tuple[Tensor, ...]:
    return torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))


def _sequences() -> tuple[Tensor, ...]:
    return torch.randint(0, 100, (8, 20)), torch.randint(0, 5, (8,))


sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9)
adam_loop = partial(torch.optim.Adam, foreach=False)
adamw_foreach = partial(torch.optim.AdamW, foreach=True)

CASES = [
    Case("perceptron-sgd", Perceptron, _vectors, sgd),
    Case("perceptron-adamw-foreach", Perceptron, _vectors, adamw_foreach),
    Case("perceptron-bf16-adam", Perceptron, _vectors, torch.optim.Adam, torch.bfloat16),
    Case("decoder-adamw", Decoder, _tokens, torch.optim.AdamW),
    Case("decoder-math-dropout-adam", partial(Decoder, fused=False, dropout=0.1), _tokens, adam_loop),
    Case("decoder-bf16-adamw-foreach", Decoder, _tokens, adamw_foreach, torch.bfloat16),
    Case("decoder-checkpoint", partial(Decoder, reentrant=False), _tokens, torch.optim.AdamW),
    Case("decoder-checkpoint-reentrant", partial(Decoder, reentrant=True), _tokens, sgd),
    Case("decoder-checkpoint-dropout", partial(Decoder, fused=False, dropout=0.1, reentrant=False), _tokens, sgd),
    Case("convnet-sgd", ConvNet, _images, sgd),
    Case("convnet-rmsprop", ConvNet, _images, torch.optim.RMSprop),
    Case("convnet-bf16-adamw", ConvNet, _images, torch.optim.AdamW, torch.bfloat16),
    Case("unet-adagrad", UNet, lambda: (torch.randn(4, 3, 32, 32),), torch.optim.Adagrad),
    Case("lstm-adam", Recurrent, _sequences, torch.optim.Adam),
    Case("mixture-adagrad-foreach", Mixture, lambda: (torch.randn(4, 32, 96),),
         partial(torch.optim.Adagrad, foreach=True)),
    Case("mixture-bf16-rmsprop", Mixture, lambda: (torch.randn(4, 32, 96),), torch.optim.RMSprop, torch.bfloat16),
]  # fmt: skip
