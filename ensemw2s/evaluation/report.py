"""Results in, what a run shows at its end out: `report.html` with its plots, and the table on the terminal.

Both say the same sentences (`summary`) in the same numbers (`wording`); this module alone writes files and prints.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.config.systems import TABLE
from ensemw2s.evaluation.records import RESULTS, Metrics, RunResults, StageTime
from ensemw2s.evaluation.summary import summarise
from ensemw2s.evaluation.themes import DARK, LIGHT
from ensemw2s.evaluation.wording import (
    NOTHING,
    SPLITS,
    label,
    number,
    percent,
    percent_range,
    plain,
    seconds,
    systems_of,
)
from ensemw2s.storage import remote, store

REPORT = "report.html"


def write_report(results: RunResults, directory: Path) -> Path:
    """Writes `report.html` and `plots/*.png`.

    Args:
        results: Figures of a run; systems and figures may be missing.
        directory: Folder of the run; made when it does not exist.

    Returns:
        Path of the page, which is put in place whole.
    """
    from ensemw2s.evaluation.page import page
    from ensemw2s.evaluation.plots import PLOTS, render  # with matplotlib: only where something is drawn

    light, dark = (render(results, theme, PLOTS) for theme in (LIGHT, DARK))
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, png in light.items():
        store.put_bytes(plots / f"{name}.png", png)
    html = directory / REPORT
    store.put_bytes(html, page(results, light, dark).encode("utf-8"))
    return html


def is_written(directory: Path) -> bool:
    """Whether the page and the plots of a run are there, and no older than its results.

    Args:
        directory: Folder of the run, with a local copy of its results.
    """
    html = directory / REPORT
    if not (html.exists() and (directory / "plots").is_dir() and remote.exists(html)):
        return False
    return html.stat().st_mtime_ns >= (directory / RESULTS).stat().st_mtime_ns


def print_table(results: RunResults, console: Console) -> None:
    """Prints systems × ID and OOD exact match with PGR, the verdicts, and the seconds of each stage.

    Args:
        results: Figures of a run; systems and figures may be missing.
        console: Where to print.
    """
    console.print(_systems_table(results))
    recovered = [found.ood for found in results.pgr.values() if found.ood is not None]
    for reason in sorted({found.reason for found in recovered if found.reason}):
        console.print(Text(f"PGR is null: {reason}."))
    for contest in summarise(results).contests:
        console.print()
        console.print(Text(contest.record))
        for sentence in contest.not_wins:
            console.print(Text(sentence))
    for warning in results.warnings:
        console.print()
        console.print(Text(f"Warning: {warning}", style="bold yellow"))
    if results.stages:
        console.print()
        console.print(_stages_table(results.stages, results.total_seconds))


def _systems_table(results: RunResults) -> Table:
    table = Table(title=Text("Exact match, % (95 % interval)"), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("ID", "OOD", "PGR, OOD"):
        table.add_column(heading, justify="right", no_wrap=True)
    options = any(results.metrics(name, split).option_acc is not None for name in results.systems for split in SPLITS)
    if options:
        table.add_column("acc / norm, OOD", justify="right", no_wrap=True)
    for name in systems_of(results):
        cells = [Text(_with_interval(results, name, split)) for split in SPLITS]
        found = results.recovered(name, "ood")
        recovered = "" if found is None else "null" if number(found.value) is None else plain(found.value)
        style = "bold" if name in TABLE and TABLE[name].ours else ""
        found_options = [Text(_options(results.metrics(name, "ood")))] if options else []
        table.add_row(Text(label(name)), *cells, Text(recovered), *found_options, style=style)
    return table


def _options(found: Metrics) -> str:
    figures = (found.option_acc, found.option_acc_norm)
    return NOTHING if None in figures else " / ".join(percent(figure, "") for figure in figures)


def _stages_table(stages: Sequence[StageTime], total_seconds: float | None) -> Table:
    table = Table(title=Text("Stages"), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for stage in stages:
        table.add_row(Text(stage.name), Text(seconds(stage.seconds)), Text(stage.status or NOTHING))
    table.add_row(Text("total"), Text(seconds(total_seconds)), Text(""), style="bold")
    return table


def _with_interval(results: RunResults, system: str, split: str) -> str:
    found = results.metrics(system, split)
    if number(found.exact_match) is None:
        return NOTHING
    return f"{percent(found.exact_match, '')} ({percent_range(found.ci95)})"
