"""A stream of allocations like that of eager training steps of a Llama-like model: many blocks, few sizes."""

from __future__ import annotations

from peakline.memory.events import EventBuilder, EventStream


def training_steps(
    steps: int = 3, layers: int = 32, hidden: int = 4096, ffn: int = 11008, tokens: int = 2048, vocab: int = 32000
) -> EventStream:
    """Weights and optimizer states, then `steps` times forward, backward and a foreach optimizer step, in bf16."""
    builder = EventBuilder()
    names = iter(range(10**9))

    def new(size: int) -> int:
        name = next(names)
        builder.alloc(name, size)
        return name

    def drop(*blocks: int) -> None:
        for block in blocks:
            builder.free(block)

    layer = [hidden * hidden * 2] * 4 + [hidden * ffn * 2] * 3 + [hidden * 2] * 2
    weights = layer * layers + [vocab * hidden * 2] * 2
    for size in weights:
        new(size), new(size), new(size)
    row = tokens * hidden * 2
    for _ in range(steps):
        saved = []
        for _ in range(layers):
            kept = []
            for _ in range(2):  # a norm in float32, then what it multiplies
                upcast, square, mean = new(row * 2), new(row * 2), new(tokens * 4)
                drop(square)
                kept += [upcast, mean, new(row * 2), new(row)]
            kept += [new(row) for _ in range(3)]
            for _ in range(2):  # rotary embedding
                half, other, whole = new(row // 2), new(row // 2), new(row)
                drop(half, other)
                kept.append(whole)
            kept += [new(row), new(tokens * 32 * 4), new(16), new(8), new(row)]
            kept += [new(tokens * ffn * 2) for _ in range(4)]
            kept.append(new(row))
            saved.append(kept)
        logits, upcast, log_softmax = new(tokens * vocab * 2), new(tokens * vocab * 4), new(tokens * vocab * 4)
        gradient = new(tokens * vocab * 4)
        drop(log_softmax, upcast, logits)
        running = new(row)
        drop(gradient)
        gradients = []
        for kept in reversed(saved):
            gradients += [new(size) for size in layer]
            for number, block in enumerate(reversed(kept)):
                following = new((row, tokens * ffn * 2, row * 2)[number % 3])
                drop(block, running)
                running = following
        drop(running)
        gradients += [new(vocab * hidden * 2) for _ in range(2)]
        updates = [new(size) for size in weights]
        drop(*updates, *gradients)
    return builder.build()
