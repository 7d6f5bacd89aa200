"""`peakline validate`: predictions beside everything measured that is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["validate"]


def validate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Measurements: a trace of `peakline record` (folder or file), aiconfigurator (the installed package), "
            "its systems/data folder, or a folder of published tables.",
            metavar="[SOURCE]...",
        ),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option("--reference", help="Folder with memory_points*.csv and measured/.")
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", help="Write the report to this Markdown file.")] = None,
    plots: Annotated[Path | None, typer.Option("--plots", help="Write pictures to this folder (sources only).")] = None,
    misses: Annotated[
        Path | None, typer.Option("--misses", help="Write every miss to this CSV file (sources only).")
    ] = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", help="Only this GPU, as the tables name it (h100_sxm); repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object (sources only).")] = False,
) -> int:
    """Compare predictions with published counts and measurements, or with the sources named; print it, or write it."""
    from rich.console import Console
    from rich.markdown import Markdown

    from peakline.files import check_target
    from peakline.validation.report import report, write_report

    if reference is not None and not reference.is_dir():
        raise ValueError(f"--reference: {reference} is not a folder; accepted: one with memory_points*.csv")
    for target in (write, misses):
        if target is not None:
            check_target(target)
    if plots is not None and plots.is_file():
        raise ValueError(f"--plots: {plots} is a file; give a folder")
    status = Console(stderr=True)

    def progress(title: str) -> None:
        if status.is_terminal:
            status.print(f"[dim]{title} …[/dim]")

    if sources:
        from peakline.validation.sources_report import sources_report
        from peakline.validation.validate import validate as compare

        if reference is not None:
            raise ValueError("--reference: give the folder as a source instead, or no sources")
        found = compare(*sources, gpus=gpu or (), progress=progress)
        if plots is not None:
            found.plot(plots)
        if misses is not None:
            found.misses.to_csv(misses, index=False)
        if as_json:
            print(found.to_json())
            return 0
        text = sources_report(found, sources)
    else:
        for name, given in (("--plots", plots), ("--misses", misses), ("--gpu", gpu), ("--json", as_json)):
            if given:
                raise ValueError(f"{name} needs a source: a trace, aiconfigurator or a folder of tables")
        text = report(reference, progress)
    if write is not None:
        write_report(write, text)
        print(f"wrote {write}")
    else:
        Console().print(Markdown(text) if Console().is_terminal else text, markup=False)
    return 0
