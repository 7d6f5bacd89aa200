"""An event simulation over streams: computation and copies that overlap, wait for each other and share links.

from peakline.streams import Link, Task, Tier, simulate
"""

from peakline.streams.program import Hold, Link, Program, Task, Tier
from peakline.streams.simulation import Deadlock, simulate
from peakline.streams.timeline import Run, Stall, Timeline

__all__ = ["Deadlock", "Hold", "Link", "Program", "Run", "Stall", "Task", "Tier", "Timeline", "simulate"]
