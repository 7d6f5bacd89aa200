"""Order, residency, replacement and addresses together, under a capacity."""

from peakline.solvers.schedule.solve import OBJECTIVES, Infeasible, NotFound, Objective, Progress, schedule

__all__ = ["OBJECTIVES", "Infeasible", "NotFound", "Objective", "Progress", "schedule"]
