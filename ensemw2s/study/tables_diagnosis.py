"""The tables of what members' errors have in common, and whether that goes with what their vote gains."""

from __future__ import annotations

from ensemw2s.config.systems import BAGGING, DEEP_ENSEMBLE, ENSEMW2S
from ensemw2s.evaluation.records import VALIDATION
from ensemw2s.evaluation.wording import (
    SPLITS,
    percent,
    plain,
    points,
)
from ensemw2s.study.records import StudyFigures
from ensemw2s.study.sheet import Sheet, name_of

FIGURES = {
    "error_correlation": "correlation of errors",
    "same_wrong": "same wrong token, where two are wrong",
    "all_same_wrong": "all agree on a wrong token",
    "all_same_wrong_answer": "all agree on a wrong answer",
}


def together(summary: StudyFigures) -> Sheet:
    """Means over the runs of the default variant of what members' errors have in common."""
    keys = (
        "error_correlation",
        "both_wrong",
        "same_wrong",
        "all_same_wrong",
        "same_wrong_answer",
        "all_same_wrong_answer",
    )
    rows = []
    for system in (ENSEMW2S, DEEP_ENSEMBLE, BAGGING):
        for split in (VALIDATION, *SPLITS):
            own = [p for p in summary.diagnosis.points if (p.system, p.split) == (system, split)]
            if own:
                cells = [_average([getattr(p, key) for p in own]) for key in keys]
                shown = [plain(cells[0]), *(percent(value, "") for value in cells[1:])]
                gain = points(_average([p.gain for p in own]))
                rows.append((name_of(system), SPLITS.get(split, split), *shown, gain, str(len(own))))
    headings = (
        "", "split", "correlation", "both wrong", "same wrong token", "all the same", "same wrong answer",
        "all the same", "gain", "runs",
    )  # fmt: skip
    note = (
        "Means over runs. Correlation of two members' errors; then in %: tokens that both get wrong, how often these "
        "two agree on the token, tokens on which all agree wrongly, the same two for whole decoded answers of boosted "
        "experts; and what the vote gains over its mean member, points, under teacher forcing."
    )
    return Sheet("diagnosis", "What members' errors have in common", headings, tuple(rows), note)


def _average(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def associations(summary: StudyFigures) -> Sheet:
    """Does what errors have in common go with the vote's gain."""
    rows = tuple(
        (FIGURES[e.figure], e.split, plain(e.rho), f"{e.p:.2g}", str(e.groups), str(e.n))
        for e in summary.diagnosis.associations
    )
    note = (
        "Spearman's rank correlation within tasks (their mean) over the runs of the default variant, between a figure "
        "of the boosted experts' errors and their vote's gain over its mean member, in exact match under teacher "
        "forcing; p by permutation within tasks."
    )
    headings = ("", "split", "ρ", "p", "tasks", "runs")
    return Sheet("diagnosis", "Common errors against the vote's gain", headings, rows, note)
