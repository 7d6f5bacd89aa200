"""RandWire: stages wired by a random graph generator (Xie et al., ICCV 2019, arXiv:1904.01569), one byte an element.

The generator is Watts and Strogatz's (Nature 393, 1998) as the paper takes it: N nodes on a ring, each linked to its
K/2 neighbours on either side, every link moved to another end with probability P, then directed from the lower number
to the higher; WS(4, 0.75) is the paper's best. A node sums what it reads, then does ReLU, a separable convolution of
3 × 3 and batch norm as one operator (batch norm and ReLU belong to the convolution). A node that reads nobody reads the
stage's input at stride 2; the stage's result is the average of the nodes that nobody reads.
"""

from __future__ import annotations

import random

from cosma_networks import Net, Value

from peakline.solvers.problem import Problem

__all__ = ["randwire", "stage", "watts_strogatz"]


def watts_strogatz(nodes: int, k: int, p: float, seed: int) -> list[tuple[int, int]]:
    """Directed edges (lower, higher) of a connected WS(K, P) graph; of one that is not, the next of the same seed."""
    chance = random.Random(seed)
    while True:
        links = {(v, (v + step) % nodes) for step in range(1, k // 2 + 1) for v in range(nodes)}
        around: list[set[int]] = [set() for _ in range(nodes)]
        for v, w in links:
            around[v].add(w)
            around[w].add(v)
        for step in range(1, k // 2 + 1):
            for v in range(nodes):
                w = (v + step) % nodes
                free = [u for u in range(nodes) if u != v and u not in around[v]]
                if chance.random() < p and free and w in around[v]:
                    to = chance.choice(free)
                    around[v].remove(w)
                    around[w].remove(v)
                    around[v].add(to)
                    around[to].add(v)
        reached, waiting = {0}, [0]
        while waiting:
            for w in around[waiting.pop()] - reached:
                reached.add(w)
                waiting.append(w)
        if len(reached) == nodes:
            return sorted((v, w) for v in range(nodes) for w in around[v] if v < w)


def wired(net: Net, x: Value, c: int, edges: list[tuple[int, int]], nodes: int) -> Value:
    """One stage of `c` channels on the input `x`, at half its resolution."""
    reads: list[list[int]] = [[] for _ in range(nodes)]
    for v, w in edges:
        reads[w].append(v)
    made: list[Value] = []
    for v in range(nodes):
        if not reads[v]:
            made.append(net.conv(net.depthwise(x, 3, 2), c, 1))
            continue
        summed = net.each("sum", *(made[u] for u in reads[v])) if len(reads[v]) > 1 else made[reads[v][0]]
        made.append(net.conv(net.depthwise(summed, 3), c, 1))
    last = [made[v] for v in range(nodes) if all(v != u for u, _ in edges)]
    return net.each("average", *last) if len(last) > 1 else last[0]


def stage(nodes: int = 32, seed: int = 0, c: int = 78, size: int = 56, k: int = 4, p: float = 0.75) -> Problem:
    """One stage as a problem of its own: conv₃ of the small regime, from 39 channels at 56 × 56 to 78 at 28 × 28."""
    net = Net()
    return net.done(wired(net, net.input(c // 2, size, size), c, watts_strogatz(nodes, k, p, seed), nodes))


def randwire(seed: int = 0, c: int = 78, nodes: int = 32, k: int = 4, p: float = 0.75) -> Problem:
    """The small regime: two plain convolutions, three stages of `nodes` nodes at C, 2C, 4C, and the classifier."""
    net = Net()
    x = net.conv(net.conv(net.input(3, 224, 224), c // 2, 3, 2), c, 3, 2)
    for n in range(3):
        x = wired(net, x, c << n, watts_strogatz(nodes, k, p, 3 * seed + n), nodes)
    x = net.conv(x, 1280, 1)
    return net.done(net.linear(net.gap(x), 1000))
