"""Keep, recompute or move: the least time in which a fixed order of work fits a budget of memory."""
