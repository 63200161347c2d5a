"""The tables of a study's variants: against the default, against their own rivals, and those with other examples."""

from __future__ import annotations

from collections.abc import Sequence

from ensemw2s.config.study import DEFAULT
from ensemw2s.config.systems import BAGGING, BASE_ENSEMBLE, COMPUTE_MATCHED, DEEP_ENSEMBLE, ENSEMW2S, STUDENT_ENSEMW2S
from ensemw2s.evaluation.records import HARD_VALIDATION, VALIDATION
from ensemw2s.evaluation.wording import (
    SPLITS,
    amount,
    in_a_sentence,
    listed,
)
from ensemw2s.study.records import StudyFigures, VariantDifference
from ensemw2s.study.sheet import ALPHA, CHOICES, Sheet, difference, find, mean_text, name_of, ordered, p_value, scopes
from ensemw2s.study.summary import ALL, is_student

RIVALS = {
    BAGGING: "bagging",
    DEEP_ENSEMBLE: "deep ensemble",
    COMPUTE_MATCHED: "full-budget expert",
    BASE_ENSEMBLE: "bases' vote",
}
"""Rivals of a variant's ensemble, with their short names. Those that a study has are shown."""

ROUNDING = 1e-9
"""A difference that is no more comes from the order of sums."""


def variants(summary: StudyFigures) -> Sheet:
    """Every variant minus the default, the best on validation first."""
    note = (
        "Exact match of the ensemble (and of its student), points, paired by task and seed; on validation under "
        "teacher forcing. Choose by validation only: the ensemble by the easy one first, the student by the hard one. "
        f"{_by_chance(summary)}{_by_validation(summary)}"
    )
    headings, rows = _differences(summary.variants, summary)
    return Sheet("variants", "Variants", ("Variant − default", *headings), rows, note)


def pairs(summary: StudyFigures) -> Sheet:
    """Variants minus the others that the study names for them."""
    headings, rows = _differences(summary.pairs, summary)
    named = tuple((f"{row[0]} − {e.against}", *row[1:]) for e, row in zip(summary.pairs, rows, strict=True))
    note = "As the table of variants, minus another variant in place of the default."
    return Sheet("pairs", "Variants against each other", ("Variant − other", *headings), named, note)


def _differences(
    entries: Sequence[VariantDifference], summary: StudyFigures
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Headings and rows, without columns that no entry has; the name of the variant is a row's first text."""
    columns = {(ENSEMW2S, split): title for split, title in {**CHOICES, **SPLITS}.items()}
    columns |= {
        (STUDENT_ENSEMW2S, split): f"student, {title}"
        for split, title in {HARD_VALIDATION: CHOICES[HARD_VALIDATION], **SPLITS}.items()
    }
    columns = {place: title for place, title in columns.items() if any(e.of(*place) for e in entries)}
    rows = [
        (
            _named(e.variant, e.tasks, summary),
            *(text for place in columns for text in (difference(e.of(*place)), p_value(e.of(*place)))),
        )
        for e in entries
    ]
    return tuple(text for title in columns.values() for text in (title, "p")), tuple(rows)


def _named(variant: str, tasks: Sequence[str] | None, summary: StudyFigures) -> str:
    """A variant, with its tasks where they are known and are not all."""
    every = {scope for scope in scopes(summary) if scope != ALL}
    return variant if tasks is None or set(tasks) >= every else f"{variant} ({', '.join(tasks)})"


def _by_chance(summary: StudyFigures) -> str:
    """How many intervals on validation would miss 0 if no variant did anything, of those that can."""
    found = [own for e in summary.variants if (own := e.of(ENSEMW2S, VALIDATION))]
    able = sum(e.verdict != "unknown" and max(map(abs, e.ci95 or ())) > ROUNDING for e in found)
    return (
        f"If no variant mattered, {ALPHA * able:.1f} of the {able} intervals on easy validation of ensembles other "
        "than the default's would be expected to miss 0, half of them above it."
    )


def _by_validation(summary: StudyFigures) -> str:
    """The variants that validation speaks for, and those that it speaks against, in sentences."""
    text = ""
    for system, split in (
        (ENSEMW2S, VALIDATION),
        (ENSEMW2S, HARD_VALIDATION),
        (STUDENT_ENSEMW2S, HARD_VALIDATION),
    ):
        found = {e.variant: own for e in summary.variants if (own := e.of(system, split))}
        if not found:
            continue
        name, best = max(found.items(), key=lambda item: item[1].mean)
        said = f"{name} does best, {difference(best)}, p = {p_value(best)}"
        text += f" {name_of(system)}, {CHOICES[split]}: {said if best.mean > 0 else 'none beats the default'}"
        for verdict, where in (("better", "above"), ("worse", "below")):
            names = [variant for variant, entry in found.items() if entry.verdict == verdict]
            text += f"; the interval is {where} 0 for {', '.join(names) or 'none'}"
        text += "."
    return text


def rivals(summary: StudyFigures) -> Sheet:
    """Every variant's ensemble minus the rivals that its own experts' budget pays for, in the order of `variants`."""
    scope = scopes(summary)[0]
    rows = []
    held = {e.b for e in summary.comparisons if e.a == ENSEMW2S}
    measured = [rival for rival in RIVALS if rival in held]
    named = {DEFAULT: DEFAULT} | {e.variant: _named(e.variant, e.tasks, summary) for e in summary.variants}
    for variant, name in named.items():
        cost = find(summary.costs, task=scope, variant=variant, system=ENSEMW2S)
        row = [name, amount(cost and cost.tokens_trained)]
        for rival in measured:
            for split in SPLITS:
                own = {"task": scope, "variant": variant, "a": ENSEMW2S, "b": rival, "split": split}
                found = find(summary.comparisons, **own)
                row += [difference(found), p_value(found)]
        rows.append(tuple(row))
    columns = [f"− {RIVALS[rival]}, {split}" for rival in measured for split in SPLITS.values()]
    headings = ("Variant", "tokens trained", *(text for title in columns for text in (title, "p")))
    note = (
        f"Points of exact match over {listed([in_a_sentence(rival) for rival in measured])}, each with the "
        "settings and the budget of the variant itself: a gain counts only against those."
    )
    return Sheet("rivals", "Variants against their own rivals", headings, tuple(rows), note)


def others(summary: StudyFigures) -> Sheet:
    """Variants with other examples than the default's: what they give, and the ensemble against their other systems."""
    scope, rows = scopes(summary)[0], []
    for found in summary.other_data:
        name = _named(found.variant, found.tasks, summary)
        own = [e for e in summary.systems if (e.task, e.variant) == (scope, found.variant)]
        pairs = [e for e in summary.comparisons if (e.task, e.variant) == (scope, found.variant)]
        for system in ordered(e.system for e in own):
            a = STUDENT_ENSEMW2S if is_student(system) else ENSEMW2S
            row = [
                name,
                name_of(system),
                *(mean_text(find(own, system=system, split=s)) for s in (VALIDATION, *SPLITS)),
            ]
            for split in SPLITS:
                entry = find(pairs, a=a, b=system, split=split)
                row += [difference(entry), p_value(entry)]
            rows.append(tuple(row))
    headings = ("Variant", "", "validation", "ID", "OOD", "gain, ID", "p", "gain, OOD", "p")
    note = (
        "These change the data, so their validation and test examples are not the default's: hold nothing here against "
        "the default, or against another of them. Exact match, %, mean over seeds with 95 % t interval; gain: the "
        "ensemble (or its student) minus this system, points."
    )
    return Sheet("others", "Variants with examples of their own", headings, tuple(rows), note)
