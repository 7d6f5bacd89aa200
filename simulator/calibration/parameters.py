"""Which constants a calibration fits for each kind of kernel, and how far each may go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PARAMETERS", "Bounds"]


class Bounds(NamedTuple):
    """A constant's physical limits, and whether it is a share of a published peak.

    Attributes:
        low, high: the fit stays between them; in the constant's unit (see `peakline.cost.gpu.GpuConstants`).
        share: a fraction of a figure of the device file.
        why: where the limits come from.
    """

    low: float
    high: float
    share: bool
    why: str


_LAUNCH = Bounds(0.8e-6, 1e-4, False, "an empty kernel of a CUDA graph to an eager launch through a slow host")
_ISSUE = Bounds(1e-6, 1e-3, False, "a driver's shortest path to a busy host's")
_LOAD = Bounds(200.0, 3000.0, False, "an L2 hit to a DRAM load behind a queue")
_MAIN = Bounds(0.4, 1.0, True, "not above the pins' bandwidth")
_L2 = Bounds(4.0, 128.0, False, "not above two ports of 64 bytes")
_EXPOSED = Bounds(0.005, 1.0, True, "from perfect overlap to none")

PARAMETERS: Mapping[str, Mapping[str, Bounds]] = {
    "gemm": {
        "launch_fixed": _LAUNCH,
        "issue": _ISSUE,
        "load_cycles": _LOAD,
        "fill_cycles": Bounds(10.0, 20_000.0, False, "from blocks that overlap to several loads in a row"),
        "main_share": _MAIN,
        "l2_bytes_per_cycle": _L2,
        "store_bytes_per_cycle": Bounds(2.0, 64.0, False, "not above the port to L2"),
        "tensor_share": Bounds(0.5, 1.15, True, "above 1 where the clock boosts beyond the one the peak is stated at"),
        "sustained": Bounds(0.3, 1.0, True, "the clock that the power limit leaves at full use"),
        "exposed": _EXPOSED,
    },
    "prefill": {
        "launch_fixed": _LAUNCH,
        "issue": _ISSUE,
        "chain_loads": Bounds(0.5, 60.0, False, "loads in a row before a block streams"),
        "step_loads": Bounds(0.1, 6.0, False, "from a deep pipeline to none"),
        "main_share": _MAIN,
        "l2_bytes_per_cycle": _L2,
        "attention_share": Bounds(0.1, 1.0, True, "not above the peak"),
        "exp_per_cycle": Bounds(4.0, 64.0, False, "16 by the programming guide, more where polynomials help"),
        "exposed": _EXPOSED,
    },
    "decode": {
        "launch_fixed": _LAUNCH,
        "issue": _ISSUE,
        "chain_loads": Bounds(0.5, 60.0, False, "loads in a row before a block streams"),
        "step_loads": Bounds(0.1, 6.0, False, "from a deep pipeline to none"),
        "join_loads": Bounds(0.1, 60.0, False, "loads in a row when parts of split keys are joined"),
        "main_share": _MAIN,
        "l2_bytes_per_cycle": _L2,
        "attention_share": Bounds(0.05, 1.0, True, "not above the peak"),
        "exposed": _EXPOSED,
    },
    "stream": {
        "launch_fixed": _LAUNCH,
        "load_cycles": _LOAD,
        "stream_share": Bounds(0.3, 1.0, True, "not above the pins' bandwidth"),
    },
}
"""Constants by kind of kernel. Each has one physical meaning; those that only together decide a time are not fitted
together (an attention block's chain is loads times latency: the latency stays)."""
