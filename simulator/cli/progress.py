"""One line on the terminal while solvers work: the best so far, the bound, the gap, and the seconds left."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peakline.solvers.schedule import Progress

__all__ = ["Meter"]

_REDRAW = 0.5  # seconds between two drawings: the seconds left go on while a solver says nothing


class Meter:
    """Draws while its block runs what it was last told; nothing where stderr is no terminal.

    It is called with the solvers' progress; `amount` writes a value of the objective, `time_limit` is in seconds.
    """

    def __init__(self, amount: Callable[[float], str], time_limit: float) -> None:
        self.amount = amount
        self.deadline = time.monotonic() + time_limit
        self.known = "no plan yet"
        self._ended = threading.Event()
        self._drawing = threading.Thread(target=self._draw, daemon=True)

    def __call__(self, progress: Progress) -> None:
        """Keep what is to be drawn."""
        best, bound = progress.incumbent, progress.bound
        if best is not None:
            gap = f", gap {max(0.0, best - bound) / best:.1%}" if best else ""
            self.tell(f"best {self.amount(best)}, bound {self.amount(bound)}{gap}")
        self.deadline = time.monotonic() + progress.seconds_left

    def tell(self, known: str) -> None:
        """Keep a text that is to be drawn before the seconds left."""
        self.known = known

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            self._drawing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._drawing.ident is not None:
            self._drawing.join()
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _draw(self) -> None:
        while not self._ended.wait(_REDRAW):
            left = self.deadline - time.monotonic()
            ending = f"{left:.0f} s left" if left >= 0.5 else "ending"
            print(f"\r\x1b[K{self.known}, {ending}", end="", file=sys.stderr, flush=True)
