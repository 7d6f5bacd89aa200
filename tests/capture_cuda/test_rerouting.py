"""A program on fake CPU tensors runs the operators that CUDA would run, and saves what CUDA would save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="capture needs torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from peakline.models.capture.cuda import rerouting  # noqa: E402
from peakline.models.capture.target import Target  # noqa: E402
from peakline.models.capture.work import work  # noqa: E402

BF16, FP32 = torch.bfloat16, torch.float32
Record = Callable[..., Any]


def rand(*shape: int, dtype: Any = BF16, grad: bool = True) -> Any:
    return torch.randn(*shape, dtype=dtype, requires_grad=grad)


def heads(tokens: int = 64, width: int = 32, count: int = 4) -> Any:
    return rand(2, count, tokens, width)


# ---- attention -------------------------------------------------------------------------------------------------------
def test_attention_in_sixteen_bits_dispatches_flash_forward_and_backward(record: Record) -> None:
    calls = record(lambda: F.scaled_dot_product_attention(heads(), heads(), heads(), is_causal=True).sum().backward())
    (forward,) = calls.of("_scaled_dot_product_flash_attention")
    assert [v.shape for v in forward.results[:2]] == [(2, 4, 64, 32), (2, 4, 64)]
    assert forward.results[1].dtype.name == "fp32"
    assert len(calls.of("_scaled_dot_product_flash_attention_backward")) == 1


def test_on_hopper_cudnn_takes_causal_and_masked_attention_alike(record: Record) -> None:
    def step() -> None:
        F.scaled_dot_product_attention(heads(), heads(), heads(), is_causal=True).sum().backward()
        mask = torch.ones(64, 64, dtype=torch.bool)
        F.scaled_dot_product_attention(heads(64), heads(64), heads(64), attn_mask=mask).sum().backward()

    calls = record(step, Target(capability=(9, 0)))
    first, second = calls.of("_scaled_dot_product_cudnn_attention")
    assert first.results[1].shape == (2, 4, 64, 1)  # a log-sum-exp per query
    assert second.arguments["attn_bias"].shape == (64, 64)  # as it is: neither padded nor expanded
    assert len(calls.of("_scaled_dot_product_cudnn_attention_backward")) == 2


def test_odd_head_widths_are_padded_to_eight_for_flash(record: Record) -> None:
    q = [heads, heads, heads]
    calls = record(lambda: F.scaled_dot_product_attention(*(make(width=33) for make in q)).sum().backward())
    assert calls.of("_scaled_dot_product_flash_attention")[0].arguments["query"].shape[-1] == 40


def test_a_bool_mask_becomes_a_bias_whose_rows_are_aligned(record: Record) -> None:
    def step() -> None:
        mask = torch.ones(63, 63, dtype=torch.bool)
        F.scaled_dot_product_attention(heads(63), heads(63), heads(63), attn_mask=mask).sum().backward()

    calls = record(step)
    (call,) = calls.of("_scaled_dot_product_efficient_attention")
    bias = call.arguments["attn_bias"]
    assert (bias.shape, bias.strides, bias.dtype.name) == ((2, 4, 63, 63), (0, 0, 64, 1), "bf16")
    assert call.results[1].shape == (2, 4, 64)  # the log-sum-exp is padded to 32 queries


def test_sdpa_kernel_is_respected(record: Record) -> None:
    def step() -> None:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.EFFICIENT_ATTENTION):
            F.scaled_dot_product_attention(heads(), heads(), heads()).sum().backward()

    assert len(record(step).of("_scaled_dot_product_efficient_attention_backward")) == 1


def test_the_written_out_form_adds_its_mask_in_place(record: Record) -> None:
    turing = Target(capability=(7, 5))
    calls = record(lambda: F.scaled_dot_product_attention(heads(), heads(), heads(), is_causal=True), turing)
    assert "add_" in calls.names()
    assert "_safe_softmax" in calls.names()


def test_multi_head_attention_reaches_the_same_kernel(record: Record) -> None:
    def step() -> None:
        x = rand(2, 16, 64)
        nn.MultiheadAttention(64, 2, batch_first=True, dtype=BF16)(x, x, x, need_weights=False)[0].sum().backward()

    assert len(record(step).of("_scaled_dot_product_flash_attention_backward")) == 1


# ---- dropout, norms, losses ------------------------------------------------------------------------------------------
def test_dropout_keeps_a_mask_of_bytes(record: Record) -> None:
    calls = record(lambda: nn.Dropout(0.1)(rand(8, 8)).sum().backward())
    (call,) = calls.of("native_dropout")
    assert [v.dtype.name for v in call.results] == ["bf16", "bool"]
    assert len(calls.of("native_dropout_backward")) == 1


def test_layer_norm_keeps_float32_statistics(record: Record) -> None:
    calls = record(lambda: nn.LayerNorm(16, dtype=BF16)(rand(4, 16)).sum().backward())
    (forward,), (backward,) = calls.of("native_layer_norm"), calls.of("native_layer_norm_backward")
    assert [v.dtype.name for v in forward.results] == ["bf16", "fp32", "fp32"]
    assert backward.arguments["rstd"] == forward.results[2]


def test_rms_norm_is_fused_from_2_9_on(record: Record) -> None:
    def step() -> None:
        nn.RMSNorm(16, dtype=BF16)(rand(4, 16)).sum().backward()

    new, old = record(step), record(step, Target(torch=(2, 8)))
    assert len(new.of("_fused_rms_norm")) == len(new.of("_fused_rms_norm_backward")) == 1
    assert [v.dtype.name for v in new.of("_fused_rms_norm")[0].results] == ["bf16", "fp32"]
    assert "rsqrt" in old.names()
    assert not old.of("_fused_rms_norm")


def test_batch_norm_runs_cudnn_in_float32_and_pytorchs_own_in_bf16(record: Record) -> None:
    def step(kind: Any) -> None:
        nn.BatchNorm2d(4, dtype=kind)(rand(2, 4, 8, 8, dtype=kind)).sum().backward()

    assert len(record(lambda: step(FP32)).of("cudnn_batch_norm_backward")) == 1
    (call,) = record(lambda: step(BF16)).of("native_batch_norm")
    assert [v.dtype.name for v in call.results] == ["bf16", "fp32", "fp32"]


def test_under_autocast_cudnns_batch_norm_keeps_float32_statistics(record: Record) -> None:
    def step() -> None:
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).cuda()
        with torch.autocast("cuda"):
            loss = network(torch.randn(2, 3, 8, 8, device="cuda")).sum()
        loss.backward()

    (call,) = record(step).of("cudnn_batch_norm")
    assert [v.dtype.name for v in call.results[:3]] == ["fp16", "fp32", "fp32"]


def test_the_mean_squared_error_lies_in_memory_of_its_inputs_size(record: Record) -> None:
    calls = record(lambda: F.mse_loss(rand(8, 8, dtype=FP32), rand(8, 8, dtype=FP32, grad=False)).backward())
    (call,) = calls.of("mse_loss")
    assert call.results[0].shape == ()
    assert calls.storages[call.results[0].storage] == 8 * 8 * 4


def test_a_bias_is_added_in_place_to_the_product_of_a_strided_input(record: Record) -> None:
    calls = record(lambda: nn.Linear(8, 4, dtype=BF16)(rand(3, 2, 8).transpose(0, 1)))
    assert calls.names()[-1] == "add_"
    assert record(lambda: nn.Linear(8, 4, dtype=BF16)(rand(3, 2, 8))).of("addmm")


@pytest.mark.parametrize(("kind", "gates", "kept"), [(nn.LSTM, 4, 6), (nn.GRU, 3, 4), (nn.RNN, 1, 1)])
def test_recurrent_networks_are_one_operator_each_way_with_a_reserve(
    record: Record, kind: Any, gates: int, kept: int
) -> None:
    def step() -> None:
        network = kind(8, 16, num_layers=2, batch_first=True)
        network(rand(3, 5, 8, dtype=FP32))[0].sum().backward()
        assert all(p.grad.shape == p.shape for p in network.parameters())

    calls = record(step)
    (forward,), (backward,) = calls.of("_cudnn_rnn"), calls.of("_cudnn_rnn_backward")
    assert forward.results[3].shape == (3 * 5 * 16 * (2 * kept + 1) * 4,)
    products = 2 * 3 * 5 * gates * 16 * (8 + 16 + 16 + 16)
    assert [sum(k.flops for k in work(call, Target()).kernels) for call in (forward, backward)] == [
        products,
        2 * products,
    ]


# ---- autocast --------------------------------------------------------------------------------------------------------
def test_autocast_casts_a_weight_once_and_follows_cudas_lists(record: Record) -> None:
    seen = {}

    def step() -> None:
        layer = nn.Linear(8, 8).cuda()
        with torch.autocast("cuda", dtype=BF16):
            y = layer(layer(torch.randn(2, 8, device="cuda")))
            seen.update(linear=y.dtype, norm=F.layer_norm(y, (8,)).dtype, softmax=y.softmax(-1).dtype,
                        sum=y.sum().dtype, relu=y.relu().dtype, pow=(y**2).dtype, gelu=F.gelu(y).dtype)  # fmt: skip
        assert not torch.is_autocast_enabled("cuda")

    calls = record(step)
    assert seen == {
        "linear": BF16, "norm": FP32, "softmax": FP32, "sum": FP32, "relu": BF16, "pow": FP32, "gelu": BF16,
    }  # fmt: skip
    assert [c.arguments["self"].shape for c in calls.of("_to_copy")].count((8, 8)) == 1


def test_cudas_default_format_is_fp16(record: Record) -> None:
    seen = []

    def step() -> None:
        with torch.autocast("cuda"):
            seen.append(nn.Linear(8, 8)(rand(2, 8, dtype=FP32)).dtype)

    record(step)
    assert seen == [torch.float16]


def test_a_gradient_scaler_steps(record: Record) -> None:
    def step() -> None:
        layer, scaler = nn.Linear(8, 8).to("cuda"), torch.amp.GradScaler("cuda")
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        with torch.autocast("cuda"):
            loss = layer(torch.randn(2, 8, device="cuda:0")).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        torch.cuda.synchronize()

    names = record(step).names()
    assert names.index("_amp_foreach_non_finite_check_and_unscale_") < names.index("_foreach_norm")
    assert names.count("_foreach_add_") == 1


# ---- optimizers, devices, recomputation ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, "_foreach_addcdiv_"), ({"fused": True}, "_fused_adamw_"), ({"foreach": False}, "addcdiv_")],
)
def test_optimizers_take_multi_tensor_kernels_by_default(record: Record, options: Any, expected: str) -> None:
    def step() -> None:
        layer = nn.Linear(8, 8)
        optimizer = torch.optim.AdamW(layer.parameters(), **options)
        layer(rand(2, 8, dtype=FP32)).sum().backward()
        optimizer.step()

    assert expected in record(step).names()


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_passes_run_on_the_same_device(record: Record, reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    def step() -> None:
        layer = nn.Linear(8, 8)

        def part(x: Any) -> Any:
            return F.dropout(layer(x)) + torch.zeros(8, device="cuda")

        checkpoint(part, rand(2, 8, dtype=FP32), use_reentrant=reentrant).sum().backward()

    assert len(record(step).of("native_dropout")) == 2


def test_the_device_is_there_and_nothing_moves(record: Record) -> None:
    seen = {}

    def step() -> None:
        generator = torch.Generator(device="cuda").manual_seed(0)
        x = torch.randn(4, 4, generator=generator, device="cuda").pin_memory().to("cuda", non_blocking=True).cuda()
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        model = model.to("cuda", dtype=BF16)
        seen.update(
            tied=model[1].weight is model[0].weight, kind=model[0].weight.dtype, there=torch.cuda.is_available(),
            capability=torch.cuda.get_device_capability(), memory=torch.cuda.memory_allocated(), x=x.dtype,
        )  # fmt: skip
        with torch.inference_mode():
            model(x.to(BF16))
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda.empty_cache()

    calls = record(step)
    assert seen == {"tied": True, "kind": BF16, "there": True, "capability": (9, 0), "memory": 0, "x": FP32}
    assert calls.names().count("addmm") == 2  # composite functions are taken apart in inference mode as well


def test_a_whole_training_step_of_an_encoder_runs(record: Record) -> None:
    def step() -> None:
        layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True, dtype=BF16, device="cuda")
        optimizer = torch.optim.AdamW(layer.parameters())
        loss = F.cross_entropy(layer(rand(2, 16, 64)).flatten(0, 1), torch.zeros(32, dtype=torch.long, device="cuda"))
        loss.backward()
        optimizer.step()

    names = record(step).names()
    assert names.count("native_dropout") == 3  # the fourth is inside attention
    assert "_scaled_dot_product_flash_attention_backward" in names


def test_everything_is_as_before_afterwards(record: Record) -> None:
    record(lambda: F.dropout(rand(2, 2)))
    assert not torch.cuda.is_available() or torch.version.cuda
    x = torch.ones(4, 4, requires_grad=True)
    result = F.dropout(x, 0.5)
    assert type(result.grad_fn).__name__ == "MulBackward0"
    assert nn.Linear(2, 2).to(BF16).weight.dtype == BF16
    assert torch.allclose(F.rms_norm(torch.ones(2, 4), (4,)), torch.ones(2, 4))


def test_for_a_cpu_nothing_is_rerouted() -> None:
    with rerouting(Target(kind="cpu")):
        x = torch.ones(4, 4, requires_grad=True)
        assert type(F.dropout(x, 0.5).grad_fn).__name__ == "MulBackward0"
