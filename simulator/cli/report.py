"""An estimate on the terminal: coloured tables for a person, plain text for a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peakline.text import Table, explain, headline, operator_table, tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

    from peakline.explaining.explain import Explanation
    from peakline.result import Estimate

__all__ = ["console", "print_table", "print_tables", "show"]


def console() -> Console:
    """Standard output: colours only on a terminal, and not where `NO_COLOR` is set."""
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False)


def show(est: Estimate, *, operators: bool = False, why: Explanation | None = None) -> None:
    """Print the five lines, the tables and the notes; with `operators` every operator, with `why` that instead."""
    out = console()
    if not out.is_terminal:
        print(explain(est) if why is None else "\n".join([*headline(est), "", str(why)]))
        if operators:
            print("\n" + "\n".join(operator_table(est).lines()))
        return
    from rich.text import Text

    lines = headline(est)
    for i, line in enumerate(lines):
        head, colon, rest = line.partition(":")
        style = ("bold green" if bool(est.memory.fits) else "bold red") if i == 0 else "bold"
        out.print(Text.assemble((head + colon, style), rest), soft_wrap=True)
    shown = tables(est) if why is None else why.tables()
    for table in [*shown, *([operator_table(est)] if operators else [])]:
        print_table(out, table)
    notes = [*est.notes, *(why.notes if why is not None else ())]
    if notes:
        out.print("\nNotes", style="bold")
        for note in notes:
            out.print(f"  - {note}", style="yellow")


def print_tables(tables: Iterable[Table]) -> None:
    """Tables on the terminal, or as plain lines in a pipe, an empty one before each."""
    out = console()
    for table in tables:
        if out.is_terminal:
            print_table(out, table)
        else:
            print("\n" + "\n".join(table.lines()))


def print_table(out: Console, table: Table) -> None:
    """One table, its bars coloured; long names fold rather than disappear."""
    from rich.table import Table as Grid

    grid = Grid(
        title=table.title, title_justify="left", title_style="bold", box=None, header_style="dim", padding=(0, 2, 0, 0)
    )
    for heading, left in zip(table.headings, table.left):
        bar = heading == ""
        grid.add_column(
            heading,
            justify="left" if left else "right",
            style="cyan" if bar else None,
            no_wrap=bar or not left,
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*row)
    out.print()
    out.print(grid)
