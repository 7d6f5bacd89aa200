"""Vision transformers and diffusion networks: published sizes, and a ViT against transformers' own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch_reference import forward_flops, graph_step, torch_step

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import dtype
from peakline.models.families.unet import UNetConfig
from peakline.models.families.unet import from_huggingface as read_unet
from peakline.models.families.vit import build as build_vit
from peakline.models.families.vit import from_huggingface as read_vit
from peakline.models.graph import Tensor
from peakline.models.huggingface import from_config
from peakline.models.workload import Workload
from peakline.models.workloads import inference, training_step

# 10⁹ multiply-adds: `_ops` of torchvision's weights; DiT: arXiv:2212.09748, table 1 ("Gflops" there)
BILLIONS = {
    "vit-b-16": 17.564, "vit-b-32": 4.409, "vit-l-16": 61.555, "vit-h-14-518": 1016.717, "dit-xl-2": 118.64,
    "dit-l-2": 80.71, "dit-b-2": 23.01, "dit-s-2": 6.06,
}  # fmt: skip
# arXiv:2212.09748, table 1: 10⁶ parameters
DIT_PARAMETERS = {"dit-s-2": 33, "dit-b-2": 130, "dit-l-2": 458, "dit-xl-2": 675}

SD15 = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "in_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 64,
}


@pytest.mark.parametrize("name", BILLIONS)
def test_multiply_adds_are_nearly_the_published_ones(name: str) -> None:
    assert forward_flops(inference(name)) / 2e9 == pytest.approx(BILLIONS[name], rel=1e-3)


@pytest.mark.parametrize("name", DIT_PARAMETERS)
def test_dit_has_the_paper_s_parameters_in_millions(name: str) -> None:
    assert inference(name).parameters / 1e6 == pytest.approx(DIT_PARAMETERS[name], abs=1)


def test_a_vit_keeps_and_computes_what_transformers_does() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    values = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "patch_size": 8,
        "image_size": 32, "num_labels": 5, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    config = transformers.ViTConfig(**values, attn_implementation="eager")
    module = transformers.ViTForImageClassification(config).train()
    labels = torch.randint(5, (2,))
    pixels = torch.randn(2, 3, 32, 32)
    kept, flops = torch_step(module, pixels, loss=lambda out: torch.nn.functional.cross_entropy(out.logits, labels))
    work = Workload("training", batch=2, kind=dtype("fp32"), attention="eager")
    assert graph_step(lambda b: build_vit(b, read_vit(values), work)) == (kept, flops)


def test_a_residual_block_and_a_transformer_of_the_u_net_keep_what_pytorch_keeps() -> None:
    torch = pytest.importorskip("torch")
    nn, F = torch.nn, torch.nn.functional

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        """diffusers' ResnetBlock2D between a convolution and an output norm, written out."""

        def __init__(self) -> None:
            super().__init__()
            self.time1, self.time2, self.time_proj = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 16)
            self.conv_in, self.shortcut = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 16, 1)
            self.norm1, self.norm2, self.norm3 = nn.GroupNorm(4, 8), nn.GroupNorm(4, 16), nn.GroupNorm(4, 16)
            self.conv1, self.conv2 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.conv_out = nn.Conv2d(16, 4, 3, padding=1)

        def forward(self, x: Any, time: Any, noise: Any) -> Any:
            t = self.time2(F.silu(self.time1(time)))
            x = self.conv_in(x)
            y = self.conv1(F.silu(self.norm1(x))) + self.time_proj(F.silu(t))[:, :, None, None]
            y = (self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))) / 1.0
            return F.mse_loss(self.conv_out(F.silu(self.norm3(y))), noise)

    def write(b: GraphBuilder) -> Tensor:
        from peakline.models.families.unet import _mlp, _Net
        from peakline.models.operators.convolution import conv
        from peakline.models.operators.elementwise import activation
        from peakline.models.operators.loss import mse_loss
        from peakline.models.operators.normalization import group_norm

        config = UNetConfig(groups=4)
        time = _mlp(b, b.input("t", (2, 8), "fp32"), 32, "time")
        net = _Net(b, config, Workload("training", kind=dtype("fp32")), time, time)
        x = net.residual(conv(b, b.input("x", (2, 4, 8, 8), "fp32"), 8, 3, padding=1, name="conv_in"), 16, "resnet")
        x = conv(b, activation(b, "silu", group_norm(b, x, 4)), 4, 3, padding=1, name="conv_out")
        return mse_loss(b, x, b.input("noise", (2, 4, 8, 8), "fp32"))

    inputs = torch.randn(2, 4, 8, 8), torch.randn(2, 8), torch.randn(2, 4, 8, 8)
    assert graph_step(write) == torch_step(Net(), *inputs)


def test_the_u_net_of_stable_diffusion_reads_its_diffusers_configuration() -> None:
    family, config = from_config(SD15)
    assert family.name == "unet"
    assert config == UNetConfig()
    assert inference(SD15).parameters == 859_520_964
    with pytest.raises(ValueError, match="down_block_types"):
        read_unet({**SD15, "down_block_types": ["AttnDownBlock2D"] * 4})


def test_a_dinov2_configuration_with_swiglu_is_the_giant() -> None:
    values = {
        "model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24,
        "use_swiglu_ffn": True, "patch_size": 14, "image_size": 518,
    }  # fmt: skip
    assert inference(values).parameters == 1_136_480_768
    with pytest.raises(ValueError, match="classes"):
        training_step(values)


@pytest.mark.parametrize("name", ["vit-b-16", "dit-b-2", "stable-diffusion-1.5"])
def test_arrays_of_batches_and_images_give_the_scalar_results(name: str) -> None:
    def figures(batch: Any, image: Any) -> list[Any]:
        step = training_step(name, batch=batch, image=image)
        return [forward_flops(step), step.total_bytes("activation", "gradient", "input")]

    swept = figures(np.array([2, 3]), np.array([256, 512]))
    for i, (batch, image) in enumerate([(2, 256), (3, 512)]):
        assert [int(f[i]) for f in swept] == figures(batch, image)


def test_the_image_size_sets_the_tokens_and_not_the_parameters() -> None:
    small, large = inference("dit-xl-2"), inference("dit-xl-2", image=512)
    assert small.tensors["blocks.carry"].shape == (1, 256, 1152)
    assert large.tensors["blocks.carry"].shape == (1, 1024, 1152)
