"""Order, residency, replacement and addresses together, under a capacity."""

from peakline.solvers.schedule.solve import METHODS, OBJECTIVES, Infeasible, NotFound, Objective, Progress, schedule

__all__ = ["METHODS", "OBJECTIVES", "Infeasible", "NotFound", "Objective", "Progress", "schedule"]
