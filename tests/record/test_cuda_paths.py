"""What the recorder asks of a GPU, answered by an allocator written for the tests: no GPU is needed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from snapshots import MIB, Driver

torch = pytest.importorskip("torch", reason="recording needs torch")

from peakline.record import MemoryCase, compare_allocator, memory_run  # noqa: E402
from peakline.record.environment import parse_nvidia_smi  # noqa: E402
from peakline.record.step_run import summarise  # noqa: E402
from peakline.record.timing import Clock  # noqa: E402

CASE = MemoryCase(
    name="resnet-toy",
    source="peakline",
    model_type="resnet",
    architecture="ResNet",
    config={"layers": (1,), "width": 8, "classes": 10},
    image=16,
    dtype="fp32",
    attention=None,
    loss="cross_entropy",
    steps=2,
    allocator="max_split_size_mb:512",
)


@dataclass
class Gpu:
    """`torch.cuda` over a `Driver`."""

    driver: Driver = field(default_factory=Driver)
    requested: dict[int, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("allocated", "reserved", "requested"), 0))
    settings: list[str] = field(default_factory=list)

    def now(self) -> dict[str, int]:
        """Bytes allocated, reserved and requested."""
        chunks = [c for segment in self.driver.segments.values() for c in segment]
        return {
            "allocated": sum(c.size for c in chunks if c.taken),
            "reserved": sum(c.size for c in chunks),
            "requested": sum(self.requested.values()),
        }

    def malloc(self, size: int) -> int:
        """A block; peaks follow."""
        address = self.driver.malloc(size)
        self.requested[address] = size
        self.peaks = {name: max(value, self.now()[name]) for name, value in self.peaks.items()}
        return address

    def free(self, address: int) -> None:
        """Back to the cache."""
        self.driver.free(address, self.requested.pop(address))

    def reset(self) -> None:
        """Peaks begin anew."""
        self.peaks = self.now()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """torch.cuda, as far as the recorder uses it, answers from a `Gpu`; modules are built on the CPU."""
    gpu = Gpu()
    answers: dict[str, Any] = {
        "init": lambda: None,
        "synchronize": lambda: None,
        "memory_allocated": lambda: gpu.now()["allocated"],
        "memory_reserved": lambda: gpu.now()["reserved"],
        "max_memory_allocated": lambda: gpu.peaks["allocated"],
        "max_memory_reserved": lambda: gpu.peaks["reserved"],
        "reset_peak_memory_stats": gpu.reset,
        "device_memory_used": lambda device: 500 * MIB + gpu.now()["reserved"],
        "memory_stats": lambda: {
            "requested_bytes.all.peak": gpu.peaks["requested"],
            "segment.all.current": len(gpu.driver.segments),
            "num_alloc_retries": 0,
        },
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *args, **how: None)
    monkeypatch.setattr(torch.cuda.memory, "_snapshot", gpu.driver.snapshot)
    monkeypatch.setattr(time, "time_ns", lambda: gpu.driver.clock * 1000 + 1)
    monkeypatch.setattr(memory_run, "set_allocator", gpu.settings.append)
    zeros, build = torch.zeros, memory_run.build

    def first_tensor(*size: Any, device: str | None = None, **how: Any) -> Any:
        if device == "cuda":
            gpu.free(gpu.malloc(4))
        return zeros(*size, **how)

    monkeypatch.setattr(torch, "zeros", first_tensor)

    def on_cpu(case: MemoryCase, device: str, *, seed: int = 0) -> Any:
        gpu.malloc(8 * MIB)  # parameters
        return build(case, "cpu", seed=seed)

    monkeypatch.setattr(memory_run, "build", on_cpu)
    return gpu


def _step(gpu: Gpu, fails_at: int | None = None) -> Callable[[Any, Callable[[str], None]], float]:
    """A step that holds 30 MiB in forward, 50 MiB in backward, and frees all."""
    count = [0]

    def run(built: Any, phase: Callable[[str], None]) -> float:
        phase("forward")
        kept = gpu.malloc(30 * MIB)
        phase("backward")
        if count[0] == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        gpu.free(gpu.malloc(20 * MIB - 100))
        gpu.free(kept)
        phase("optimizer")
        count[0] += 1
        return 0.5

    return run


def test_a_row_has_peaks_by_phase_and_by_step(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_run, "run_step", _step(gpu))
    row, events = memory_run.measure_memory(CASE, "cuda")
    assert row.error is None
    assert gpu.settings == ["max_split_size_mb:512"]
    assert row.device_used_before_bytes == 500 * MIB
    assert row.device_used_after_context_bytes == 502 * MIB
    assert row.resident_allocated_bytes == 8 * MIB
    assert len(row.steps) == 2
    for step in row.steps:
        assert step.peak_allocated_bytes == 58 * MIB
        assert step.peak_requested_bytes == 58 * MIB - 100
        assert step.peak_reserved_bytes == gpu.now()["reserved"] == 72 * MIB
        assert step.end_allocated_bytes == 8 * MIB
        assert step.device_used_bytes == 572 * MIB
        assert step.device_used_source == "nvml"
        found = [(p.name, p.peak_allocated_bytes, p.end_allocated_bytes) for p in step.phases]
        assert found == [
            ("forward", 38 * MIB, 38 * MIB),
            ("backward", 58 * MIB, 8 * MIB),
            ("optimizer", 8 * MIB, 8 * MIB),
        ]
    assert events is not None
    assert events.header.complete
    names = [span.name for span in events.spans()]
    steps = [f"step{n}/{phase}" for n in range(2) for phase in ("forward", "backward", "optimizer")]
    assert names == ["context", "model", *steps]
    assert {s.name: s.peak_bytes for s in events.spans()}["step1/backward"] == 58 * MIB - 100
    assert compare_allocator(events).exact


def test_running_out_of_memory_keeps_the_steps_and_the_history_until_then(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_run, "run_step", _step(gpu, fails_at=1))
    row, events = memory_run.measure_memory(CASE, "cuda")
    assert row.out_of_memory
    assert row.error == "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    assert len(row.steps) == 1
    assert events is not None
    assert events.spans()[-1].name == "step1/backward"


def test_kernels_are_timed_by_events_behind_an_idle_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, other: Event) -> float:
            return 2.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("idle"), raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(L2_cache_size=50 * MIB))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda size, dtype, device: empty(16, dtype=dtype))
    clock = Clock("cuda", budget=0.0)
    timing = clock.measure(lambda: order.append("run"))
    assert timing.median_seconds == timing.min_seconds == 0.002
    assert order[2:] == ["idle", "event", "run", "event", "wait"] * timing.repetitions


def test_nvidia_smis_answer_is_understood_and_what_it_does_not_know_is_left_out() -> None:
    found = parse_nvidia_smi("550.54.15, 1980, 1980, 2619, 700.00, Disabled, 143161\n")
    assert found["driver"] == "550.54.15"
    assert found["sm_clock_mhz"] == 1980
    assert found["power_limit_watts"] == 700
    assert found["mig"] == "Disabled"
    assert found["free_before_context_bytes"] == 143161 * MIB
    assert "power_limit_watts" not in parse_nvidia_smi("550.54.15, 1980, 1980, 2619, [N/A], [N/A], 143161")
    assert parse_nvidia_smi("") == parse_nvidia_smi("No devices were found") == {}


def _average(key: str, device: str, micro: float) -> Any:
    return SimpleNamespace(
        key=key,
        device_type=SimpleNamespace(name=device),
        self_device_time_total=micro,
        self_cpu_time_total=1.0,
        input_shapes=[[2, 3]],
        count=4,
    )


def test_a_kernels_time_is_counted_once_with_the_operator_that_launched_it() -> None:
    averages = [_average("aten::mm", "CPU", 30.0), _average("sm90_gemm", "CUDA", 30.0), _average("Step", "CPU", 2.0)]
    eager = summarise(averages, "cuda")
    assert [(o.operator, o.calls, o.self_seconds, o.shapes) for o in eager["operators"]] == [
        ("aten::mm", 4, pytest.approx(30e-6), "[[2,3]]")
    ]
    assert eager["others_seconds"] == pytest.approx(2e-6)
    compiled = summarise(averages, "cuda", kernels=True)
    assert [o.operator for o in compiled["operators"]] == ["sm90_gemm"]
