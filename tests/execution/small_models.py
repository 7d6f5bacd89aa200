"""Small models of six kinds with a step each: what plans are carried out on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
import transformers
from cpu_steps import Residual
from torch import Tensor, nn
from torch.nn import functional as F

import peakline as pk

transformers.logging.set_verbosity_error()
DEVICE = "xeon-8480plus"
adamw = partial(torch.optim.AdamW, lr=1e-3, fused=True)
sgd = partial(torch.optim.SGD, lr=0.01, momentum=0.9, fused=True)


class ResNet(nn.Module):
    """A small residual network with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.layers = nn.Sequential(*(Residual(16, 16, 1) for _ in range(3)), Residual(16, 32, 2), Residual(32, 32, 1))
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 10))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.head(F.adaptive_avg_pool2d(self.layers(self.stem(x)), 1).flatten(1)), y)


class Stage(nn.Sequential):
    """Convolution, group normalisation, SiLU, twice."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1), nn.GroupNorm(4, outside), nn.SiLU(),
        )  # fmt: skip


class UNet(nn.Module):
    """An encoder and a decoder with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([Stage(3, 8), Stage(8, 16), Stage(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.join = nn.ModuleList([Stage(32, 16), Stage(16, 8)])
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        skips, h = [], x
        for stage in self.down[:-1]:
            skips.append(stage(h))
            h = F.max_pool2d(skips[-1], 2)
        h = self.down[-1](h)
        for up, join in zip(self.up, self.join):
            h = join(torch.cat([up(h), skips.pop()], 1))
        return F.mse_loss(self.out(h), y)


@dataclass(frozen=True)
class Case:
    """A model with its inputs and its optimizer."""

    name: str
    module: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    optimizer: Any

    def build(self) -> tuple[nn.Module, dict[str, Tensor], torch.optim.Optimizer]:
        """The module, its inputs and its optimizer, always with the same numbers."""
        torch.manual_seed(0)
        module, inputs = self.module().train(), self.inputs()
        return module, inputs, self.optimizer(module.parameters())

    def step(
        self, module: nn.Module, inputs: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> Callable[[], None]:
        """The body of the training loop."""
        held: dict[str, Any] = {}

        def run() -> None:
            held["loss"] = loss_of(module(**inputs))
            held["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

        return run


def loss_of(output: Any) -> Tensor:
    """A model's loss, without holding on to the rest of its output."""
    return output if isinstance(output, Tensor) else output.loss


@cache
def captured(case: Case) -> tuple[pk.Graph, int]:
    """The step as a graph, and the bytes alive at its peak."""
    module, inputs, _ = case.build()
    graph = pk.capture(module, inputs, optimizer=case.optimizer, device="cpu", name=case.name)
    return graph, int(pk.estimate(graph, DEVICE).memory.live)


@cache
def planned(case: Case, share: float, *allow: str) -> pk.OffloadPlan:
    """A plan for a share of that peak."""
    graph, live = captured(case)
    drive = None if allow == ("recompute",) else "1 TB"
    return pk.plan(graph, DEVICE, budget=int(share * live), allow=allow, ssd=drive, time_limit=3.0)


def _tokens(**more: Any) -> dict[str, Tensor]:
    ids = torch.randint(0, 400, (8, 64))
    return {"input_ids": ids, "labels": ids, **more}


def _gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=4, n_embd=96, n_head=4, vocab_size=400, n_positions=64, use_cache=False)
    )


def _llama() -> nn.Module:
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(hidden_size=96, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
                                 num_key_value_heads=2, vocab_size=400, use_cache=False)
    )  # fmt: skip


def _bert() -> nn.Module:
    return transformers.BertForMaskedLM(
        transformers.BertConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                                vocab_size=400)
    )  # fmt: skip


def _vit() -> nn.Module:
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
                               image_size=32, patch_size=4, num_labels=10)
    )  # fmt: skip


def _images() -> dict[str, Tensor]:
    return {"x": torch.randn(8, 3, 32, 32), "y": torch.randint(0, 10, (8,))}


CASES = [
    Case("gpt2", _gpt2, _tokens, adamw),
    Case("llama", _llama, _tokens, adamw),
    Case("bert", _bert, _tokens, sgd),
    Case("vit", _vit, lambda: {"pixel_values": torch.randn(8, 3, 32, 32), "labels": torch.randint(0, 10, (8,))}, adamw),
    Case("resnet", ResNet, _images, sgd),
    Case("unet", UNet, lambda: {"x": torch.randn(8, 3, 64, 64), "y": torch.randn(8, 3, 64, 64)}, adamw),
]
