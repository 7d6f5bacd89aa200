"""Which attention kernel runs: the checks of PyTorch's sdp_utils, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peakline.models.capture.cuda import AttentionCall, choose_attention
from peakline.models.capture.target import Target

A100, RTX3090, RTX4090 = (Target(capability=c) for c in ((8, 0), (8, 6), (8, 9)))
H100 = Target(capability=(9, 0), cudnn_attention=False)  # flash first, as everywhere before torch 2.11
V100, T4, P100 = (Target(capability=c) for c in ((7, 0), (7, 5), (6, 0)))
RTX5090 = Target(capability=(12, 0))


def ask(tokens: int = 1024, width: int = 64, heads: int = 8, **changes: object) -> AttentionCall:
    shape = (2, heads, tokens, width)
    return replace(AttentionCall(shape, shape, shape), **changes)  # type: ignore[arg-type]


def test_sixteen_bits_without_a_mask_run_flash() -> None:
    assert choose_attention(ask(causal=True), H100) == "flash"
    assert choose_attention(ask(dtype="fp16"), A100) == "flash"


def test_a_mask_sends_attention_to_the_memory_efficient_kernel() -> None:
    assert choose_attention(ask(mask=(1024, 1024)), H100) == "efficient"
    assert choose_attention(ask(mask=(2, 1, 1024, 1024), mask_requires_grad=True), H100) == "efficient"


def test_float32_has_no_flash_kernel() -> None:
    assert choose_attention(ask(dtype="fp32"), H100) == "efficient"


def test_float64_has_the_written_out_form_only() -> None:
    assert choose_attention(ask(dtype="fp64"), H100) == "math"


@pytest.mark.parametrize("target", [V100, T4])
def test_before_ampere_fp16_runs_memory_efficient_and_bf16_is_written_out(target: Target) -> None:
    assert choose_attention(ask(dtype="fp16"), target) == "efficient"
    assert choose_attention(ask(dtype="bf16"), target) == "math"


def test_without_tensor_cores_any_width_is_aligned() -> None:
    assert choose_attention(ask(dtype="fp16", width=63), P100) == "efficient"
    assert choose_attention(ask(dtype="fp16", width=63), V100) == "math"


def test_flash_takes_widths_up_to_256_and_pads_odd_ones() -> None:
    assert choose_attention(ask(width=256), H100) == "flash"
    assert choose_attention(ask(width=33), H100) == "flash"
    assert choose_attention(ask(width=264), H100) == "efficient"
    assert choose_attention(ask(width=260), H100) == "math"


def test_values_of_another_width_leave_flash() -> None:
    values = (2, 8, 1024, 128)
    assert choose_attention(ask(width=192, value=values), H100) == "efficient"


def test_training_wide_heads_on_consumer_ampere_and_ada_leaves_flash() -> None:
    for target in (RTX3090, RTX4090, RTX5090):
        assert choose_attention(ask(width=192), target) == "flash"
        assert choose_attention(ask(width=224), target) == "efficient"
        assert choose_attention(ask(width=256), target) == "flash"
        assert choose_attention(ask(width=256, dropout=0.1), target) == "efficient"
        assert choose_attention(ask(width=224, requires_grad=False), target) == "flash"
    assert choose_attention(ask(width=224), A100) == "flash"


def test_a_causal_rectangle_leaves_flash() -> None:
    """Flash aligns a causal mask with the last query, SDPA with the first."""
    rectangle = ask(query=(2, 8, 1, 64), causal=True)
    assert choose_attention(rectangle, H100) == "efficient"
    assert choose_attention(replace(rectangle, causal=False), H100) == "flash"


def test_grouped_heads_run_flash_only_when_announced() -> None:
    grouped = ask(key=(2, 2, 1024, 64), value=(2, 2, 1024, 64))
    assert choose_attention(replace(grouped, gqa=True), H100) == "flash"
    assert choose_attention(grouped, H100) == "math"


def test_grouped_heads_in_float32_are_written_out_through_2_13() -> None:
    grouped = ask(key=(2, 2, 1024, 64), value=(2, 2, 1024, 64), dtype="fp32", gqa=True)
    assert choose_attention(grouped, H100) == "math"
    assert choose_attention(grouped, replace(H100, torch=(2, 14))) == "efficient"


def test_three_dimensions_are_written_out() -> None:
    flat = (16, 1024, 64)
    assert choose_attention(AttentionCall(flat, flat, flat), H100) == "math"


def test_strided_heads_are_written_out() -> None:
    assert choose_attention(ask(last_strides=(2, 1, 1)), H100) == "math"
    assert choose_attention(ask(mask=(1024, 1024), last_strides=(1, 1, 1, 0)), H100) == "math"


def test_since_2_11_cudnn_comes_first_on_hopper_and_on_the_b200() -> None:
    for capability, backend in {(9, 0): "cudnn", (10, 0): "cudnn", (10, 3): "flash", (8, 0): "flash"}.items():
        target = Target(capability=capability)
        assert choose_attention(ask(causal=True), target) == backend
        assert choose_attention(ask(causal=True), replace(target, torch=(2, 10))) == "flash"


def test_cudnn_takes_wider_heads_on_hopper_than_on_blackwell() -> None:
    hopper, blackwell = Target(capability=(9, 0)), Target(capability=(10, 0))
    assert choose_attention(ask(width=256), hopper) == "cudnn"
    assert choose_attention(ask(width=256), blackwell) == "flash"
    deepseek = ask(width=192, value=(2, 8, 1024, 128))
    assert choose_attention(deepseek, hopper) == choose_attention(deepseek, blackwell) == "cudnn"


def test_a_target_may_prefer_cudnn() -> None:
    prefers = replace(A100, cudnn_attention=True)
    assert choose_attention(ask(), prefers) == "cudnn"
    assert choose_attention(ask(mask=(1024, 1024)), prefers) == "cudnn"
    assert choose_attention(ask(width=160), prefers) == "flash"
    assert choose_attention(ask(dropout=0.1), prefers) == "flash"  # steps of 1/16
    assert choose_attention(ask(dropout=0.125), prefers) == "cudnn"
    assert choose_attention(ask(mask=(1024, 1024), mask_requires_grad=True), prefers) == "efficient"


def test_disabled_kernels_are_passed_over_and_nothing_left_is_an_error() -> None:
    assert choose_attention(ask(), H100, enabled=frozenset({"efficient", "math"})) == "efficient"
    assert choose_attention(ask(), H100, enabled=frozenset({"cudnn"})) == "cudnn"
    with pytest.raises(ValueError, match="none of the kernels enabled"):
        choose_attention(ask(dtype="fp32"), H100, enabled=frozenset({"flash"}))


def test_hopper_under_an_old_release_runs_flash_and_blackwell_does_not() -> None:
    assert choose_attention(ask(), replace(H100, torch=(2, 2))) == "flash"
    assert choose_attention(ask(), replace(RTX5090, torch=(2, 5))) == "math"


@given(
    width=st.integers(1, 300),
    tokens=st.integers(1, 4096),
    kind=st.sampled_from(["fp16", "bf16", "fp32", "fp64"]),
    capability=st.sampled_from([(7, 0), (7, 5), (8, 0), (8, 6), (9, 0), (12, 0)]),
    causal=st.booleans(),
)
def test_inference_never_runs_a_slower_kernel_than_training(
    width: int, tokens: int, kind: str, capability: tuple[int, int], causal: bool
) -> None:
    order = ["flash", "efficient", "math"]
    target = Target(capability=capability, cudnn_attention=False)
    training = choose_attention(ask(tokens, width, dtype=kind, causal=causal), target)
    inference = ask(tokens, width, dtype=kind, causal=causal, requires_grad=False)
    assert order.index(choose_attention(inference, target)) <= order.index(training)
