"""The shortest time: order, residency and prefetches together, where transfers go on beside operators."""

from peakline.solvers.makespan.solve import fastest

__all__ = ["fastest"]
