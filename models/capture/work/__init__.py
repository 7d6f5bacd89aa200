"""What each recorded ATen operator computes: its kernels, and the bytes it must read and write.

One module per family of operators, each a table from the operator's name to a small function. Where a built-in operator
type describes the same computation (`peakline.models.operators`), its formulas are used, so that a captured model and
a built one cannot disagree.

An operator that no table knows is taken for one pass over its inputs and outputs, one scalar operation per element of
the largest of them: right for anything elementwise, a lower bound for the rest.
"""

from peakline.models.capture.work.dispatch import work
from peakline.models.capture.work.record import Work

__all__ = ["Work", "work"]
