"""Peak memory of a model without gradients: what Python's calls hold is alive too, as torch's profiler measures."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_memory import rise  # noqa: E402

import peakline as pk  # noqa: E402
from peakline.memory.footprint import footprint  # noqa: E402
from peakline.memory.lifetimes import Program, unroll  # noqa: E402
from peakline.memory.live import program_peak  # noqa: E402

TOKENS = 256
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 32,
}
CASES = {"Llama": "ForCausalLM", "GPTNeoX": "ForCausalLM", "Phi": "ForCausalLM",
         "Bert": "ForMaskedLM"}  # fmt: skip


def above_resident(program: Program) -> int:
    """Live bytes at the peak beyond what exists before the first operator."""
    return int(program_peak(program).bytes) - sum(int(program.sizes[key]) for key in program.resident)


@pytest.mark.parametrize("family", CASES)
def test_a_forward_pass_peaks_where_pytorch_does(family: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{family}Config")(**SIZES, max_position_embeddings=TOKENS)
    model = getattr(transformers, family + CASES[family])(config).eval()
    config.architectures = [type(model).__name__]
    config.save_pretrained(tmp_path)
    tokens = torch.randint(0, 32, (2, TOKENS))
    options = {} if family == "Bert" else {"use_cache": False}
    with torch.no_grad():
        measured = rise(lambda: model(tokens, **options))
    program = unroll(pk.inference(str(tmp_path), batch=2, seq=TOKENS, dtype="fp32"))
    assert above_resident(program.on(None)) == pytest.approx(measured, rel=0.005)
    assert above_resident(program) < 0.95 * measured  # what is still needed is not all that is alive


def test_calls_hold_their_arguments_in_eager_python_alone() -> None:
    """A layer's input (8,192 bytes a token), the looked-up embedding and the MLP's input, in Llama-3-8B."""
    eager, fused = (pk.prefill("llama-3-8b", batch=1, seq=4096, kernels=kernels) for kernels in ("eager", "fused"))
    assert footprint(unroll(eager), pk.device("a100-80gb")).live == program_peak(unroll(eager)).bytes + 3 * 4096 * 8192
    assert footprint(unroll(fused), pk.device("a100-80gb")).live == program_peak(unroll(fused)).bytes
    training = unroll(pk.training_step("gpt2", batch=1, seq=64))
    assert training.on(None).deaths == training.deaths
