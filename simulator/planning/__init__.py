"""Plans that make a workload fit: what to keep, what to recompute, what to move where and when."""
