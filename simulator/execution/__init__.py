"""Carrying plans out in torch: recomputation, moves to the host or to files, optimizers in turns, layers streamed.

`applied.apply` (or `plan.apply`) for a training step, `streaming.stream_layers` for inference,
`optimizers.offload_optimizer` for any optimizer that updates each parameter for itself.
"""
