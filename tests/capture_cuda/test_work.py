"""What each operator computes and moves: against torch's FLOP counter, the built-in operators, and literal counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="capture needs torch")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from peakline.models.builder import GraphBuilder  # noqa: E402
from peakline.models.capture.calls import Call, View  # noqa: E402
from peakline.models.capture.target import Target  # noqa: E402
from peakline.models.capture.work import work  # noqa: E402
from peakline.models.capture.work.dispatch import known  # noqa: E402
from peakline.models.capture.work.lists import launches  # noqa: E402
from peakline.models.dtypes import dtype  # noqa: E402
from peakline.models.kernels import Attention, Convolution, Gemm, GroupedGemm, Stream  # noqa: E402
from peakline.models.operators import Node, operator_type  # noqa: E402
from peakline.models.operators.convolution import conv  # noqa: E402
from peakline.models.operators.embedding import embedding  # noqa: E402
from peakline.models.operators.loss import cross_entropy  # noqa: E402
from peakline.models.operators.matmul import linear  # noqa: E402
from peakline.models.operators.normalization import batch_norm, group_norm, layer_norm, rms_norm  # noqa: E402
from peakline.models.operators.pooling import avg_pool, interpolate, max_pool  # noqa: E402
from peakline.models.operators.softmax import softmax  # noqa: E402
from peakline.models.transforms.training import train  # noqa: E402

CUDA = Target()
BF16 = torch.bfloat16
Record = Callable[..., Any]


def flops(calls: list[Call]) -> int:
    kernels = [kernel for call in calls for kernel in work(call, CUDA).kernels]
    return sum(int(k.flops) for k in kernels if isinstance(k, Gemm | GroupedGemm | Convolution | Attention))


# ---- products --------------------------------------------------------------------------------------------------------
MODULES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(12, 20), (3, 5, 12)),
    "bilinear form": (lambda: nn.Bilinear(6, 6, 4), (3, 6)),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, padding=1, stride=2), (2, 4, 9, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 5, 5)),
    "three dimensions": (lambda: nn.Conv3d(2, 4, 3), (2, 2, 5, 5, 5)),
    "perceptron": (lambda: nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.LayerNorm(8)), (4, 8)),
    "residual": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
        (2, 3, 8, 8),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_flops_of_forward_and_backward_are_those_torch_counts(record: Record, name: str) -> None:
    make, shape = MODULES[name]

    def step() -> None:
        module, x = make(), torch.randn(shape, requires_grad=True)
        (module(x, x) if isinstance(module, nn.Bilinear) else module(x)).sum().backward()

    with FlopCounterMode(display=False) as counter:
        step()
    assert flops(record(step)) == counter.get_total_flops()


def test_groups_compute_what_as_many_narrow_convolutions_do(record: Record) -> None:
    def step(groups: int, channels: int) -> None:
        x = torch.randn(2, channels, 9, 9, requires_grad=True)
        nn.Conv2d(channels, 2 * channels, 3, groups=groups)(x).sum().backward()

    assert flops(record(lambda: step(4, 8))) == 4 * flops(record(lambda: step(1, 2)))


def test_attention_computes_what_torch_counts_for_the_same_kernel(record: Record) -> None:
    counted = []

    def step() -> None:
        q, k, v = (torch.randn(2, 4, 48, 16, requires_grad=True, dtype=BF16) for _ in range(3))
        with FlopCounterMode(display=False) as counter:
            F.scaled_dot_product_attention(q, k, v).sum().backward()
        counted.append(counter.get_total_flops())

    assert [flops(record(step))] == counted
    assert counted[0] == 2 * 2 * 4 * 48 * 48 * 16 * 7  # two products forward, five backward


@given(st.integers(1, 20), st.integers(1, 4))
def test_a_causal_mask_leaves_every_pair_up_to_the_diagonal(tokens: int, batch: int) -> None:
    q = View(0, (batch, 2, tokens, 8), (16 * tokens, 8 * tokens, 8, 1), 0, dtype("bf16"))
    arguments = {"query": q, "key": q, "value": q, "is_causal": True}
    lse = View(1, (batch, 2, tokens), (2 * tokens, tokens, 1), 0, dtype("fp32"))
    call = Call("aten._scaled_dot_product_flash_attention.default", arguments, (q, lse), (1,))
    pairs = sum(1 for i in range(tokens) for j in range(tokens) if j <= i)
    assert work(call, CUDA).kernels[0].flops == 2 * batch * 2 * pairs * 16


def test_recurrent_and_grouped_products_are_counted() -> None:
    x = View(0, (10, 8), (8, 1), 0, dtype("bf16"))
    w = View(1, (3, 8, 6), (48, 6, 1), 0, dtype("bf16"))
    y = View(2, (10, 6), (6, 1), 0, dtype("bf16"))
    call = Call("aten._grouped_mm.default", {"self": x, "mat2": w}, (y,), (2,))
    assert work(call, CUDA).kernels == (GroupedGemm(3, 10, 6, 8, x.dtype, w.dtype, y.dtype),)


# ---- the built-in operators ------------------------------------------------------------------------------------------
def built(build: Callable[[GraphBuilder], Any], kind: str) -> list[tuple[Any, int, int]]:
    """(kernels, reads, writes) of every operator with a kernel in a built training step, as a sorted list."""
    b = GraphBuilder("test", kind=kind, training=True)
    result = build(b)
    step = train(b.graph(), result.name, optimizer=None).flatten()
    found = []
    for _, operator in step.operators():
        node, type_ = Node.of(step, operator), operator_type(operator.type)
        kernels = type_.kernels(node)
        if (kernels and node.outputs[0].shape != ()) or operator.type == "nll_loss":
            found.append((repr(kernels), int(type_.reads(node)), int(type_.writes(node))))
    return sorted(found)


def captured(calls: list[Call], ignore: tuple[str, ...]) -> list[tuple[Any, int, int]]:
    found = []
    for call in calls:
        done = work(call, CUDA)
        if done.kernels and call.packet.removeprefix("aten.") not in ignore:
            found.append((repr(done.kernels), done.reads, done.writes))
    return sorted(found)


X = (4, 6, 32)
IMAGE = (2, 8, 8, 8)
K = "bf16"
CASES: dict[str, tuple[Callable[[GraphBuilder], Any], Callable[[], Any], tuple[int, ...]]] = {
    "layer_norm": (lambda b: layer_norm(b, b.input("x", X, K)), lambda: nn.LayerNorm(32, dtype=BF16), X),
    "rms_norm": (lambda b: rms_norm(b, b.input("x", X, K)), lambda: nn.RMSNorm(32, dtype=BF16), X),
    "softmax": (lambda b: softmax(b, b.input("x", X, K)), lambda: nn.Softmax(-1), X),
    "group_norm": (lambda b: group_norm(b, b.input("x", IMAGE, K), 2), lambda: nn.GroupNorm(2, 8, dtype=BF16), IMAGE),
    "convolution": (
        lambda b: conv(b, b.input("x", IMAGE, K), 16, 3, padding=1), lambda: nn.Conv2d(8, 16, 3, padding=1, dtype=BF16),
        IMAGE,
    ),
    "max_pool": (lambda b: max_pool(b, b.input("x", IMAGE, K), 2), lambda: nn.MaxPool2d(2), IMAGE),
    "avg_pool": (lambda b: avg_pool(b, b.input("x", IMAGE, K), 2), lambda: nn.AvgPool2d(2), IMAGE),
    "interpolate": (lambda b: interpolate(b, b.input("x", IMAGE, K)), lambda: nn.Upsample(scale_factor=2), IMAGE),
    "linear": (lambda b: linear(b, b.input("x", X, K), 16, bias=True), lambda: nn.Linear(32, 16, dtype=BF16), X),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_forward_work_is_the_built_in_operators(record: Record, name: str) -> None:
    build, make, shape = CASES[name]
    b = GraphBuilder("test", kind="bf16", training=True, eager=False)
    build(b)
    graph = b.graph().flatten()
    expected = []
    for _, operator in graph.operators():
        node, kind = Node.of(graph, operator), operator_type(operator.type)
        expected.append((repr(kind.kernels(node)), int(kind.reads(node)), int(kind.writes(node))))
    setup = ("empty", "fill_", "zero_", "uniform_", "randn", "ones_like", "normal_", "arange")
    found = captured(record(lambda: make()(torch.randn(shape, dtype=BF16, requires_grad=True))), setup)
    assert found == sorted(expected)


def test_embedding_and_cross_entropy_work_is_the_built_in_operators(record: Record) -> None:
    def build(b: GraphBuilder) -> Any:
        x = embedding(b, b.input("ids", (4, 8), "int64"), 64, 32)
        return cross_entropy(b, linear(b, x, 50), b.input("labels", (4, 8), "int64"), upcast=False)

    def step() -> None:
        ids, labels = torch.zeros(4, 8, dtype=torch.long), torch.zeros(32, dtype=torch.long)
        table, head = nn.Embedding(64, 32, dtype=BF16), nn.Linear(32, 50, bias=False, dtype=BF16)
        F.cross_entropy(head(table(ids)).flatten(0, 1), labels).backward()

    setup = ("empty", "normal_", "uniform_", "zeros", "ones_like")
    found, expected = captured(record(step), setup), built(build, "bf16")
    for one in found:
        assert any(one[1:] == other[1:] for other in expected), one
    streams = [kernels for kernels, _, _ in expected if "Stream" in kernels]
    assert sorted(kernels for kernels, _, _ in found if "Stream" in kernels) == sorted(streams)


def test_batch_norm_in_training_reads_its_input_twice(record: Record) -> None:
    b = GraphBuilder("test", kind="fp32", training=True)
    batch_norm(b, b.input("x", IMAGE, "fp32"))
    graph = b.graph().flatten()
    (node,) = [Node.of(graph, operator) for _, operator in graph.operators()]
    calls = record(lambda: nn.BatchNorm2d(8)(torch.randn(IMAGE)))
    assert work(calls.of("cudnn_batch_norm")[0], CUDA).kernels == operator_type("batch_norm").kernels(node)


# ---- bytes -----------------------------------------------------------------------------------------------------------
def test_views_and_allocations_are_no_work(record: Record) -> None:
    def step() -> None:
        x = torch.empty(4, 6)
        x.view(6, 4).t().unsqueeze(0).expand(3, 4, 6)[:, 1:].permute(2, 0, 1).chunk(2)
        x.detach().reshape(24).split(5)

    assert all(work(call, CUDA) == work(call, CUDA).__class__((), 0, 0) for call in record(step))


def test_an_expanded_operand_is_read_once(record: Record) -> None:
    (call,) = record(lambda: torch.zeros(1, 64).expand(32, 64) + torch.zeros(32, 64)).of("add")
    done = work(call, CUDA)
    assert (done.reads, done.writes) == (64 * 4 + 32 * 64 * 4, 32 * 64 * 4)


def test_a_slice_is_read_in_part_and_in_place_operators_read_and_write(record: Record) -> None:
    (call,) = record(lambda: torch.zeros(32, 64)[:, :8].add_(torch.zeros(32, 8))).of("add_")
    done = work(call, CUDA)
    assert (done.reads, done.writes) == (2 * 32 * 8 * 4, 32 * 8 * 4)


def test_a_copy_does_not_read_where_it_writes(record: Record) -> None:
    (call,) = record(lambda: torch.zeros(8, 8).copy_(torch.zeros(8, 8, dtype=BF16))).of("copy_")
    assert (work(call, CUDA).reads, work(call, CUDA).writes) == (128, 256)


def test_a_scatter_moves_as_much_as_it_is_given(record: Record) -> None:
    def step() -> None:
        torch.zeros(1000, 8).index_add_(0, torch.zeros(5, dtype=torch.long), torch.zeros(5, 8))

    done = work(record(step).of("index_add_")[0], CUDA)
    assert (done.reads, done.writes) == (5 * 8 + 160 + 160, 160)


def test_an_unknown_operator_is_one_pass_over_what_it_sees() -> None:
    x = View(0, (4, 4), (4, 1), 0, dtype("fp32"))
    y = View(1, (4, 4), (4, 1), 0, dtype("fp32"))
    done = work(Call("mylib.mystery.default", {"a": x, "b": x}, (y,), (1,)), CUDA)
    assert done.kernels == (Stream(16, x.dtype),)
    assert (done.reads, done.writes) == (64, 64)
    assert not known("mylib.mystery")


# ---- lists of tensors ------------------------------------------------------------------------------------------------
@given(st.lists(st.integers(0, 3_000_000), min_size=1, max_size=150), st.integers(1, 5))
def test_multi_tensor_kernels_start_when_320_chunks_or_their_tensors_are_full(sizes: list[int], lists: int) -> None:
    room = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}[lists]
    started, chunks, tensors = 0, 0, 0
    flat = [(t, c, -(-n // 65_536)) for t, n in enumerate(sizes) for c in range(-(-n // 65_536))]
    for _, chunk, of in flat:
        if chunk == 0:
            tensors += 1
        elif chunks == 0:
            tensors = 1  # a tensor cut by the launch before begins the next one
        chunks += 1
        if chunks == 320 or (tensors == room and chunk == of - 1):
            started, chunks, tensors = started + 1, 0, 0
    assert launches(sizes, lists) == started + (chunks > 0)


def test_a_fused_optimizer_reads_and_writes_its_states(record: Record) -> None:
    def step() -> None:
        layer = nn.Linear(32, 32, bias=False)
        optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
        layer(torch.randn(2, 32)).sum().backward()
        optimizer.step()

    (call,) = record(step).of("_fused_adamw_")
    done = work(call, CUDA)
    assert (done.reads, done.writes) == (4 * 4096 + 4, 3 * 4096 + 4)
    assert done.kernels[0].launches == 1


def test_foreach_norms_end_with_a_kernel_that_adds_partial_sums(record: Record) -> None:
    calls = record(lambda: torch._foreach_norm([torch.zeros(100_000), torch.zeros(10)]))
    assert work(calls.of("_foreach_norm")[0], CUDA).kernels[0].launches == 2
