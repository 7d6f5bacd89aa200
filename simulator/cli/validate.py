"""`peakline validate`: predictions beside everything measured that is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["validate"]


def validate(
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Folder with memory_points*.csv and measured/.")
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write the report to this Markdown file.")] = None,
) -> int:
    """Compare predictions with published counts and measurements; print the report, or write it."""
    from rich.console import Console
    from rich.markdown import Markdown

    from peakline.validation.report import report, write_report

    if reference is not None and not reference.is_dir():
        raise ValueError(f"--reference: {reference} is not a folder; accepted: one with memory_points*.csv")
    if write is not None and not write.parent.is_dir():
        raise ValueError(f"--write: the folder {write.parent} does not exist")
    status = Console(stderr=True)
    text = report(reference, lambda title: status.print(f"[dim]{title} …[/dim]") if status.is_terminal else None)
    if write is not None:
        write_report(write, text)
        print(f"wrote {write}")
    else:
        Console().print(Markdown(text) if Console().is_terminal else text, markup=False)
    return 0
