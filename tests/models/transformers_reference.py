"""What transformers and PyTorch themselves say of a model: parameters, FLOPs, bytes kept for backward.

Used by the tests of the language-model families; needs torch and transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.graph import Graph
from peakline.models.huggingface import from_config
from peakline.models.kernels import Stream
from peakline.models.operators import Node, operator_type
from peakline.models.transforms.training import train
from peakline.models.workload import Workload

# ---- ours ------------------------------------------------------------------------------------------------------------


def build(config: dict[str, Any], workload: Workload) -> tuple[Graph, str]:
    """The forward graph of a `config.json` mapping, and the name of its result."""
    family, parsed = from_config(config)
    b = GraphBuilder("tiny", kind=workload.kind, training=workload.training, autocast=workload.autocast)
    result = family.build(b, parsed, workload)
    return b.graph(), result.name


def product_flops(graph: Graph) -> int:
    """FLOPs of the matrix products, convolutions and attention of every layer."""
    return sum(
        int(kernel.flops) * block.repeat
        for block, operator in graph.operators()
        for kernel in operator_type(operator.type).kernels(Node.of(graph, operator))
        if not isinstance(kernel, Stream)
    )


def kept_for_backward(forward: Graph, loss: str, recomputation: Any = "none") -> dict[str, int]:
    """Storages that backward reads and forward made or was given, parameters aside, with their bytes."""
    step = train(forward, loss, optimizer=None, recomputation=recomputation).flatten()
    later = [op for op in step.blocks[0].operators if op.phase in ("backward", "recompute")]
    made_backward = {o for op in later for o in op.outputs}
    kept = {}
    for operator in later:
        for name in operator.inputs:
            tensor = step.tensors[name]
            root = step.tensors[tensor.storage] if tensor.storage else tensor
            if name not in made_backward and root.role != "parameter":
                kept[root.name] = int(root.bytes)
    return kept


# ---- theirs ----------------------------------------------------------------------------------------------------------


def torch_model(
    config: dict[str, Any],
    *,
    device: str = "cpu",
    attention: str = "eager",
    kind: str = "float32",
    experts: str | None = None,
) -> Any:
    """The transformers model with a language-modelling head, random weights.

    `experts="eager"` runs experts one by one, with products that `FlopCounterMode` knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    values = dict(config)
    hf = AutoConfig.for_model(values.pop("model_type"), **values)
    auto: Any = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}.get(
        config["model_type"], AutoModelForCausalLM
    )
    extra = {} if config["model_type"] == "mamba" else {"attn_implementation": attention}
    if experts is not None:
        extra["experts_implementation"] = experts
    with torch.device(device):
        return auto.from_config(hf, dtype=getattr(torch, kind), **extra)


def step(config: dict[str, Any], batch: int, seq: int, *, model: Any = None) -> Callable[[], Any]:
    """A forward pass with its loss, on random tokens."""
    import torch

    model = torch_model(config) if model is None else model
    torch.manual_seed(0)
    ids = torch.randint(3, 100, (batch, seq))
    options = {} if config["model_type"] in ("bert", "t5") else {"use_cache": False}
    return lambda: model.train()(input_ids=ids, labels=ids, **options).loss


def torch_parameters(model: Any) -> dict[str, int]:
    """Elements of every parameter, tied ones once."""
    return {name: p.numel() for name, p in model.named_parameters()}


def torch_flops(run: Callable[[], Any]) -> int:
    """What `FlopCounterMode` counts while `run` runs."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def torch_kept(model: Any, run: Callable[[], Any]) -> int:
    """Bytes of the distinct storages autograd saves while `run` runs, parameters aside."""
    import torch

    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()
    total = sum(s.nbytes() for s in storages.values())
    del result
    return total
