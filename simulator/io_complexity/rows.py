"""What passes over its operands: elementwise operators, gathers, and rows that are reduced before they are used.

A softmax or a norm needs its whole row before the first result is known. When the last element of a row has come in,
at most S bytes of the row are still held; the rest, which every result depends on, comes in again:

    Q ≥ compulsory + rows·max(0, n·e − S).

A two-pass walk (the statistics online, M. Milakov and N. Gimelshein, arXiv:1805.02867; Welford's for norms) that keeps
what it saw last and walks back attains it but for a few elements. A cache that walks forward again and forgets what it
saw least recently reads the row twice.
"""

from __future__ import annotations

from dataclasses import dataclass

from peakline.io_complexity.work import Tiling

__all__ = ["Embedding", "Pass", "Rows"]


@dataclass(frozen=True)
class Pass:
    """An operator that reads and writes every byte once, in any order: elementwise, copies, optimizers."""

    moved: float
    title: str = "elementwise"

    @property
    def name(self) -> str:
        """What it is."""
        return self.title

    @property
    def compulsory(self) -> float:
        """Its operands and results."""
        return self.moved

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Compulsory bytes."""
        return self.moved

    def best(self, capacity: float) -> Tiling | None:
        """One element at a time."""
        return Tiling("in passing", {}, 0.0, self.moved)


@dataclass(frozen=True)
class Rows:
    """`rows` rows of `width` elements, each reduced and then used: softmax, layer and RMS norm, and their gradients.

    Attributes:
        rows, width: sizes.
        inputs: arrays that the reduction needs (1; a gradient reads x and dy: 2).
        element: bytes of one element.
        beside: bytes that every row shares (scales and shifts) or that are one figure per row.
        title: what it is.
    """

    rows: int
    width: int
    inputs: int = 1
    element: float = 2
    beside: float = 0
    title: str = "softmax"

    @property
    def name(self) -> str:
        """Kind and sizes."""
        return f"{self.title} of {self.rows} rows of {self.width}"

    @property
    def compulsory(self) -> float:
        """Inputs and result once."""
        return self.rows * self.width * self.element * (self.inputs + 1) + self.beside

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Compulsory bytes, and of every row what does not fit once more."""
        row = self.width * self.element * self.inputs
        return self.compulsory + self.rows * max(0.0, row - capacity)

    def best(self, capacity: float) -> Tiling | None:
        """The row held, or the part of it that fits, walked there and back.

        Held beside it: one element that passes, one result, and two running figures.
        """
        passing = 4 * self.element
        kept = int((capacity - passing) // (self.element * self.inputs))
        if kept < 0:
            return None
        if kept >= self.width:
            held = self.width * self.element * self.inputs + passing
            return Tiling("rows held", {"elements": self.width}, held, self.compulsory)
        again = self.rows * (self.width - kept) * self.element * self.inputs
        held = kept * self.element * self.inputs + passing
        return Tiling("rows walked there and back", {"elements kept": kept}, held, self.compulsory + again)


@dataclass(frozen=True)
class Embedding:
    """`tokens` rows of `width` elements gathered from a table of `vocabulary` rows.

    The bound is that of the likeliest saving: every token another one as long as the table has rows, each read once.
    The best schedule for tokens in no order reads a row for every token.
    """

    tokens: int
    width: int
    vocabulary: int
    element: float = 2
    index: float = 8

    @property
    def name(self) -> str:
        """Sizes."""
        return f"embedding of {self.tokens} tokens, {self.vocabulary} × {self.width}"

    @property
    def compulsory(self) -> float:
        """Indices and results once, and of the table the rows that differ, at most all."""
        rows = min(self.tokens, self.vocabulary)
        return self.index * self.tokens + self.element * self.width * (self.tokens + rows)

    def bound(self, capacity: float, copies: int = 1) -> float:
        """Compulsory bytes."""
        return self.compulsory

    def best(self, capacity: float) -> Tiling | None:
        """A row at a time; the whole table once if it fits."""
        table = self.element * self.width * self.vocabulary
        if table + self.element <= capacity:
            return Tiling("table held", {}, table + self.element, self.compulsory)
        row = self.element * self.width
        return Tiling("row by row", {}, self.element, self.compulsory + max(0, self.tokens - self.vocabulary) * row)
