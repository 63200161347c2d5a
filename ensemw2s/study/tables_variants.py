"""The tables of a study's variants: against the default, against their own rivals, and those with other examples."""

from __future__ import annotations

from typing import Any

from ensemw2s.config_study import DEFAULT
from ensemw2s.evaluation.wording import (
    SPLITS,
    amount,
)
from ensemw2s.study.rows import HARD_VALIDATION, VALIDATION
from ensemw2s.study.sheet import ALPHA, CHOICES, Sheet, difference, find, mean_text, name_of, ordered, p_value, scopes

Facts = dict[str, Any]


def variants(summary: Facts) -> Sheet:
    """Every variant minus the default, the best on validation first."""
    columns = {f"ensemw2s/{split}": title for split, title in {**CHOICES, **SPLITS}.items()}
    columns |= {
        f"student_ensemw2s/{split}": f"student, {title}"
        for split, title in {HARD_VALIDATION: CHOICES[HARD_VALIDATION], **SPLITS}.items()
    }
    columns = {key: title for key, title in columns.items() if any(e.get(key) for e in summary["variants"])}
    rows = [
        (e["variant"], *(text for key in columns for text in (difference(e.get(key)), p_value(e.get(key)))))
        for e in summary["variants"]
    ]
    headings = ("Variant − default", *(text for title in columns.values() for text in (title, "p")))
    note = (
        "Exact match of the ensemble (and of its student), points, paired by task and seed; on validation under "
        "teacher forcing. Choose by validation only: the ensemble by the easy one first, the student by the hard one. "
        f"Of {len(rows)} intervals in a column {ALPHA * len(rows):.0f} or so miss 0 by chance."
        + _by_validation(summary)
    )
    return Sheet("variants", "Variants", headings, tuple(rows), note)


def _by_validation(summary: Facts) -> str:
    """The variants that validation speaks for, and those that it speaks against, in sentences."""
    text = ""
    for system, split in (
        ("ensemw2s", VALIDATION),
        ("ensemw2s", HARD_VALIDATION),
        ("student_ensemw2s", HARD_VALIDATION),
    ):
        found = {e["variant"]: e[f"{system}/{split}"] for e in summary["variants"] if e.get(f"{system}/{split}")}
        if not found:
            continue
        name, best = max(found.items(), key=lambda item: item[1]["mean"])
        said = f"{name} does best, {difference(best)}, p = {p_value(best)}"
        text += f" {name_of(system)}, {CHOICES[split]}: {said if best['mean'] > 0 else 'none beats the default'}"
        for verdict, where in (("better", "above"), ("worse", "below")):
            names = [variant for variant, entry in found.items() if entry["verdict"] == verdict]
            text += f"; the interval is {where} 0 for {', '.join(names) or 'none'}"
        text += "."
    return text


def rivals(summary: Facts) -> Sheet:
    """Every variant's ensemble minus the rivals that its own experts' budget pays for, in the order of `variants`."""
    scope = scopes(summary)[0]
    rows = []
    for variant in (DEFAULT, *(e["variant"] for e in summary["variants"])):
        cost = find(summary["costs"], task=scope, variant=variant, system="ensemw2s") or {}
        row = [variant, amount(cost.get("tokens_trained"))]
        for rival in ("bagging", "expert_compute_matched"):
            for split in SPLITS:
                own = {"task": scope, "variant": variant, "a": "ensemw2s", "b": rival, "split": split}
                entry = find(summary["comparisons"], **own)
                row += [difference(entry), p_value(entry)]
        rows.append(tuple(row))
    columns = [f"− {who}, {split}" for who in ("bagging", "full-budget expert") for split in SPLITS.values()]
    headings = ("Variant", "tokens trained", *(text for title in columns for text in (title, "p")))
    note = (
        "Points of exact match over bagging and over one expert with the training of all rounds, each with the "
        "settings and the budget of the variant itself: a gain counts only against those."
    )
    return Sheet("rivals", "Variants against their own rivals", headings, tuple(rows), note)


def others(summary: Facts) -> Sheet:
    """Variants with other examples than the default's: what they give, and the ensemble against their other systems."""
    scope, rows = scopes(summary)[0], []
    for found in summary["other_data"]:
        whole = {scope, *found["tasks"]} >= set(scopes(summary))
        name = found["variant"] if whole else f"{found['variant']} ({', '.join(found['tasks'])})"
        own, pairs = (
            [e for e in summary[part] if (e["task"], e["variant"]) == (scope, found["variant"])]
            for part in ("systems", "comparisons")
        )
        for system in ordered(e["system"] for e in own):
            a = "student_ensemw2s" if system.startswith("student_") else "ensemw2s"
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
