"""What a table of a study is, and how figures read in it: one place, so that no two reports say different things."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

from ensemw2s.config.systems import ENSEMW2S, TABLE
from ensemw2s.evaluation.metrics import CONFIDENCE
from ensemw2s.evaluation.records import HARD_VALIDATION, VALIDATION
from ensemw2s.evaluation.wording import (
    NOTHING,
    label,
    percent,
    percent_range,
    points,
    points_range,
)
from ensemw2s.study.records import Mean, MeanDifference, StudyFigures
from ensemw2s.study.rows import CHOSEN
from ensemw2s.study.summary import ALL, FEWEST

T = TypeVar("T")

ALPHA = 1 - CONFIDENCE

CHOICES = {VALIDATION: "validation", HARD_VALIDATION: "hard validation"}


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        key: What it is about; sheets of one key follow each other.
        title: Heading.
        headings: Of the columns; the first one names the rows.
        rows: Text.
        note: What to know when reading it.
    """

    key: str
    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def name_of(system: str) -> str:
    """Name of a system in a table."""
    return "EnsemW2S, T by validation" if system == CHOSEN else label(system)


def scopes(summary: StudyFigures) -> list[str]:
    """`all` where there are several tasks, then the tasks."""
    return list(dict.fromkeys(entry.task for entry in summary.systems))


def scope_name(scope: str) -> str:
    """Name of a task, or of all."""
    return "All tasks" if scope == ALL else scope


def without_empty(sheet: Sheet) -> Sheet:
    """A table without the columns in which no row has anything."""
    kept = [i for i in range(len(sheet.headings)) if i == 0 or any(row[i] not in ("", NOTHING) for row in sheet.rows)]
    rows = tuple(tuple(row[i] for i in kept) for row in sheet.rows)
    return replace(sheet, headings=tuple(sheet.headings[i] for i in kept), rows=rows)


def find(entries: Iterable[T], **wanted: str) -> T | None:
    """The first entry with these values."""
    return next((e for e in entries if all(getattr(e, k) == v for k, v in wanted.items())), None)


def lower_first(text: str) -> str:
    """The text for the middle of a sentence."""
    return f"{text[0].lower()}{text[1:]}"


def seeds_of(entries: Iterable[Mean]) -> str:
    """How many seeds figures are over; several numbers where that differs."""
    counts = ", ".join(map(str, sorted({e.n for e in entries}))) or "0"
    return f"{counts} seed{'' if counts == '1' else 's'}"


def difference(entry: Mean | None) -> str:
    """A difference with its interval, or with its seeds where they are too few for one."""
    if entry is None:
        return NOTHING
    if entry.ci95 is None:
        return points(entry.mean)
    if entry.n < FEWEST:
        return f"{points(entry.mean)} ({entry.n} seeds)"
    return f"{points(entry.mean)} ({points_range(entry.ci95)})"


def p_value(entry: MeanDifference | None) -> str:
    """The p of a difference; two digits."""
    if entry is None or entry.pairs < 2:
        return NOTHING
    return f"{entry.p:.2g}" if entry.p < 0.1 else f"{entry.p:.2f}"


def ordered(names: Iterable[str]) -> list[str]:
    """Systems in the order in which reports show them, the ensemble of chosen rounds after that of all."""
    known = list(TABLE)
    known.insert(known.index(ENSEMW2S) + 1, CHOSEN)
    present = set(names)
    return [name for name in known if name in present]


def mean_text(entry: Mean | None) -> str:
    """A mean with its interval."""
    if entry is None:
        return NOTHING
    if entry.ci95 is None or entry.n < FEWEST:
        return percent(entry.mean, "")
    return f"{percent(entry.mean, '')} ({percent_range(entry.ci95)})"
