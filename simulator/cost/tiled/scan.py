"""Traffic of the selective scan of Mamba (A. Gu, T. Dao, arXiv:2312.00752, §3.3): states stay on the chip.

    for each sequence, each tile of CHANNELS channels    load their rows of A and their skip weight
        for each token                                   load x and dt of the channels, B and C of the token
            h = exp(dt·A)·h + dt·x·B,  y = Σ h·C (+ skip·x),  store y
        store the last state

B and C are shared by all channels, so every tile of channels reads them again:

    loads = e·batch·length·(2·channels + 2·states·⌈channels/CHANNELS⌉) + 4·batch·channels·states (+ 4·batch·channels).

Materialising the states would move batch·length·channels·states elements instead, `states` (16) times as many as y.
"""

from __future__ import annotations

from peakline.cost.tiled.traffic import Traffic, ceil_div

__all__ = ["selective_scan"]


def selective_scan(
    batch: int, length: int, channels: int, states: int, *, tile_channels: int, element: int, skip: bool = True
) -> Traffic:
    """Bytes of y and of the last state.

    Args:
        batch, length, channels, states: sizes.
        tile_channels: channels of one program.
        element: bytes of one element of x, dt, B, C and y. A, the skip weights and the state are float32.
        skip: whether y also takes skip·x.
    """
    tiles = ceil_div(channels, tile_channels)
    along = element * batch * length * channels
    shared = element * batch * length * states * tiles
    loads = {
        "x": along,
        "dt": along,
        "a": 4 * batch * channels * states,
        "b": shared,
        "c": shared,
        "skip": 4 * batch * channels if skip else 0,
    }
    return Traffic(loads, {"y": along, "state": 4 * batch * channels * states})
