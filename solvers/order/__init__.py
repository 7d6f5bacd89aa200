"""The order of operators with the smallest peak."""

from peakline.solvers.order.smallest_peak import Order, smallest_peak

__all__ = ["Order", "smallest_peak"]
