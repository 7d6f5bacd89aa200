"""peakline: how much memory and time a deep-learning workload needs on a device, before it runs.

    import peakline as pk

    step = pk.training_step("llama-3.1-8b", batch=1, seq=8192, dtype="bf16", optimizer="adamw", recompute="full")
    est = pk.estimate(step, "h100-sxm")
    est.fits, est.peak, est.time            # bool, bytes, seconds

Importing this package loads neither torch nor matplotlib nor a solver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peakline.calibration.calibrate import calibrate
    from peakline.capturing import capture
    from peakline.estimator import estimate
    from peakline.execution.saved import SavedPlan, read_plan
    from peakline.explaining.explain import Explanation, explain
    from peakline.hardware import Device, UnknownDevice, UnsupportedDtype, device, devices
    from peakline.io_complexity.operators import operator
    from peakline.io_complexity.report import io
    from peakline.memory.options import AllocatorOptions
    from peakline.models.catalogue import UnknownModel, model_names
    from peakline.models.graph import Graph, GraphError
    from peakline.models.workload import Lora
    from peakline.models.workloads import decode, inference, prefill, training_step
    from peakline.planning.plan import NothingFits, OffloadPlan, plan
    from peakline.planning.serving import Placement, place
    from peakline.reporting.page import report
    from peakline.result import Estimate
    from peakline.sweeping.optimise import optimise
    from peakline.sweeping.run import sweep, sweep_to
    from peakline.sweeping.search import largest, pareto, sample
    from peakline.validation.validate import validate

__version__ = "0.1.0"

_HOME = {
    "calibration.calibrate": ("calibrate",),
    "capturing": ("capture",),
    "estimator": ("estimate",),
    "execution.saved": ("SavedPlan", "read_plan"),
    "explaining.explain": ("Explanation", "explain"),
    "reporting.page": ("report",),
    "result": ("Estimate",),
    "sweeping.optimise": ("optimise",),
    "sweeping.run": ("sweep", "sweep_to"),
    "sweeping.search": ("largest", "pareto", "sample"),
    "hardware": ("Device", "UnknownDevice", "UnsupportedDtype", "device", "devices"),
    "io_complexity.operators": ("operator",),
    "io_complexity.report": ("io",),
    "memory.options": ("AllocatorOptions",),
    "models.catalogue": ("UnknownModel", "model_names"),
    "models.graph": ("Graph", "GraphError"),
    "models.workload": ("Lora",),
    "planning.plan": ("NothingFits", "OffloadPlan", "plan"),
    "planning.serving": ("Placement", "place"),
    "validation.validate": ("validate",),
    "models.workloads": ("decode", "inference", "prefill", "training_step"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AllocatorOptions",
    "Device",
    "Estimate",
    "Explanation",
    "Graph",
    "GraphError",
    "Lora",
    "NothingFits",
    "OffloadPlan",
    "Placement",
    "SavedPlan",
    "UnknownDevice",
    "UnknownModel",
    "UnsupportedDtype",
    "__version__",
    "calibrate",
    "capture",
    "decode",
    "device",
    "devices",
    "estimate",
    "explain",
    "inference",
    "io",
    "largest",
    "model_names",
    "operator",
    "optimise",
    "pareto",
    "place",
    "plan",
    "prefill",
    "read_plan",
    "report",
    "sample",
    "sweep",
    "sweep_to",
    "training_step",
    "validate",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'peakline' has no attribute {name!r}")
    value = getattr(import_module(f"peakline.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
