"""Capture: any torch module and training step, without a GPU and without weights, as a `Graph`."""
