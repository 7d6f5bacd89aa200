"""How concurrent copies share links: max-min fairness.

Every copy speeds up until a link on its way is full; the copies on that link keep what they have, the others go on
speeding up (progressive filling: D. Bertsekas, R. Gallager, "Data Networks", 2nd ed. 1992, §6.5.2). It is what
round-robin arbitration of equal requests gives on PCIe switches and memory controllers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["fair_rates"]


def fair_rates(copies: Sequence[Sequence[str]], bandwidth: Mapping[str, float]) -> list[float]:
    """Bytes/s of each copy.

    Args:
        copies: the links that each copy loads (at least one).
        bandwidth: bytes/s of each link.
    """
    rates = [0.0] * len(copies)
    rising = set(range(len(copies)))
    left = dict(bandwidth)
    while rising:
        load: dict[str, int] = {}
        for copy in rising:
            for link in copies[copy]:
                load[link] = load.get(link, 0) + 1
        tightest = min(load, key=lambda link: left[link] / load[link])
        rate = left[tightest] / load[tightest]
        for copy in [copy for copy in rising if tightest in copies[copy]]:
            rates[copy] = rate
            rising.remove(copy)
            for link in copies[copy]:
                left[link] = max(left[link] - rate, 0.0)
    return rates
