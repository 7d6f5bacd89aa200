"""The runs that `peakline record` measures, as data: what is trained, at which sizes, in which formats.

Order is value: a recording that runs out of time has measured the first ones. Sizes are written out, so that a change
of a library's defaults does not change a case. The configurations are those of the published models where one is named
in the case (Hugging Face's config.json), or cut to fewer layers or narrower ones to fit a size.
"""

from __future__ import annotations

from typing import Any

from peakline.record.schema import ConfigValue, MemoryCase

__all__ = ["MEMORY_CASES", "STEP_CASES", "memory_cases"]

Config = dict[str, ConfigValue]

# ---- architectures: model_type, class, and the smallest and a published configuration ------------------------------
_LLAMA_TINY: Config = {
    "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 4096, "max_position_embeddings": 1024, "tie_word_embeddings": False,
}  # fmt: skip
_TINYLLAMA: Config = {  # TinyLlama-1.1B
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 16384, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_7B: Config = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA_32_1B: Config = {  # Llama-3.2-1B
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_theta": 500000.0, "tie_word_embeddings": True,
}  # fmt: skip
_GPT2_TINY: Config = {"n_embd": 256, "n_layer": 4, "n_head": 8, "n_positions": 512, "vocab_size": 4096,
                       "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
_GPT2_MEDIUM: Config = {"n_embd": 1024, "n_layer": 24, "n_head": 16, "n_positions": 1024, "vocab_size": 50257}
_GPT2: Config = {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024, "vocab_size": 50257}
_BERT_TINY: Config = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "vocab_size": 4096, "max_position_embeddings": 512,
}  # fmt: skip
_BERT_BASE: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 30522, "max_position_embeddings": 512,
}  # fmt: skip
_BERT_LARGE: Config = {**_BERT_BASE, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                       "num_attention_heads": 16}  # fmt: skip
_VIT_TINY: Config = {
    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3,
    "image_size": 96, "patch_size": 16, "num_labels": 100,
}  # fmt: skip
_VIT_BASE: Config = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16, "num_labels": 1000,
}  # fmt: skip
_T5_TINY: Config = {
    "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_layers": 3, "num_decoder_layers": 3, "num_heads": 8,
    "vocab_size": 4096, "feed_forward_proj": "relu", "decoder_start_token_id": 0,
}  # fmt: skip
_T5_LARGE: Config = {
    "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16,
    "vocab_size": 32128, "feed_forward_proj": "relu", "decoder_start_token_id": 0,
}  # fmt: skip
_WHISPER_TINY: Config = {  # a narrower Whisper with a fifth of the audio
    "d_model": 128, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 512, "decoder_ffn_dim": 512, "num_mel_bins": 80,
    "vocab_size": 4096, "max_source_positions": 300, "max_target_positions": 128, "pad_token_id": 0,
    "decoder_start_token_id": 1, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_WHISPER_SMALL: Config = {
    "d_model": 768, "encoder_layers": 12, "decoder_layers": 12, "encoder_attention_heads": 12,
    "decoder_attention_heads": 12, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "num_mel_bins": 80,
    "vocab_size": 51865, "max_source_positions": 1500, "max_target_positions": 448,
}  # fmt: skip
_MAMBA_TINY: Config = {"hidden_size": 128, "num_hidden_layers": 2, "state_size": 16, "vocab_size": 2048}
_MAMBA_130M: Config = {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "vocab_size": 50280}
_QWEN3_TINY: Config = {**_LLAMA_TINY, "head_dim": 32}
_QWEN3_8L: Config = {
    "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 8, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}  # fmt: skip
_QWEN3_06B: Config = {**_QWEN3_8L, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
_GEMMA2_TINY: Config = {
    "hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 8192, "max_position_embeddings": 1024,
    "sliding_window": 64, "query_pre_attn_scalar": 64,
}  # fmt: skip
_GEMMA2_2B: Config = {
    "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000, "max_position_embeddings": 8192,
    "sliding_window": 4096, "query_pre_attn_scalar": 256,
}  # fmt: skip
_MIXTRAL_TINY: Config = {
    **_LLAMA_TINY, "num_hidden_layers": 2, "intermediate_size": 512, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip
_MIXTRAL_2L: Config = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
_MISTRAL_6L: Config = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 6, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768, "sliding_window": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip
_OPT_TINY: Config = {
    "hidden_size": 256, "ffn_dim": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 4096,
    "max_position_embeddings": 512, "word_embed_proj_dim": 256,
}  # fmt: skip
_OPT_13B: Config = {  # OPT-1.3B
    "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24, "num_attention_heads": 32, "vocab_size": 50272,
    "max_position_embeddings": 2048, "word_embed_proj_dim": 2048,
}  # fmt: skip
_RESNET: Config = {"layers": (3, 4, 6, 3), "width": 64, "classes": 1000}
_UNET_SMALL: Config = {"width": 32, "multipliers": (1, 2, 4), "blocks": 2, "channels": 3, "attention_from": 2}
_UNET: Config = {"width": 192, "multipliers": (1, 2, 3, 4), "blocks": 2, "channels": 3, "attention_from": 1}
_DIT_SMALL: Config = {"hidden": 192, "depth": 4, "heads": 3, "patch": 2, "channels": 4, "classes": 100}
_DIT_XL: Config = {"hidden": 1152, "depth": 28, "heads": 16, "patch": 2, "channels": 4, "classes": 1000}

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "bert": "BertForMaskedLM",
    "t5": "T5ForConditionalGeneration",
    "vit": "ViTForImageClassification",
    "whisper": "WhisperForConditionalGeneration",
    "mamba": "MambaForCausalLM",
}
_OURS = {"resnet": "ResNet", "unet": "UNet", "dit": "DiT"}
_LOSS = {"resnet": "cross_entropy", "unet": "mse", "dit": "mse"}


def _case(name: str, family: str, config: Config, **settings: Any) -> MemoryCase:
    """A case of one architecture; what is not said has the defaults of `MemoryCase`."""
    ours = family in _OURS
    return MemoryCase(
        name=name,
        source="peakline" if ours else "transformers",
        model_type=family,
        architecture=_OURS[family] if ours else _CLASSES[family],
        config=config,
        **{
            "attention": None if ours else "sdpa",
            "loss": _LOSS.get(family, "model"),
            "steps": 3 if "scale" in settings else 2,  # small ones are steady in their second step
            **settings,
        },
    )


_SMALL = [
    _case("llama-tiny", "llama", _LLAMA_TINY, batch=4, seq=256, dtype="fp32"),
    _case("gpt2-tiny", "gpt2", _GPT2_TINY, batch=4, seq=256, dtype="fp32"),
    _case("resnet50-small", "resnet", _RESNET, batch=4, image=128, dtype="fp32", optimizer="momentum"),
    _case("bert-tiny", "bert", _BERT_TINY, batch=8, seq=128, dtype="fp32"),
    _case("vit-tiny", "vit", _VIT_TINY, batch=16, image=96, dtype="fp32"),
    _case("t5-tiny", "t5", _T5_TINY, batch=4, seq=128, source_seq=192, dtype="fp32"),
    _case("llama-tiny-checkpointed", "llama", _LLAMA_TINY, batch=4, seq=256, dtype="fp32", checkpointing=True),
    _case("llama-tiny-bf16", "llama", _LLAMA_TINY, batch=4, seq=256, dtype="bf16"),
    _case("gpt2-tiny-autocast", "gpt2", _GPT2_TINY, batch=4, seq=256, dtype="fp32", autocast="bf16"),
    _case("whisper-tiny", "whisper", _WHISPER_TINY, batch=4, seq=64, source_seq=600, dtype="fp32"),
    _case("qwen3-tiny", "qwen3", _QWEN3_TINY, batch=4, seq=256, dtype="bf16", optimizer="sgd"),
    _case("gemma2-tiny", "gemma2", _GEMMA2_TINY, batch=2, seq=256, dtype="fp32", attention="eager"),
    _case("mixtral-tiny", "mixtral", _MIXTRAL_TINY, batch=2, seq=128, dtype="fp32", optimizer="sgd"),
    _case("mamba-tiny", "mamba", _MAMBA_TINY, batch=2, seq=64, dtype="fp32", attention=None),
    _case("unet-small", "unet", _UNET_SMALL, batch=4, image=32, dtype="fp32"),
    _case("dit-small", "dit", _DIT_SMALL, batch=8, image=32, dtype="fp32"),
    _case("opt-tiny", "opt", _OPT_TINY, batch=4, seq=256, dtype="fp32", optimizer="adam-loop"),
    _case("mistral-tiny", "mistral", {**_LLAMA_TINY, "sliding_window": 128}, batch=2, seq=256, dtype="bf16",
          optimizer="adamw-foreach"),
    _case("llama-tiny-accumulated", "llama", _LLAMA_TINY, batch=2, seq=256, dtype="fp32", accumulation=3),
    _case("gpt2-tiny-eager", "gpt2", _GPT2_TINY, batch=4, seq=256, dtype="fp32", attention="eager",
          zero_grad="before_backward"),
    _case("llama-tiny-fused", "llama", _LLAMA_TINY, batch=4, seq=256, dtype="fp32", optimizer="adamw-fused"),
    _case("bert-tiny-checkpointed", "bert", _BERT_TINY, batch=8, seq=128, dtype="bf16", checkpointing=True),
    _case("t5-tiny-adagrad", "t5", _T5_TINY, batch=4, seq=128, source_seq=128, dtype="fp32", optimizer="adagrad"),
    _case("vit-tiny-rmsprop", "vit", _VIT_TINY, batch=8, image=96, dtype="fp32", optimizer="rmsprop"),
    _case("gpt2-tiny-gradients", "gpt2", _GPT2_TINY, batch=4, seq=256, dtype="fp32", optimizer=None),
    _case("llama-tiny-inference", "llama", _LLAMA_TINY, batch=4, seq=512, dtype="bf16", mode="inference",
          optimizer=None),
    _case("resnet50-small-inference", "resnet", _RESNET, batch=8, image=128, dtype="fp32", mode="inference",
          optimizer=None),
]  # fmt: skip

_MEDIUM = [
    _case("gpt2-b8", "gpt2", _GPT2, batch=8, seq=1024, dtype="bf16", scale="medium"),
    _case("resnet50-b64", "resnet", _RESNET, batch=64, image=224, dtype="fp32", optimizer="momentum", scale="medium"),
    _case("bert-base-b32", "bert", _BERT_BASE, batch=32, seq=512, dtype="fp32", autocast="bf16", scale="medium"),
    _case("vit-base-b64", "vit", _VIT_BASE, batch=64, image=224, dtype="bf16", scale="medium"),
    _case("whisper-small-b4", "whisper", _WHISPER_SMALL, batch=4, seq=128, source_seq=3000, dtype="bf16",
          scale="medium"),
    _case("t5-large-b4", "t5", _T5_LARGE, batch=4, seq=128, source_seq=512, dtype="bf16", scale="medium"),
    _case("qwen3-0.6b-b2", "qwen3", _QWEN3_06B, batch=2, seq=1024, dtype="bf16", scale="medium"),
    _case("unet-b8", "unet", _UNET, batch=8, image=64, dtype="fp32", scale="medium"),
    _case("dit-xl-b8", "dit", _DIT_XL, batch=8, image=32, dtype="fp32", autocast="bf16", scale="medium"),
    _case("gpt2-medium-b4-loop", "gpt2", _GPT2_MEDIUM, batch=4, seq=1024, dtype="fp32", optimizer="adam-loop",
          scale="medium"),
    _case("mamba-130m-b4", "mamba", _MAMBA_130M, batch=4, seq=256, dtype="bf16", attention=None, scale="medium"),
    _case("resnet50-b64-autocast", "resnet", _RESNET, batch=64, image=224, dtype="fp32", autocast="fp16",
          optimizer="sgd", scale="medium"),
    _case("gpt2-b8-eager", "gpt2", _GPT2, batch=8, seq=1024, dtype="bf16", attention="eager", scale="medium"),
    _case("bert-large-b16-checkpointed", "bert", _BERT_LARGE, batch=16, seq=512, dtype="bf16", checkpointing=True,
          scale="medium"),
    _case("gpt2-b4-expandable", "gpt2", _GPT2, batch=4, seq=1024, dtype="bf16",
          allocator="expandable_segments:True", scale="medium"),
    _case("vit-base-b256-inference", "vit", _VIT_BASE, batch=256, image=224, dtype="bf16", mode="inference",
          optimizer=None, scale="medium"),
]  # fmt: skip

_LARGE = [
    _case("llama-1.1b-b4", "llama", _TINYLLAMA, batch=4, seq=2048, dtype="bf16", scale="large"),
    _case("llama-1.1b-b4-checkpointed", "llama", _TINYLLAMA, batch=4, seq=2048, dtype="bf16", checkpointing=True,
          scale="large"),
    _case("llama-1.1b-b2-autocast", "llama", _TINYLLAMA, batch=2, seq=2048, dtype="fp32", autocast="bf16",
          scale="large"),
    _case("llama-3.2-1b-b2", "llama", _LLAMA_32_1B, batch=2, seq=2048, dtype="bf16", scale="large"),
    _case("llama-7b-b1-checkpointed", "llama", _LLAMA_7B, batch=1, seq=2048, dtype="bf16", checkpointing=True,
          scale="large"),
    _case("gpt2-medium-b8", "gpt2", _GPT2_MEDIUM, batch=8, seq=1024, dtype="bf16", scale="large"),
    _case("opt-1.3b-b4-sgd", "opt", _OPT_13B, batch=4, seq=1024, dtype="fp16", optimizer="sgd", scale="large"),
    _case("mistral-6L-b1", "mistral", _MISTRAL_6L, batch=1, seq=4096, dtype="bf16", scale="large"),
    _case("qwen3-8L-b2", "qwen3", _QWEN3_8L, batch=2, seq=2048, dtype="bf16", scale="large"),
    _case("gemma2-2b-b1", "gemma2", _GEMMA2_2B, batch=1, seq=2048, dtype="bf16", attention="eager", scale="large"),
    _case("mixtral-2L-b1-sgd", "mixtral", _MIXTRAL_2L, batch=1, seq=1024, dtype="bf16", optimizer="sgd",
          scale="large"),
    _case("llama-1.1b-b2-fused", "llama", _TINYLLAMA, batch=2, seq=2048, dtype="bf16", optimizer="adamw-fused",
          scale="large"),
    _case("llama-1.1b-b2-sgd", "llama", _TINYLLAMA, batch=2, seq=2048, dtype="bf16", optimizer="sgd", scale="large"),
    _case("llama-1.1b-b1-16k-checkpointed", "llama", _TINYLLAMA, batch=1, seq=16384, dtype="bf16", checkpointing=True,
          scale="large"),
    _case("llama-1.1b-b2-accumulated", "llama", _TINYLLAMA, batch=2, seq=2048, dtype="bf16", accumulation=4,
          scale="large"),
    _case("llama-1.1b-b4-expandable", "llama", _TINYLLAMA, batch=4, seq=2048, dtype="bf16",
          allocator="expandable_segments:True", scale="large"),
    _case("resnet50-b512", "resnet", _RESNET, batch=512, image=224, dtype="fp32", autocast="bf16",
          optimizer="momentum", scale="large"),
    _case("dit-xl-b64", "dit", _DIT_XL, batch=64, image=32, dtype="fp32", autocast="bf16", scale="large"),
    _case("llama-7b-b1", "llama", _LLAMA_7B, batch=1, seq=4096, dtype="bf16", scale="large"),
    _case("llama-7b-b1-inference", "llama", _LLAMA_7B, batch=1, seq=4096, dtype="bf16", mode="inference",
          optimizer=None, scale="large"),
    _case("opt-1.3b-b8-eager", "opt", _OPT_13B, batch=8, seq=1024, dtype="bf16", attention="eager", scale="large"),
    _case("llama-7b-b16-too-large", "llama", _LLAMA_7B, batch=16, seq=4096, dtype="fp32", scale="large"),
]  # fmt: skip


def _interleaved(*queues: tuple[list[MemoryCase], int]) -> tuple[MemoryCase, ...]:
    """From each queue in turn as many as it says, so that a short recording has something of each."""
    left = [(list(cases), share) for cases, share in queues]
    found: list[MemoryCase] = []
    while any(cases for cases, _ in left):
        for cases, share in left:
            found += cases[:share]
            del cases[:share]
    return tuple(found)


MEMORY_CASES: tuple[MemoryCase, ...] = _interleaved((_LARGE, 2), (_MEDIUM, 1), (_SMALL, 1))

STEP_CASES: tuple[str, ...] = (
    "llama-1.1b-b4", "gpt2-medium-b8", "resnet50-b64", "bert-base-b32", "vit-base-b64", "llama-1.1b-b4-checkpointed",
    "llama-7b-b1-checkpointed", "llama-7b-b1-inference", "llama-1.1b-b2-fused", "gpt2-b8", "dit-xl-b8", "unet-b8",
    "qwen3-0.6b-b2", "t5-large-b4", "mixtral-2L-b1-sgd", "llama-1.1b-b2-autocast", "gpt2-b8-eager", "whisper-small-b4",
    "opt-1.3b-b4-sgd", "llama-tiny", "gpt2-tiny", "resnet50-small", "bert-tiny", "vit-tiny", "unet-small", "dit-small",
    "llama-tiny-bf16", "t5-tiny", "llama-tiny-inference",
)  # fmt: skip
"""Names of the memory cases whose steps are timed too, most valuable first."""


def memory_cases(device: str) -> tuple[MemoryCase, ...]:
    """The cases a device runs: all of them on CUDA, the small ones on a CPU."""
    return MEMORY_CASES if device == "cuda" else tuple(case for case in MEMORY_CASES if case.scale == "small")
