"""A training step as anyone might write it; docs/capture.md captures it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Block(nn.Module):
    """Attention and MLP with residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, s, w = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, w))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """A small language model."""

    def __init__(self, width: int = 1024, depth: int = 16, heads: int = 16, words: int = 32000) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten())


def make_step():
    """The module, its inputs, and the optimizer."""
    return Model(), torch.zeros(8, 1024, dtype=torch.long), torch.optim.AdamW


def make_loop():
    """The same written out, two microbatches at a time."""
    model = Model().cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    ids = torch.zeros(4, 1024, dtype=torch.long, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(2):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = model(ids) / 2
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step
