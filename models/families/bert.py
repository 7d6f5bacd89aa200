"""BERT and RoBERTa encoders with a masked-language, pre-training or classification head.

Source of the program: transformers 5 `models/bert/modeling_bert.py`, `models/roberta/modeling_roberta.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from peakline.models.builder import GraphBuilder
from peakline.models.dims import Dim, prod
from peakline.models.families.fields import Fields, positive
from peakline.models.families.layers import Projections, note_length, sequence
from peakline.models.graph import Tensor
from peakline.models.operators.attention import attention
from peakline.models.operators.dropout import dropout
from peakline.models.operators.elementwise import activation, add, unary, view
from peakline.models.operators.embedding import embedding
from peakline.models.operators.indexing import take
from peakline.models.operators.loss import cross_entropy
from peakline.models.operators.matmul import linear, product
from peakline.models.operators.normalization import layer_norm
from peakline.models.workload import Family, Workload

__all__ = ["FAMILY", "BertConfig", "build"]

HEADS = ("mlm", "pretraining", "classification", "none")


@dataclass(frozen=True)
class BertConfig:
    """An encoder.

    Attributes:
        vocab, hidden, layers, heads, ffn: sizes.
        max_positions: longest sequence; `position_rows`: rows of the position table (RoBERTa has two more).
        type_vocab: segment types.
        activation: Hugging Face name.
        hidden_dropout, attention_dropout, classifier_dropout: probabilities.
        head: `mlm` (masked-language head tied to the embedding), `pretraining` (that and next-sentence),
            `classification` (pooler, then `labels` classes), `none` (the last hidden states and the pooler).
        labels: classes of the classification head.
        style: `bert` or `roberta`, for names and heads.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    max_positions: int = 512
    position_rows: int = 0
    type_vocab: int = 2
    activation: str = "gelu"
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    head: Literal["mlm", "pretraining", "classification", "none"] = "mlm"
    labels: int = 2
    style: Literal["bert", "roberta"] = "bert"

    def __post_init__(self) -> None:
        positive(self, "vocab", "hidden", "layers", "heads", "ffn", "max_positions", "type_vocab", "labels")
        if not self.position_rows:
            object.__setattr__(self, "position_rows", self.max_positions)
        if self.hidden % self.heads:
            raise ValueError(f"hidden size {self.hidden} is not divisible by {self.heads} attention heads")
        if self.head not in HEADS:
            raise ValueError(f"field 'head' is {self.head!r}; accepted: {', '.join(HEADS)}")
        for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"field {name!r} is {getattr(self, name)!r}; accepted: a probability below 1")


def build(b: GraphBuilder, config: BertConfig, workload: Workload) -> Tensor:
    """Write the encoder and its head; the loss in training, the head's output otherwise.

    Raises:
        ValueError: `seq` is missing, or there is no head to train.
    """
    tokens, c = sequence(workload), config
    note_length(b, tokens, c.max_positions)
    if workload.training and c.head == "none":
        raise ValueError(f"field 'head' is 'none', which cannot be trained; accepted: {', '.join(HEADS[:-1])}")
    project = Projections(b, workload)
    p = c.hidden_dropout if workload.dropout else 0.0
    x = _embedded(b, c, workload, tokens, p)
    with b.layers(f"{c.style}.encoder.layer", c.layers, x) as layer:
        layer.x = _layer(b, project, c, workload, layer.x, p)
    result = _head(b, c, workload, layer.result)
    project.finish()
    return result


def _embedded(b: GraphBuilder, c: BertConfig, workload: Workload, tokens: Dim, p: float) -> Tensor:
    """Words, segments and positions, added, normed, dropped out."""
    shape = (workload.batch, tokens)
    ids = b.input("input_ids", shape)
    segments = b.input("token_type_ids", shape)
    positions = b.input("position_ids", (1, tokens) if c.style == "bert" else shape)
    with b.scope(f"{c.style}.embeddings"):
        x = embedding(b, ids, c.vocab, c.hidden, name="word_embeddings")
        x = add(b, x, embedding(b, segments, c.type_vocab, c.hidden, name="token_type_embeddings"))
        x = add(b, x, embedding(b, positions, c.position_rows, c.hidden, name="position_embeddings"))
        return dropout(b, layer_norm(b, x, name="LayerNorm"), p)


def _layer(b: GraphBuilder, project: Projections, c: BertConfig, workload: Workload, x: Tensor, p: float) -> Tensor:
    """Self-attention and MLP, each with dropout, residual and a layer norm after it."""
    with b.scope("attention"):
        with b.scope("self"):
            q, k, v = (project(x, c.hidden, name=name, bias=True) for name in ("query", "key", "value"))
            y = attention(
                b,
                q,
                k,
                v,
                heads=c.heads,
                kv_heads=c.heads,
                causal=False,
                backend=workload.backend(),
                p_dropout=c.attention_dropout if workload.dropout else 0.0,
                upcast=False,
            )
        x = _closed(b, project, c, y, x, p)
    with b.scope("intermediate"):
        y = activation(b, c.activation, project(x, c.ffn, name="dense", bias=True))
    return _closed(b, project, c, y, x, p)


def _closed(b: GraphBuilder, project: Projections, c: BertConfig, y: Tensor, residual: Tensor, p: float) -> Tensor:
    """LayerNorm(dropout(dense(y)) + residual)."""
    with b.scope("output"):
        y = dropout(b, project(y, c.hidden, name="dense", bias=True), p)
        return layer_norm(b, add(b, y, residual, name="add_residual"), name="LayerNorm")


# ---- heads -----------------------------------------------------------------------------------------------------------
def _head(b: GraphBuilder, c: BertConfig, workload: Workload, x: Tensor) -> Tensor:
    if c.head == "mlm":
        return _masked_lm(b, c, workload, x)
    if c.head == "classification" and c.style == "roberta":
        return _roberta_classifier(b, c, workload, x)
    pooled = _pooled(b, c, x)
    if c.head == "none":
        return x
    if c.head == "pretraining":
        words = _masked_lm(b, c, workload, x)
        logits = linear(b, pooled, 2, name="cls.seq_relationship", bias=True)
        if not workload.training:
            return words
        with b.scope("next_sentence"):
            return add(b, words, _classified(b, logits, "next_sentence_label"), name="total_loss")
    p = c.classifier_dropout if workload.dropout else 0.0
    logits = linear(b, dropout(b, pooled, p), c.labels, name="classifier", bias=True)
    return _classified(b, logits, "labels") if workload.training else logits


def _pooled(b: GraphBuilder, c: BertConfig, x: Tensor) -> Tensor:
    """tanh(dense(first token))."""
    with b.scope(f"{c.style}.pooler"):
        first = take(b, x, (x.shape[0], x.shape[2]), name="first_token")
        return unary(b, "tanh", linear(b, first, c.hidden, name="dense", bias=True))


def _roberta_classifier(b: GraphBuilder, c: BertConfig, workload: Workload, x: Tensor) -> Tensor:
    """RoBERTa's own head on the first token: dropout, dense, tanh, dropout, projection."""
    p = c.classifier_dropout if workload.dropout else 0.0
    with b.scope("classifier"):
        first = take(b, x, (x.shape[0], x.shape[2]), name="first_token")
        y = unary(b, "tanh", linear(b, dropout(b, first, p), c.hidden, name="dense", bias=True))
        logits = linear(b, dropout(b, y, p), c.labels, name="out_proj", bias=True)
    return _classified(b, logits, "labels") if workload.training else logits


def _classified(b: GraphBuilder, logits: Tensor, labels: str) -> Tensor:
    return cross_entropy(b, logits, b.input(labels, (logits.shape[0],)), upcast=False)


def _masked_lm(b: GraphBuilder, c: BertConfig, workload: Workload, x: Tensor) -> Tensor:
    """Dense, activation, norm, and the product with the embedding's matrix; the loss over all positions in training."""
    bert = c.style == "bert"
    with b.scope("cls.predictions" if bert else "lm_head"):
        with b.scope("transform" if bert else ""):
            y = activation(b, c.activation, linear(b, x, c.hidden, name="dense", bias=True), name="transform_act_fn")
            y = layer_norm(b, y, name="LayerNorm" if bert else "layer_norm")
        table = b.tensors[f"{c.style}.embeddings.word_embeddings.weight"]
        bias = b.parameter("bias", (c.vocab,))
        logits = product(b, "linear", [y, table, bias], (*y.shape[:-1], c.vocab))
    if not workload.training:
        return logits
    labels = b.input("labels", y.shape[:-1])
    rows = prod(logits.shape[:-1])
    return cross_entropy(b, view(b, logits, (rows, c.vocab)), labels, upcast=False)


def from_huggingface(values: dict[str, Any]) -> BertConfig:
    """Read a BERT or RoBERTa `config.json`; the head is the one `architectures` names, masked-language by default.

    Raises:
        ValueError: a field is missing or cannot be.
    """
    f = Fields(values)
    names = [str(a) for a in values.get("architectures") or ()]
    named = names[0] if names else ""
    style: Literal["bert", "roberta"] = "bert"
    if values.get("model_type") in ("roberta", "xlm-roberta") or "Roberta" in named:
        style = "roberta"
    hidden_dropout = f.number("hidden_dropout_prob", default=0.1)
    rows = f.int("max_position_embeddings", default=512)
    labels = values.get("id2label") or values.get("label2id")
    return BertConfig(
        vocab=f.int("vocab_size"),
        hidden=f.int("hidden_size"),
        layers=f.int("num_hidden_layers"),
        heads=f.int("num_attention_heads"),
        ffn=f.int("intermediate_size"),
        max_positions=rows - (2 if style == "roberta" else 0),  # RoBERTa's positions start after the padding index
        position_rows=rows,
        type_vocab=f.int("type_vocab_size", default=2),
        activation=f.text("hidden_act", default="gelu"),
        hidden_dropout=hidden_dropout,
        attention_dropout=f.number("attention_probs_dropout_prob", default=0.1),
        classifier_dropout=f.number("classifier_dropout", default=hidden_dropout),
        head=_head_named(named),
        labels=len(labels) if isinstance(labels, dict) and labels else f.int("num_labels", default=2),
        style=style,
    )


def _head_named(architecture: str) -> Literal["mlm", "pretraining", "classification", "none"]:
    if architecture.endswith("ForSequenceClassification"):
        return "classification"
    if architecture.endswith("ForPreTraining"):
        return "pretraining"
    return "none" if architecture.endswith("Model") else "mlm"


FAMILY = Family(
    name="bert",
    kind="encoder",
    config=BertConfig,
    build=build,
    phases=("training", "inference"),
    architectures=(
        "BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertModel",
        "RobertaForMaskedLM", "RobertaForSequenceClassification", "RobertaModel",
        "XLMRobertaForMaskedLM", "XLMRobertaForSequenceClassification", "XLMRobertaModel",
    ),
    model_types=("bert", "roberta", "xlm-roberta"),
    from_huggingface=from_huggingface,
)  # fmt: skip
