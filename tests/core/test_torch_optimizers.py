"""States and temporaries of optimizers, against `torch.optim` and transformers running on a CPU.

Not counted: step counters of `foreach` and loop forms, which live on the host, and the few scalars of the CPU's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import feed_forward, language_model, stack, swiglu  # noqa: E402
from torch import optim  # noqa: E402
from torch_memory import predicted_rise, rise, step_graph  # noqa: E402
from torch_networks import LanguageModel, Stack, SwiGlu  # noqa: E402

from peakline.cost.program import price_program  # noqa: E402
from peakline.hardware import device  # noqa: E402
from peakline.memory.lifetimes import unroll  # noqa: E402
from peakline.memory.live import occupancy  # noqa: E402
from peakline.models.graph import Graph  # noqa: E402

SCALARS = 64
"""Bytes of step counters and norms that a step makes on the host."""

OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: optim.SGD(p, 1e-3, foreach=True),
    "sgd-loop": lambda p: optim.SGD(p, 1e-3, foreach=False),
    "momentum": lambda p: optim.SGD(p, 1e-3, momentum=0.9, foreach=True),
    "momentum-loop": lambda p: optim.SGD(p, 1e-3, momentum=0.9, foreach=False),
    "adam": lambda p: optim.Adam(p, foreach=True),
    "adamw": lambda p: optim.AdamW(p, foreach=True),
    "adamw-loop": lambda p: optim.AdamW(p, foreach=False),
    "adamw-fused": lambda p: optim.AdamW(p, fused=True),
    "rmsprop": lambda p: optim.RMSprop(p, foreach=True),
    "rmsprop-loop": lambda p: optim.RMSprop(p, foreach=False),
    "adagrad": lambda p: optim.Adagrad(p, foreach=True),
    "adagrad-loop": lambda p: optim.Adagrad(p, foreach=False),
}


def state_bytes(optimizer: Any, *, counters: bool) -> int:
    """Bytes of an optimizer's state tensors."""
    values = (v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))
    return sum(v.nbytes for v in values if counters or v.dim())


def predicted_temporaries(graph: Graph) -> int:
    """Bytes the optimizer's operators hold above what exists when the first of them starts."""
    program = unroll(graph)
    table = occupancy(program)
    live = table.counts @ np.asarray(table.sizes)
    passes = [
        i for i, s in enumerate(program.steps) if s.operator.phase == "optimizer" and s.operator.type != "release"
    ]
    before = [
        key
        for key, (born, dies) in enumerate(zip(program.births, program.deaths))
        if key in program.resident or 0 <= born < passes[0] <= dies
    ]
    return int(live[passes].max()) - sum(int(program.sizes[key]) for key in before)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_and_temporaries(name: str, kind: str) -> None:
    module = LanguageModel().to(torch.float32 if kind == "fp32" else torch.bfloat16)
    optimizer = OPTIMIZERS[name](module.parameters())
    module.loss()().backward()
    temporaries = rise(optimizer.step)
    graph = step_graph(language_model(), kind=kind, optimizer=name)
    assert graph.total_bytes("optimizer_state") == state_bytes(optimizer, counters=name.endswith("fused"))
    assert abs(predicted_temporaries(graph) - temporaries) <= SCALARS


@pytest.mark.parametrize("name", ["adamw", "adamw-loop", "adagrad", "momentum"])
def test_a_whole_step_peaks_where_pytorch_does(name: str) -> None:
    module = LanguageModel()
    forward, optimizer = module.loss(), OPTIMIZERS[name](module.parameters())

    def step() -> None:
        loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    graph = step_graph(language_model(), optimizer=name)
    assert abs(predicted_rise(graph) - rise(step)) <= SCALARS


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_adafactor_as_transformers_runs_it(kind: str) -> None:
    transformers = pytest.importorskip("transformers.optimization")
    module = LanguageModel().to(torch.float32 if kind == "fp32" else torch.bfloat16)
    optimizer = transformers.Adafactor(module.parameters())
    module.loss()().backward()
    optimizer.step()
    temporaries = rise(optimizer.step)
    graph = step_graph(language_model(), kind=kind, optimizer="adafactor")
    assert graph.total_bytes("optimizer_state") == state_bytes(optimizer, counters=False)
    vectors = 4 * 900  # row factors, counted in whole elements of the longest side
    assert abs(predicted_temporaries(graph) - temporaries) <= vectors + SCALARS


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_muon_keeps_a_momentum_and_works_in_bfloat16(kind: str) -> None:
    dtype = torch.float32 if kind == "fp32" else torch.bfloat16
    module = Stack(SwiGlu, 2).to(dtype)
    matrices = [p for layer in module.layers for p in layer.parameters() if p.ndim == 2]
    optimizer = optim.Muon(matrices)
    module.loss(dtype)().backward()
    temporaries = rise(optimizer.step)
    graph = step_graph(stack(swiglu, 2), kind=kind, optimizer="muon")
    inside = {t.name for t in graph.of_role("optimizer_state") if t.name.endswith(".momentum")}
    states = sum(int(graph.tensors[n].bytes) * graph.layers(n) for n in inside)
    packing = 7200 if kind == "fp32" else 0  # a transposing copy works in blocks of 60 × 60, on a CPU
    assert states == state_bytes(optimizer, counters=False)
    assert abs(predicted_temporaries(graph) + packing - temporaries) <= SCALARS


def test_muons_products_are_those_that_torch_counts_flattened_or_not() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = Stack(SwiGlu, 3)
    optimizer = optim.Muon([p for layer in module.layers for p in layer.parameters() if p.ndim == 2])
    module.loss(torch.float32)().backward()
    with FlopCounterMode(display=False) as counter:
        optimizer.step()
    graph = step_graph(stack(swiglu, 3), kind="fp32", optimizer="muon")
    for form in (graph, graph.flatten()):
        operators = price_program(form, device("h100-sxm")).operators
        counted = sum(o.executions * o.flops for o in operators if o.type == "newton_schulz")
        assert counted == counter.get_total_flops()


def test_master_weights_cost_eighteen_bytes_per_parameter() -> None:
    """bf16 weight 2, float32 gradient 4, master 4, two Adam states 4 each (arXiv:2205.05198 §2, Megatron-LM)."""
    graph = step_graph(stack(feed_forward, 2), kind="bf16", optimizer="adam-fused", master_weights=True)
    counters = sum(4 * graph.layers(t.name) for t in graph.of_role("optimizer_state") if t.name.endswith(".step"))
    roles = ("parameter", "gradient", "optimizer_state")
    assert graph.total_bytes(*roles) - counters == 18 * graph.parameters


def test_eight_bit_states_keep_a_scale_per_block_of_256() -> None:
    """bitsandbytes: one byte and 1/256 float32 per element and state; float32 below 4,096 elements."""
    graph = step_graph(stack(feed_forward, 2), kind="bf16", optimizer="adamw8bit")
    for parameter in graph.of_role("parameter"):
        state = graph.tensors[f"{parameter.name}.state1"]
        n = int(parameter.elements)
        assert state.bytes == (n + 4 * -(-n // 256) if n >= 4096 else 4 * n)
