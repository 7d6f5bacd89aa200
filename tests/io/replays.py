"""A small memory simulated element by element: what a loop nest fetches and stores under a replacement policy.

Knows nothing of tilings or formulas. A nest is a list of steps; a step is the set of elements that must be there at
once. Elements are tuples whose first entry names their array; arrays are read only (`loaded`), summed up (`stored`:
free at first touch, written back when they leave, fetched again after) or `scratch` (never moved; losing one that is
still needed is an error).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

Element = tuple[Hashable, ...]


def replay(
    steps: Iterable[set[Element]], capacity: float, policy: str, roles: Mapping[str, str], sizes: Mapping[str, float]
) -> float:
    """Bytes loaded and stored.

    Policies: `lru`, `belady` (evict what is used last again), `leave` (keep nothing but what the step needs).
    """
    nest = list(steps)
    uses: dict[Element, list[int]] = {}
    for time, step in enumerate(nest):
        for element in step:
            uses.setdefault(element, []).append(time)
    for times in uses.values():
        times.reverse()
    held: dict[Element, int] = {}  # element → when it was used last
    seen: set[Element] = set()
    room = moved = 0.0

    def size(element: Element) -> float:
        return sizes[str(element[0])]

    def leave(element: Element) -> None:
        nonlocal room, moved
        del held[element]
        room -= size(element)
        role = roles[str(element[0])]
        assert role != "scratch" or not uses[element], f"{element} was lost"
        moved += size(element) if role == "stored" else 0.0

    for time, step in enumerate(nest):
        for element in step:
            uses[element].pop()
        for element in [e for e in held if e not in step and roles[str(e[0])] == "scratch" and not uses[e]]:
            leave(element)  # nobody will ask for it
        if policy == "leave":
            for element in [e for e in held if e not in step]:
                leave(element)
        needed = sum(size(e) for e in step if e not in held)
        candidates = [e for e in held if e not in step]
        candidates.sort(
            key=(lambda e: held[e]) if policy == "lru" else (lambda e: -(uses[e][-1] if uses[e] else 1 << 60))
        )
        for victim in candidates:
            if room + needed <= capacity:
                break
            leave(victim)
        assert room + needed <= capacity, f"step {time} does not fit"
        for element in step:
            if element not in held:
                role = roles[str(element[0])]
                if role == "loaded" or (role == "stored" and element in seen):
                    moved += size(element)
                seen.add(element)
                room += size(element)
            held[element] = time
    return moved + sum(size(e) for e in held if roles[str(e[0])] == "stored")
