"""results.json in, what a run shows at its end out: `report.html` with its plots, and the table on the terminal.

Both say the same sentences (`summary`) in the same numbers (`wording`); this module alone writes files and prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.evaluation.page import page
from ensemw2s.evaluation.plots import DARK, LIGHT, render
from ensemw2s.evaluation.summary import summarise
from ensemw2s.evaluation.wording import (
    NOTHING,
    SPLITS,
    figure,
    label,
    number,
    percent,
    percent_range,
    plain,
    seconds,
    systems_of,
)
from ensemw2s.storage import store


def write_report(results: dict[str, Any], directory: Path) -> Path:
    """Writes `report.html` and `plots/*.png`.

    Args:
        results: Contents of results.json; systems may be missing and values null.
        directory: Folder of the run; made when it does not exist.

    Returns:
        Path of the page, which is put in place whole.
    """
    light, dark = render(results, LIGHT), render(results, DARK)
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    for name, png in light.items():
        store.put_bytes(plots / f"{name}.png", png)
    html = directory / "report.html"
    store.put_bytes(html, page(results, light, dark).encode("utf-8"))
    return html


def print_table(results: dict[str, Any], console: Console) -> None:
    """Prints systems × ID and OOD exact match with PGR, the verdicts, and the seconds of each stage.

    Args:
        results: Contents of results.json; systems may be missing and values null.
        console: Where to print.
    """
    console.print(_systems_table(results))
    recovered = [(splits or {}).get("ood") or {} for splits in (results.get("pgr") or {}).values()]
    for reason in sorted({str(found["reason"]) for found in recovered if found.get("reason")}):
        console.print(Text(f"PGR is null: {reason}."))
    for contest in summarise(results).contests:
        console.print()
        console.print(Text(contest.record))
        for sentence in contest.not_wins:
            console.print(Text(sentence))
    if results.get("stages"):
        console.print()
        console.print(_stages_table(results))


def _systems_table(results: dict[str, Any]) -> Table:
    table = Table(title=Text("Exact match, % (95 % interval)"), title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("ID", "OOD", "PGR, OOD"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in systems_of(results):
        cells = [Text(_with_interval(results, name, split)) for split in SPLITS]
        found = ((results.get("pgr") or {}).get(name) or {}).get("ood")
        value = None if not found else number(found.get("value"))
        recovered = "" if not found else "null" if value is None else plain(value)
        style = "bold" if name in ("ensemw2s", "student_ensemw2s") else ""
        table.add_row(Text(label(name)), *cells, Text(recovered), style=style)
    return table


def _stages_table(results: dict[str, Any]) -> Table:
    table = Table(title=Text("Stages"), title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for stage in results["stages"]:
        row = (stage.get("name"), seconds(stage.get("seconds")), stage.get("status"))
        table.add_row(*(Text(NOTHING if cell is None else str(cell)) for cell in row))
    table.add_row(Text("total"), Text(seconds(results.get("total_seconds"))), Text(""), style="bold")
    return table


def _with_interval(results: dict[str, Any], system: str, split: str) -> str:
    value = figure(results, system, split, "exact_match")
    if number(value) is None:
        return NOTHING
    return f"{percent(value, '')} ({percent_range(figure(results, system, split, 'ci95'))})"
