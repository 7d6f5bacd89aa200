"""Lit-GPT's fine-tuning scripts (October 2023) as programs: LoRA, Adapter and Adapter v2, in bf16 or 4-bit.

Sources, at commit 0cc02af of Lightning-AI/litgpt, which published the table:
`lit_gpt/{config,model,rmsnorm,lora,adapter,adapter_v2,utils}.py`, `finetune/lora.py`; bitsandbytes 0.41
`autograd/_functions.py`; Lightning Fabric `wrappers.py` and `plugins/precision/{half,bitsandbytes}.py`. (The table
names commit 8641822, eleven days older; its Llama rows need the float32 RMSNorm of #606, merged between the two.)
What differs from transformers and peft:

* one matrix makes q, k and v; they are views, so attention keeps the whole of it through v, beside rotated q and k;
* the rotary tables are not bf16, so that products with them are float32 and cast back;
* the low-rank update runs through a grouped 1×1 convolution, then `index_copy`, which keeps its source;
* the head runs in chunks of 128 tokens; Fabric casts the logits to float32; the script's variable holds them;
* RMSNorm computes in float32 and keeps a float32 copy of its input;
* 4-bit layers (`MatMul4Bit` of bitsandbytes 0.41) keep their input, and the head is quantised too; the weights were
  quantised from float16 and expand to that before the cast to bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peakline.models.builder import GraphBuilder
from peakline.models.dtypes import DType, dtype
from peakline.models.graph import Block, Graph, Operator, Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.convolution import conv
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add, cast, mul, scale, unary, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.indexing import cat, contiguous, index_copy, split, zeros
from peakline.models.operators.loss import cross_entropy
from peakline.models.operators.matmul import linear
from peakline.models.operators.normalization import layer_norm
from peakline.models.operators.quantized import quantized_linear
from peakline.models.transforms.training import train

__all__ = ["METHODS", "LitConfig", "litgpt_step", "model_named"]

METHODS = ("lora", "adapter", "adapter-v2")
HEAD_CHUNK = 128  # finetune/lora.py: model(input_ids, lm_head_chunk_size=128)
RANK, LORA_DROPOUT = 8, 0.05  # finetune/lora.py: lora_r, lora_dropout; queries and values are adapted
PROMPT, FIRST_ADAPTED = 10, 2  # lit_gpt/adapter.py: adapter_prompt_length, adapter_start_layer

_FOUR_BIT: dict[str, Any] = {"keeps_input": True, "expands_through": "fp16"}


@dataclass(frozen=True)
class LitConfig:
    """The fields of `lit_gpt.Config` that shape the program."""

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab: int
    rotary: float
    llama: bool = False
    parallel: bool = True
    shared_norm: bool = False
    bias: bool = True
    head_bias: bool = False


def _llama(layers: int, hidden: int, heads: int, ffn: int, vocab: int = 32000) -> LitConfig:
    return LitConfig(layers, hidden, heads, ffn, vocab, 1.0, llama=True, parallel=False, bias=False)


def _neox(layers: int, hidden: int, heads: int, vocab: int) -> LitConfig:
    return LitConfig(layers, hidden, heads, 4 * hidden, vocab, 0.25)


_MODELS = {
    "phi-1.5": LitConfig(24, 2048, 32, 8192, 51200, 0.5, shared_norm=True, head_bias=True),
    "stablelm alpha 3b": _neox(16, 4096, 32, 50688),
    "stablelm alpha 7b": _neox(16, 6144, 48, 50432),
    "pythia 1b": _neox(16, 2048, 8, 50304), "pythia 1.4b": _neox(24, 2048, 16, 50304),
    "pythia 2.8b": _neox(32, 2560, 32, 50304), "pythia 6.9b": _neox(32, 4096, 32, 50432),
    "pythia 12b": _neox(36, 5120, 40, 50688),
    "llama-2 7b": _llama(32, 4096, 32, 11008), "llama-2 13b": _llama(40, 5120, 40, 13824),
    "open llama 3b": _llama(26, 3200, 32, 8640), "open llama 7b": _llama(32, 4096, 32, 11008),
    "codellama 7b": _llama(32, 4096, 32, 11008, 32016), "codellama 13b": _llama(40, 5120, 40, 13824, 32016),
}  # fmt: skip
"""`lit_gpt/config.py`; vocabularies padded to `padding_multiple`. Models with grouped queries are left out."""


def model_named(name: str) -> LitConfig | None:
    """The configuration of a model as a table names it (`Llama-2 7B`, `phi-1.5 (1.3B)`), or None."""
    cleaned = name.lower().split("(")[0].replace("llama 2", "llama-2").strip()
    return _MODELS.get(cleaned)


def litgpt_step(config: LitConfig, method: str, batch: int, seq: int, weight: str | None = None) -> Graph:
    """The first iteration of a fine-tuning script: forward, chunked loss, backward, AdamW.

    Args:
        config: the model.
        method: one of `METHODS`.
        batch, seq: sequences, and tokens of each.
        weight: format of the linear layers' weights (`nf4`, `nf4-dq`), or None for bf16.
    """
    script = _Script(
        GraphBuilder("lit-gpt", kind="bf16", training=True), config, method, dtype(weight) if weight else None
    )
    loss, logits = script.write(batch, seq)
    b = script.b
    for name, tensor in b.tensors.items():
        if tensor.role == "parameter" and tensor.trainable and name not in script.trained:
            b.tensors[name] = replace(tensor, trainable=False)
    step = train(b.graph(), loss.name, optimizer="adamw")
    last = step.blocks[-1].operators[-1]
    held = Operator("hold_logits", "release", tuple(t.name for t in logits), (), phase=last.phase)
    return replace(step, blocks=(*step.blocks, Block("the script's variables", (held,))))


@dataclass
class _Script:
    """One forward pass being written, as `GPT.forward` and its modules run it."""

    b: GraphBuilder
    config: LitConfig
    method: str
    weight: DType | None

    def __post_init__(self) -> None:
        self.trained: set[str] = set()
        self.tables: tuple[Tensor, Tensor] | None = None
        self.lora_index: Tensor | None = None

    @property
    def again(self) -> tuple[str, dict[str, Any]]:
        """Type and attributes of a frozen layer that is applied a second time."""
        return ("linear", {}) if self.weight is None else ("quantized_linear", {"scheme": "expand", **_FOUR_BIT})

    # ---- small pieces ------------------------------------------------------------------------------------------------
    def trainable(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A parameter the method trains."""
        tensor = self.b.parameter(name, shape)
        self.trained.add(tensor.name)
        return tensor

    def let_go(self, *tensors: Tensor) -> None:
        """The end of a Python function: its variables held these until here."""
        with self.b.scope("locals"):
            self.b.add("release", tensors, {}, name="release")

    def base(self, x: Tensor, width: int, name: str, *, bias: bool) -> Tensor:
        """A frozen linear layer: plain, or in four bits."""
        if self.weight is not None:
            return quantized_linear(self.b, x, width, self.weight, bias=bias, name=name, **_FOUR_BIT)
        return linear(self.b, x, width, bias=bias, name=name)

    def linear(self, x: Tensor, width: int, name: str, *, bias: bool) -> Tensor:
        """`AdapterV2Linear`: scale · (linear(x) + bias); a frozen linear layer under the other methods."""
        y = self.base(x, width, name, bias=bias)
        if self.method != "adapter-v2":
            return y
        with self.b.scope(name):
            y = add(self.b, y, self.trainable("adapter_bias", (width,)), name="add_bias")
            return mul(self.b, self.trainable("adapter_scale", (width,)), y, name="times_scale")

    def norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm, or lit-gpt's RMSNorm, written out in float32."""
        b, train_it = self.b, self.method == "adapter-v2"
        if not self.config.llama:
            y = layer_norm(b, x, name=name)
            if train_it:
                self.trained |= {f"{b.module}.{name}.{p}".lstrip(".") for p in ("weight", "bias")}
            return y
        with b.scope(name):
            wide = cast(b, x, "fp32", name="float")
            rows = (*x.shape[:-1], 1)
            (mean,) = b.add("mean", (mul(b, wide, wide, name="square"),), {"out": (rows, "fp32")}, name="mean")
            normed = mul(b, wide, unary(b, "rsqrt", scale(b, mean, name="eps")), name="normalise")
            weight = b.parameter("weight", (x.shape[-1],))
            if train_it:
                self.trained.add(weight.name)
            y = cast(b, mul(b, weight, normed, name="times_weight"), x.dtype)
            self.let_go(wide, normed)
        return y

    # ---- the model ---------------------------------------------------------------------------------------------------
    def write(self, batch: int, seq: int) -> tuple[Tensor, list[Tensor]]:
        """The loss, and the logits that the script holds."""
        b, c = self.b, self.config
        ids = b.input("input_ids", (batch, seq))
        width = int(c.rotary * (c.hidden // c.heads))
        self.tables = tuple(b.input(n, (1, seq, 1, width), "fp32", "buffer") for n in ("cos", "sin"))  # type: ignore[assignment]
        x = embedding(b, ids, c.vocab, c.hidden, name="wte")
        alone = min(3, c.layers - 1)  # the first layers' inputs need no gradient
        for i in range(alone):
            with b.scope(f"first.{i}"):
                x = self.block(x, adapted=i >= FIRST_ADAPTED)
        with b.layers("h", c.layers - alone, x) as layer:
            layer.x = self.block(layer.x, adapted=True)
        x = self.norm(layer.result, "ln_f")
        return self.loss(x, batch, seq)

    def block(self, x: Tensor, *, adapted: bool) -> Tensor:
        """`Block.forward`."""
        b, c = self.b, self.config
        n1 = self.norm(x, "norm_1")
        h = self.attention(n1, adapted=adapted)
        if c.parallel:
            n2 = n1 if c.shared_norm else self.norm(x, "norm_2")
            y = add(b, add(b, self.mlp(n2), h, name="add_h"), x, name="add_x")
            self.let_go(n1, n2, h)
            return y
        x = add(b, x, h, name="add_h")
        n2 = self.norm(x, "norm_2")
        m = self.mlp(n2)
        self.let_go(n2)
        x = add(b, x, m, name="add_mlp")
        self.let_go(n1, h)
        return x

    def mlp(self, x: Tensor) -> Tensor:
        """`LLaMAMLP.forward` or `GptNeoxMLP.forward`."""
        b, c = self.b, self.config
        with b.scope("mlp"):
            if c.llama:
                gate, up = self.linear(x, c.ffn, "fc_1", bias=c.bias), self.linear(x, c.ffn, "fc_2", bias=c.bias)
                inner = mul(b, activation(b, "silu", gate), up, name="gated")
            else:
                inner = activation(b, "gelu", self.linear(x, c.ffn, "fc", bias=c.bias))
            y = self.linear(inner, c.hidden, "proj", bias=c.bias)
            self.let_go(inner)
        return y

    # ---- attention ---------------------------------------------------------------------------------------------------
    def attention(self, x: Tensor, *, adapted: bool) -> Tensor:
        """`CausalSelfAttention.forward`, with the adapter's prompt where the method has one."""
        b, c = self.b, self.config
        with b.scope("attn"):
            packed = self.packed(x)
            q, k, v = split(b, packed, (c.hidden,) * 3, name="split_qkv")
            q, q_roped = self.rotated(q, "q")
            k, k_roped = self.rotated(k, "k")
            y = attention(b, q, k, v, heads=c.heads, kv_heads=c.heads, causal=True, backend="flash")
            if self.method != "lora" and adapted:
                y = self.prompted(y, q)
            elif x.shape[0] == 1:  # flash attention's output has q's strides, [heads, tokens]: `reshape` copies
                y = contiguous(b, y, name="reshape")
            out = self.linear(y, c.hidden, "proj", bias=c.bias)
            self.let_go(packed, q, k, q_roped, k_roped, y)
        return out

    def packed(self, x: Tensor) -> Tensor:
        """q, k and v of one matrix, under LoRA with the update of `LoRAQKVLinear`."""
        b, c = self.b, self.config
        if self.method != "lora":
            return self.linear(x, 3 * c.hidden, "attn", bias=c.bias)
        with b.scope("attn"):
            y = self.base(x, 3 * c.hidden, "linear", bias=c.bias)
            low = linear(b, dropout(b, x, LORA_DROPOUT), 2 * RANK, name="lora_A")
            self.trained |= {f"{b.module}.lora_A.weight", f"{b.module}.lora_B.weight"}
            batch, seq = x.shape[:2]
            low = view(b, low, (batch, 2 * RANK, seq), name="transpose")
            high = conv(b, low, 2 * c.hidden, 1, groups=2, bias=False, name="lora_B")
            source: Tensor = view(b, high, (batch * seq, 2 * c.hidden), name="flat")
            if batch != 1:
                source = contiguous(b, source, name="reshape")
            blank = zeros(b, (batch * seq, 3 * c.hidden), x.dtype)
            index = zeros(b, (2 * c.hidden,), "int64", name="lora_ind")
            padded = view(b, index_copy(b, blank, index, source), (batch, seq, 3 * c.hidden), name="unflat")
            self.let_go(blank)
            update = scale(b, padded, name="scaling")
            out = add(b, y, update, name="add_lora")
            self.let_go(y, high, update)
        return out

    def rotated(self, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
        """`apply_rope` on the first part of each head and `torch.cat` with the rest; also the rotated part."""
        b, c = self.b, self.config
        assert self.tables is not None
        cos, sin = self.tables
        head, width = c.hidden // c.heads, int(cos.shape[-1])
        with b.scope(f"{name}_rope"):
            heads = view(b, x, (*x.shape[:2], c.heads, head), name="heads")
            first, *rest = split(b, heads, (width, head - width) if width < head else (width,), name="rope_n_elem")
            left, right = split(b, first, (width // 2, width // 2), name="halves")
            turned = cat(b, (unary(b, "neg", right), left))
            straight = mul(b, first, cos, name="times_cos")
            crossed = mul(b, turned, sin, name="times_sin")
            roped32 = add(b, straight, crossed, name="roped")
            roped = cast(b, roped32, x.dtype, name="type_as")
            self.let_go(turned, roped32)
            whole = cat(b, (roped, *rest), name="whole")
            return view(b, whole, x.shape, name="flat"), roped

    def prompted(self, y: Tensor, q: Tensor) -> Tensor:
        """y + gate · attention(q, prompt): `adapter.CausalSelfAttention.scaled_dot_product_attention`."""
        b, c = self.b, self.config
        prompt = self.trainable("adapter_wte.weight", (PROMPT, c.hidden))
        gate = self.trainable("gating_factor", (1, 1, c.heads, 1))
        packed = self.linear_again(view(b, prompt, (1, PROMPT, c.hidden), name="prefix"))
        _, k, v = split(b, packed, (c.hidden,) * 3, name="split_prefix")
        ay = attention(
            b, q, k, v, heads=c.heads, kv_heads=c.heads, causal=False, backend="efficient", name="prompt_attention"
        )
        shape = (*ay.shape[:2], c.heads, c.hidden // c.heads)
        gated = mul(b, gate, view(b, ay, shape, name="ay_heads"), name="times_gate")
        return view(b, add(b, view(b, y, shape, name="y_heads"), gated, name="add_prompt"), y.shape, name="y_flat")

    def linear_again(self, x: Tensor) -> Tensor:
        """The layer's `attn` matrix applied to the prompt."""
        b, c = self.b, self.config
        weight = b.tensors[f"{b.module}.attn.weight"]
        with b.scope("attn_prefix"):
            shape = (*x.shape[:-1], 3 * c.hidden)
            kind, attributes = self.again
            return b.add(kind, (x, weight), {"out": (shape, x.dtype)}, name="attn", attributes=attributes)[0]

    # ---- the head ----------------------------------------------------------------------------------------------------
    def loss(self, x: Tensor, batch: int, seq: int) -> tuple[Tensor, list[Tensor]]:
        """The head in chunks of 128 tokens, Fabric's cast of its outputs to float32, `chunked_cross_entropy`."""
        b, c = self.b, self.config
        lengths = [min(HEAD_CHUNK, seq - start) for start in range(0, seq, HEAD_CHUNK)]
        outputs = {f"out{i}": ((batch, n, c.hidden), x.dtype) for i, n in enumerate(lengths)}
        chunks = b.add("split", (x,), outputs, name="head_chunks", in_place=dict.fromkeys(outputs, x))
        first = self.linear(chunks[0], c.vocab, "lm_head", bias=c.head_bias)
        logits = [first, *(self.head_again(chunk) for chunk in chunks[1:])]
        held = [cast(b, t, "fp32", name="convert_output") for t in logits]
        self.let_go(*logits)
        losses = []
        for chunk, n in zip(held, lengths):
            labels = b.input("labels", (batch * n,))
            losses.append(cross_entropy(b, view(b, chunk, (batch * n, c.vocab)), labels, upcast=False))
        return _sum(b, losses), held

    def head_again(self, x: Tensor) -> Tensor:
        """The head on a further chunk."""
        b, c = self.b, self.config
        p = {name: b.tensors.get(f"lm_head.{name}") for name in ("weight", "bias", "adapter_bias", "adapter_scale")}
        inputs = [x, *(t for name in ("weight", "bias") if (t := p[name]) is not None)]
        kind, attributes = self.again
        with b.scope("lm_head"):
            outputs = {"out": ((*x.shape[:-1], c.vocab), x.dtype)}
            (y,) = b.add(kind, inputs, outputs, name="linear", attributes=attributes)
            if p["adapter_bias"] is None or p["adapter_scale"] is None:
                return y
            return mul(b, p["adapter_scale"], add(b, y, p["adapter_bias"], name="add_bias"), name="times_scale")


def _sum(b: GraphBuilder, scalars: Sequence[Tensor]) -> Tensor:
    total = scalars[0]
    for scalar in scalars[1:]:
        total = add(b, total, scalar, name="add_losses")
    return total
