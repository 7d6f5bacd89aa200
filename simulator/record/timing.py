"""How long something takes: repeated runs, each measured alone.

On CUDA a kernel that idles the device is queued first, so that the host has launched everything before the first
measured kernel begins: times are the device's, without launch latency. On a CPU they are the processor's clock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from peakline.record.schema import Timing

__all__ = ["Clock", "timing_of"]

_FLUSH_CPU = 128 << 20  # bytes; more than the last-level cache of the processors this is run on
_IDLE_CYCLES = 1_000_000  # about half a millisecond: longer than launching one operator's kernels takes
_FEWEST, _MOST = 3, 50


def timing_of(seconds: list[float]) -> Timing:
    """Median, least and number of some times."""
    return Timing(median_seconds=statistics.median(seconds), min_seconds=min(seconds), repetitions=len(seconds))


class Clock:
    """Measures on one device.

    Attributes:
        budget: seconds that the repetitions of one measurement may take, about; at least three are made.
    """

    def __init__(self, device: str, budget: float = 0.25) -> None:
        self.device, self.budget = device, budget
        self._cuda = device == "cuda"
        size = _FLUSH_CPU
        if self._cuda:
            size = max(2 * int(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0)), _FLUSH_CPU)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)

    def synchronize(self) -> None:
        """Wait until the device has done everything."""
        if self._cuda:
            torch.cuda.synchronize()

    def measure(self, run: Callable[[], object], *, cold: bool = False) -> Timing:
        """Times of `run` after a warm-up; `cold` overwrites the last-level cache before each run."""
        run()
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        once = max(time.perf_counter() - started, 1e-7)
        count = min(max(int(self.budget / once), _FEWEST), _MOST)
        if cold and not self._cuda:
            count = min(count, 10)  # overwriting the cache takes longer than most operators
        one = self._one_cuda if self._cuda else self._one_cpu
        return timing_of([one(run, cold) for _ in range(count)])

    def host_time(self, run: Callable[[], object]) -> float:
        """Seconds of one run by the host's clock, the device idle before and after."""
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started

    def _one_cuda(self, run: Callable[[], object], cold: bool) -> float:
        if cold:
            self._flush.zero_()
        torch.cuda._sleep(_IDLE_CYCLES)  # type: ignore[no-untyped-call]
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def _one_cpu(self, run: Callable[[], object], cold: bool) -> float:
        if cold:
            self._flush.zero_()
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
