"""SwiftNet for visual wake words (is a person there?), one byte an element.

Cheng et al.'s search (arXiv:1906.08305) wires nodes at will: what a node reads is concatenated, and edges are pruned
afterwards. The wiring here is that of the authors' model in the Visual Wake Words Challenge of 2019, read from its file
(github.com/newwhitecheng/vwwc19-submission, `vwwc-224/submission-uint8.lite`): a stem of 224 × 224 images, three cells
of 28 × 28, 14 × 14 and 7 × 7 pixels, a classifier; 84 operators, 213,656 weights. Numbers of nodes are the model's.
SwiftNet for detecting people, by authors in common, is what SERENITY (Ahn et al., MLSys 2020) schedules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from cosma_networks import Net, Value

from peakline.solvers.problem import Problem

__all__ = ["CELLS", "Cell", "cell", "swiftnet"]


@dataclass(frozen=True)
class Cell:
    """Nodes of a cell, in the model's order, each as `number:reads` (1 × 1 convolution) or `number*reads` (separable).

    `reads` are numbers of nodes, or x for the cell's input, joined by +. The cell concatenates `joined`, projects to
    `out` channels, and adds a projection of x.
    """

    nodes: str
    joined: str
    channels: int
    out: int


CELLS = {
    "A": Cell(
        "14:x 17:14 18:x 19:14 20:x+14 21:19+20 23:14+21 24:x+18+19+20 25*20 26*23 27*20+21 28*x+18 29:17+20+23+24",
        "25+26+27+28+29", 32, 48,
    ),
    "B": Cell(
        "43:x 48:x 49:x 50:x 45*43 51:43+45 47*43 52:47+48 57:48 54:x+43+45+49 55:54 59*43+45",
        "50+51+52+55+57+59", 48, 80,
    ),
    "C": Cell(
        "67:x 75:67 83:67 71*67 80:x+71 85*67+71 82*75 81*67 84*75 87*67 89*67", "80+81+82+83+84+85+87+89", 64, 76
    ),
}  # fmt: skip


def _wired(net: Net, x: Value, wiring: Cell) -> Value:
    """The cell's result."""
    made = {"x": x}

    def joined(reads: str) -> Value:
        return net.cat([made[node] for node in reads.split("+")])

    for number, kind, reads in re.findall(r"(\d+)([:*])(\S+)", wiring.nodes):
        y = joined(reads)
        made[number] = net.conv(net.depthwise(y, 3) if kind == "*" else y, wiring.channels, 1)
    same = net.conv(x, wiring.out, 1)
    return net.each("add", same, net.conv(joined(wiring.joined), wiring.out, 1))


def cell(name: str) -> Problem:
    """A cell by itself: its input comes from off-chip, its result goes there."""
    net = Net()
    channels, pixels = {"A": (32, 28), "B": (48, 14), "C": (80, 7)}[name]
    return net.done(_wired(net, net.input(channels, pixels, pixels), CELLS[name]))


def swiftnet() -> Problem:
    """The whole network."""
    net = Net()
    x = net.conv(net.input(3, 224, 224), 16, 7, 4)
    x = net.pool(net.conv(net.depthwise(x, 3), 32, 1), 2)
    x = net.pool(_wired(net, x, CELLS["A"]), 2)
    x = net.pool(_wired(net, x, CELLS["B"]), 2)
    x = net.gap(_wired(net, x, CELLS["C"]))
    return net.done(net.each("softmax", net.linear(x, 2)))
