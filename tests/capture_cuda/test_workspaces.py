"""Blocks inside operators: those of the built-in operators, and those that only a captured program shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="capture needs torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from peakline.models.builder import GraphBuilder  # noqa: E402
from peakline.models.capture.calls import Call, View  # noqa: E402
from peakline.models.capture.cuda import workspaces  # noqa: E402
from peakline.models.capture.cuda.attention_blocks import splits  # noqa: E402
from peakline.models.capture.cuda.reductions import reduction  # noqa: E402
from peakline.models.capture.target import Target  # noqa: E402
from peakline.models.dtypes import dtype  # noqa: E402
from peakline.models.operators import Node, operator_type  # noqa: E402
from peakline.models.operators.attention import attention  # noqa: E402
from peakline.models.operators.convolution import conv  # noqa: E402
from peakline.models.operators.embedding import embedding  # noqa: E402
from peakline.models.operators.reductions import (  # noqa: E402
    Multiprocessors,
    Reduction,
    contiguous_sum,
    staging,
)
from peakline.models.transforms.training import train  # noqa: E402

CUDA = Target()
H100 = Multiprocessors(CUDA.multiprocessors, CUDA.threads)
BF16 = torch.bfloat16
Record = Callable[..., Any]


def built(build: Callable[[GraphBuilder], Any], kind: str) -> dict[str, list[tuple[int, ...]]]:
    """Workspaces of the operators of a built training step, by type."""
    b = GraphBuilder("test", kind=kind, training=True)
    result = build(b)
    step = train(b.graph(), result.name, optimizer=None).flatten()
    found: dict[str, list[tuple[int, ...]]] = {}
    for _, operator in step.operators():
        sizes = operator_type(operator.type).workspace(Node.of(step, operator))
        found.setdefault(operator.type, []).append(tuple(int(size) for size in sizes))
    return found


# ---- as the built-in operators ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kv_heads", "width"), [(4, 64), (2, 80)])
def test_flash_backward_has_the_built_in_operators_blocks(record: Record, kv_heads: int, width: int) -> None:
    def build(b: GraphBuilder) -> Any:
        q = b.parameter("q", (2, 200, 4 * width))
        k, v = (b.parameter(n, (2, 200, kv_heads * width)) for n in "kv")
        return attention(b, q, k, v, heads=4, kv_heads=kv_heads, causal=True)

    def step() -> None:
        def projected(count: int) -> Any:
            return torch.randn(2, 200, count * width, dtype=BF16, requires_grad=True).view(2, 200, count, width)

        q, k, v = (projected(n).transpose(1, 2) for n in (4, kv_heads, kv_heads))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out.transpose(1, 2).reshape(2, 200, 4 * width).mul(2.0).sum().backward()

    (call,) = record(step).of("_scaled_dot_product_flash_attention_backward")
    assert workspaces(call, CUDA) == built(build, "bf16")["attention_backward"][0]


def test_a_gradient_that_lies_head_by_head_is_copied_for_flash(record: Record) -> None:
    def step() -> None:
        q, k, v = (torch.randn(2, 4, 64, 32, dtype=BF16, requires_grad=True) for _ in range(3))
        (F.scaled_dot_product_attention(q, k, v) * 2.0).sum().backward()

    (call,) = record(step).of("_scaled_dot_product_flash_attention_backward")
    assert workspaces(call, CUDA)[:2] == (2 * 4 * 64 * 32 * 2,) * 2  # gradient and result


def test_convolutions_have_the_built_in_operators_blocks(record: Record) -> None:
    shape = (2, 6, 12, 12)

    def step() -> None:
        nn.Conv2d(6, 10, 3, padding=1, dtype=BF16)(torch.randn(shape, dtype=BF16, requires_grad=True)).sum().backward()

    calls = record(step)
    blocks = built(lambda b: conv(b, b.parameter("x", shape), 10, 3, padding=1), "bf16")
    assert workspaces(calls.of("convolution")[0], CUDA) == blocks["convolution"][0]
    backward = workspaces(calls.of("convolution_backward")[0], CUDA)
    gradients = blocks["convolution_input_gradient"][0], blocks["convolution_weight_gradient"][0]
    assert backward[-1] == max(*gradients)[0]


def test_channels_last_convolutions_have_none(record: Record) -> None:
    def step() -> None:
        x = torch.randn(2, 8, 12, 12, dtype=BF16).to(memory_format=torch.channels_last)
        nn.Conv2d(8, 8, 3, dtype=BF16).to(memory_format=torch.channels_last)(x)

    assert workspaces(record(step).of("convolution")[0], CUDA) == ()


def test_embedding_backward_sorts_above_3072_ids(record: Record) -> None:
    def step(tokens: int) -> None:
        nn.Embedding(500, 16, dtype=BF16)(torch.zeros(tokens, dtype=torch.long)).sum().backward()

    def build(b: GraphBuilder) -> Any:
        return embedding(b, b.input("ids", (4000,), "int64"), 500, 16)

    (short,) = record(lambda: step(3000)).of("embedding_dense_backward")
    (long,) = record(lambda: step(4000)).of("embedding_dense_backward")
    assert workspaces(short, CUDA) == ()
    assert workspaces(long, CUDA) == built(build, "bf16")["embedding_backward"][0]


def test_softmax_backward_holds_the_product_of_gradient_and_result(record: Record) -> None:
    calls = record(lambda: torch.randn(8, 32, requires_grad=True).softmax(-1).sum().backward())
    assert workspaces(calls.of("_softmax_backward_data")[0], CUDA) == (8 * 32 * 4,)


def test_a_cpu_target_has_none_of_these(record: Record) -> None:
    calls = record(lambda: torch.randn(8, 32, requires_grad=True).softmax(-1).sum().backward())
    assert all(workspaces(call, Target(kind="cpu")) == () for call in calls)


# ---- attention -------------------------------------------------------------------------------------------------------
@given(st.integers(1, 400), st.integers(1, 150), st.integers(1, 64))
def test_keys_are_split_in_the_fewest_parts_that_nearly_fill_the_device(blocks: int, sms: int, keys: int) -> None:
    parts = splits(blocks, sms, keys)

    def busy(n: int) -> float:
        """Share of the places that are busy, over all rounds."""
        rounds = -(-blocks * n // (2 * sms))
        return blocks * n / (rounds * 2 * sms)

    assert 1 <= parts <= max(1, min(keys, 2 * sms, 128))
    if blocks >= 1.6 * sms:
        assert parts == 1
    elif parts > 1:
        assert -(-keys // parts) < -(-keys // (parts - 1))  # one part fewer would leave some with as many blocks
        assert busy(parts) >= 0.85 * busy(1)


def test_a_short_batch_splits_its_keys_and_dropout_forbids_it(record: Record) -> None:
    def step(p: float) -> None:
        q = torch.randn(1, 2, 128, 64, dtype=BF16)
        k, v = (torch.randn(1, 2, 4096, 64, dtype=BF16) for _ in range(2))
        F.scaled_dot_product_attention(q, k, v, dropout_p=p)

    with_splits = workspaces(record(lambda: step(0.0)).of("_scaled_dot_product_flash_attention")[0], CUDA)
    rows = with_splits[0] // 4
    assert rows % (2 * 128) == 0
    assert rows > 2 * 128
    assert with_splits[1] == rows * 64 * 4
    assert workspaces(record(lambda: step(0.5)).of("_scaled_dot_product_flash_attention")[0], CUDA) == ()


def test_memory_efficient_backward_keeps_a_float32_tile_of_dq_per_block_of_queries(record: Record) -> None:
    def step() -> None:
        q, k, v = (torch.randn(2, 4, 128, 64, dtype=BF16, requires_grad=True) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(128, 128, dtype=BF16)).sum().backward()

    (call,) = record(step).of("_scaled_dot_product_efficient_attention_backward")
    *_, rows, workspace = workspaces(call, CUDA)
    assert rows == 2 * 4 * 128 * 4
    assert workspace == 2 * 4 * 2 * (16 + 64 * 64 * 4)  # two tiles of 64 × 64, each with a lock and a counter


def test_wide_heads_accumulate_the_result_in_float32(record: Record) -> None:
    def step(width: int, kind: Any) -> None:
        q, k, v = (torch.randn(1, 2, 32, width, dtype=kind) for _ in range(3))
        F.scaled_dot_product_attention(q, k, v, attn_mask=torch.zeros(32, 32, dtype=kind))

    def blocks(width: int, kind: Any) -> tuple[int, ...]:
        (call,) = record(lambda: step(width, kind)).of("_scaled_dot_product_efficient_attention")
        return workspaces(call, CUDA)

    assert blocks(128, BF16) == ()
    assert blocks(136, BF16) == (2 * 32 * 136 * 4,)
    assert blocks(136, torch.float32) == ()


# ---- reductions ------------------------------------------------------------------------------------------------------
def bias_gradient(rows: int, columns: int) -> Reduction:
    return reduction(View(0, (rows, columns), (columns, 1), 0, dtype("bf16")), (0,))


def test_a_reduction_knows_whether_neighbours_are_added_together() -> None:
    across = reduction(View(0, (8, 64), (64, 1), 0, dtype("fp32")), (1,))
    down = bias_gradient(8, 64)
    assert (across.outputs, across.inputs, across.along_fastest) == (8, 64, True)
    assert (down.outputs, down.inputs, down.along_fastest) == (64, 8, False)
    whole = reduction(View(0, (4, 8, 2), (16, 2, 1), 0, dtype("fp32")), ())
    assert (whole.outputs, whole.inputs, whole.loads) == (1, 64, 1)  # one run of 64, too short to load by four
    assert reduction(View(0, (4, 80, 2), (160, 2, 1), 0, dtype("fp32")), ()).loads == 4


def test_a_bias_gradient_over_many_rows_meets_in_memory() -> None:
    """8,192 × 768: 32 threads of 4 outputs and 16 rows a block make 6 blocks; 128 share an output's rows on 132 SMs."""
    assert staging(bias_gradient(8192, 768), 4, H100) == 4 * 768 * 128 * 32 * 4
    assert staging(bias_gradient(256, 768), 4, H100) == 0


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.sampled_from([16, 40, 108, 132]))
def test_the_meeting_place_holds_every_share_and_is_absent_where_outputs_fill_the_device(
    rows: int, columns: int, sms: int
) -> None:
    size = staging(bias_gradient(rows, columns), 4, Multiprocessors(sms, 2048))
    assert size == 0 or size >= 2 * 4 * columns
    if rows < 256:  # a thread adds up at most 256 by itself
        assert size == 0


SIZES = st.sampled_from([1, 2, 3, 8, 64, 129, 768, 3072, 8192])


@given(st.lists(st.tuples(SIZES, SIZES, st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_a_sum_of_a_sweep_meets_as_each_of_its_configurations_recorded(
    dimensions: list[tuple[int, int, bool, bool]],
) -> None:
    kept = [stays for _, _, stays, _ in dimensions]
    sizes = [np.array([one, other]) if swept else one for one, other, _, swept in dimensions]
    found = np.broadcast_to(staging(contiguous_sum(sizes, kept), 4, H100), (2,))
    for i in range(2):
        shape = tuple(int(np.broadcast_to(size, (2,))[i]) for size in sizes)
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
        summed = tuple(axis for axis, stays in enumerate(kept) if not stays)
        view = View(0, shape, strides, 0, dtype("fp32"))
        assert found[i] == (staging(reduction(view, summed), 4, H100) if summed else 0)


def test_norms_of_lists_keep_a_sum_per_chunk(record: Record) -> None:
    calls = record(lambda: torch._foreach_norm([torch.zeros(200_000), torch.zeros(10)]))
    assert workspaces(calls.of("_foreach_norm")[0], CUDA) == (2 * 4 * 4,)


def test_a_reduced_loss_holds_its_elements_until_they_are_averaged() -> None:
    x = View(0, (64, 8), (8, 1), 0, dtype("fp32"))
    y = View(1, (), (), 0, dtype("fp32"))
    arguments = {"self": x, "target": x}
    mean = Call("aten.mse_loss.default", {**arguments, "reduction": 1}, (y,), (1,))
    none = Call("aten.mse_loss.default", {**arguments, "reduction": 0}, (x,), (1,))
    assert workspaces(mean, CUDA) == (64 * 8 * 4,)
    assert workspaces(none, CUDA) == ()
