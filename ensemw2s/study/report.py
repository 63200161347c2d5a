"""A study's rows in, what people see of it out: study.json, study.html with its plots, and tables on the terminal."""

from __future__ import annotations

import functools
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.config.study import StudyConfig
from ensemw2s.evaluation.page import data_uri
from ensemw2s.evaluation.plots import render
from ensemw2s.evaluation.themes import DARK, LIGHT
from ensemw2s.pipeline.manifest import git_commit, versions
from ensemw2s.storage import store
from ensemw2s.study import plots, tables
from ensemw2s.study.cells import with_other_data
from ensemw2s.study.records import StudyResults
from ensemw2s.study.sheet import Sheet
from ensemw2s.study.summary import summarise

SHOWN = {
    "comparisons": ("", "ID", "p", "OOD", "p"),
    "systems": ("", "ID", "OOD"),
    "variants": ("Variant − default", "validation", "p", "hard validation", "p"),
}
"""Sheets that the terminal shows, of all tasks together, and their columns; the page has all."""

NAMED = 5
"""Missing cells up to which a report names them."""


def write(
    study: StudyConfig,
    table: pa.Table,
    failed: dict[str, str],
    missing: list[str],
    folder: Path,
    commits: dict[str, int] | None = None,
    taken: dict[str, int] | None = None,
) -> StudyResults:
    """Writes study.json, study.html and plots/.

    Args:
        study: The study.
        table: Its rows.
        failed: Name of each failed cell → reason.
        missing: Names of the cells that are not in the table, failed or not.
        folder: Its folder.
        commits: Commit of the code → number of cells that it finished.
        taken: File → number of cells whose rows are from it.

    Returns:
        What study.json says.
    """
    frame = table.to_pandas()
    finished = int(frame[["task", "variant", "seed"]].drop_duplicates().shape[0])
    figures = summarise(frame, resamples=study.resamples, other_data=with_other_data(study), against=study.against)
    summary = StudyResults(
        name=study.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        git_commit=git_commit(),
        commits=commits or {},
        taken=taken or None,
        cells=finished + len(missing),
        finished=finished,
        missing=tuple(missing),
        seeds=tuple(sorted(int(seed) for seed in frame["seed"].unique())),
        failed=failed,
        resamples=study.resamples,
        **dict(figures),
    )
    summary.put_file(folder / "study.json")
    light, dark = (render(summary, theme, plots.PLOTS) for theme in (LIGHT, DARK))
    (folder / "plots").mkdir(exist_ok=True)
    for name, png in light.items():
        store.put_bytes(folder / "plots" / f"{name}.png", png)
    store.put_bytes(folder / "study.html", page(summary, light, dark).encode("utf-8"))
    return summary


def page(summary: StudyResults, light: dict[str, bytes], dark: dict[str, bytes]) -> str:
    """The whole page: HTML, every value escaped, which loads nothing."""
    shown = {
        name: {"light": data_uri(light[name]), "dark": data_uri(dark[name]), "caption": plots.CAPTIONS[name]}
        for name in light
    }
    return _template().render(
        summary=summary,
        sheets=list(tables.sheets(summary)),
        plots=shown,
        light=LIGHT,
        dark=DARK,
        known=facts(summary),
        verdicts=tables.verdicts(summary),
    )


def facts(summary: StudyResults) -> list[tuple[str, str]]:
    """Where the figures come from."""
    sizes = summary.parameters
    missing = summary.missing
    without = f" (without {'; '.join(missing)})" if 0 < len(missing) <= NAMED else ""
    commits = ", ".join(f"{commit} ({cells})" for commit, cells in summary.commits.items())
    taken = ", ".join(f"{source} ({cells})" for source, cells in (summary.taken or {}).items())
    return [
        *((f"parameters of {name}", ", ".join(map(str, found))) for name, found in sizes.items() if found),
        ("cells", f"{summary.finished} of {summary.cells}{without}"),
        *([("cells taken from", taken)] if taken else []),
        ("seeds", ", ".join(map(str, summary.seeds))),
        ("created", summary.created),
        ("commit of the report", str(summary.git_commit)),
        *([("commits of the cells", commits)] if commits else []),
        *((name, summary.versions[name]) for name in ("ensemw2s", "torch", "ray", "deepspeed", "transformers")),
    ]


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("ensemw2s.study"), PackageLoader("ensemw2s.evaluation")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("study.html.j2")


def print_summary(summary: StudyResults, console: Console) -> None:
    """Prints what holds over all tasks, and which cells failed.

    Args:
        summary: Contents of study.json.
        console: Where to print.
    """
    first: dict[str, Sheet] = {}
    for sheet in tables.sheets(summary):
        first.setdefault(sheet.key, sheet)
    for said, sentences in tables.verdicts(summary).items():
        if sentences:
            console.print(Text(f"\n{said}", "bold"))
            for sentence in sentences:
                console.print(Text(f"  {sentence}"))
    for key, headings in SHOWN.items():
        if key in first:
            console.print()
            print_sheet(first[key], headings, console)
    for name, reason in summary.failed.items():
        console.print(Text(f"\n{name} failed: {reason}"))


def print_sheet(sheet: Sheet, headings: tuple[str, ...], console: Console) -> None:
    """Prints the columns of a table that have these headings, and its note; a "p" is that of the column before it."""
    shown = [sheet.headings[i - (name == "p")] for i, name in enumerate(sheet.headings)]
    columns = [i for i, name in enumerate(sheet.headings) if name in headings and shown[i] in headings]
    table = Table(title=Text(sheet.title), title_justify="left", box=None, pad_edge=False)
    for i in columns:
        table.add_column(sheet.headings[i], justify="left" if i == 0 else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*(Text(row[i]) for i in columns))
    console.print(table)
    console.print(Text(sheet.note, "dim"))


def markdown(sheet: Sheet) -> str:
    """A table with its note as Markdown."""

    def line(cells: tuple[str, ...]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(sheet.headings) - 1)
    return "\n".join([line(sheet.headings), rule, *map(line, sheet.rows), "", sheet.note])
