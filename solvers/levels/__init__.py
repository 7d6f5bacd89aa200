"""Several levels of memory between operators and where inputs come from: the least weighted traffic over all links."""

from peakline.solvers.levels.plan import Level, LevelsPlan, Move
from peakline.solvers.levels.solve import schedule_levels

__all__ = ["Level", "LevelsPlan", "Move", "schedule_levels"]
