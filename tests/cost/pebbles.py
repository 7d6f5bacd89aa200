"""The red-blue pebble game played out by brute force: the least traffic of tiny products, over all schedules.

Independent of the bounds under test: states, moves and a shortest path; and a cache simulated access by access.
"""

from __future__ import annotations

from collections import deque
from itertools import permutations, product


def least_traffic(m: int, n: int, k: int, capacity: int, *, consumed: bool = False) -> int:
    """Fewest loads and stores with which a memory of `capacity` elements can form C[m,n] = A[m,k]·B[k,n].

    A state is (resident elements, unsaved results, products done). A product needs its element of A, of B and of C in
    memory; an unsaved result must be stored before it leaves. With `consumed`, a finished element of C may vanish for
    free and need never be stored (an attention score that the softmax has used).
    """
    a = {(i, l): i * k + l for i in range(m) for l in range(k)}
    b = {(l, j): m * k + l * n + j for l in range(k) for j in range(n)}
    first_c = m * k + k * n
    c = {(i, j): first_c + i * n + j for i in range(m) for j in range(n)}
    products = [(a[i, l], b[l, j], c[i, j]) for i in range(m) for j in range(n) for l in range(k)]
    of_c = {e: sum(1 << p for p, (_, _, z) in enumerate(products) if z == e) for e in c.values()}
    inputs = list(range(first_c))
    everything = (1 << len(products)) - 1

    start = (0, 0, 0)
    best = {start: 0}
    queue = deque([(0, start)])
    while queue:
        cost, state = queue.popleft()
        if cost > best[state]:
            continue
        resident, unsaved, done = state
        if done == everything and (consumed or not unsaved):
            return cost
        moves = []
        room = resident.bit_count() < capacity
        for p, (x, y, z) in enumerate(products):
            needed = 1 << x | 1 << y | 1 << z
            if not done >> p & 1 and resident & needed == needed:
                moves.append((0, (resident, unsaved | 1 << z, done | 1 << p)))
        if room:
            moves += [(1, (resident | 1 << e, unsaved, done)) for e in inputs if not resident >> e & 1]
            for e, mine in of_c.items():
                if not resident >> e & 1 and done & mine != mine:
                    moves.append((1 if done & mine else 0, (resident | 1 << e, unsaved, done)))
        for e in range(first_c + m * n):
            if resident >> e & 1:
                gone = resident & ~(1 << e)
                if not unsaved >> e & 1 or (consumed and done & of_c[e] == of_c[e]):
                    moves.append((0, (gone, unsaved & ~(1 << e), done)))
                else:
                    moves.append((1, (gone, unsaved & ~(1 << e), done)))
        for price, after in moves:
            if cost + price < best.get(after, 1 << 30):
                best[after] = cost + price
                if price:
                    queue.append((cost + price, after))
                else:
                    queue.appendleft((cost, after))
    raise AssertionError(f"{capacity} elements cannot hold one product")


def tilings(size: int) -> list[tuple[tuple[int, int, int], tuple[int, ...]]]:
    """All loop nests over power-of-two tiles of a size³ product: (tile sizes, order of the outer loops)."""
    powers = [2**p for p in range(size.bit_length())]
    return [(tile, order) for tile in product(powers, repeat=3) for order in permutations(range(3))]


def accesses(size: int, tile: tuple[int, int, int], order: tuple[int, ...]) -> list[int]:
    """The elements that a tiled loop nest touches, in order: A's, B's, C's of each product."""
    ranges = [range(0, size, tile[axis]) for axis in order]
    touched = []
    for outer in product(*ranges):
        corner = [0, 0, 0]
        for axis, value in zip(order, outer, strict=True):
            corner[axis] = value
        i0, j0, l0 = corner
        for l in range(l0, l0 + tile[2]):
            for i in range(i0, i0 + tile[0]):
                for j in range(j0, j0 + tile[1]):
                    touched += [i * size + l, size**2 + l * size + j, 2 * size**2 + i * size + j]
    return touched


def cache_traffic(touched: list[int], capacity: int, results_from: int) -> int:
    """Loads and stores of Belady's optimal replacement: evict what is used last again; results are written back."""
    later: dict[int, list[int]] = {}
    for time, element in enumerate(touched):
        later.setdefault(element, []).append(time)
    for times in later.values():
        times.reverse()
    held: dict[int, int] = {}
    seen: set[int] = set()
    moved = 0
    for element in touched:
        times = later[element]
        times.pop()
        if element not in held:
            if len(held) == capacity:
                victim = max(held, key=held.__getitem__)
                moved += victim >= results_from
                del held[victim]
            moved += element < results_from or element in seen
            seen.add(element)
        held[element] = times[-1] if times else 1 << 60
    return moved + sum(element >= results_from for element in held)
