"""results.json in, its parts by name and in words out: names of systems, numbers with units, who was compared.

One place for how figures read, so that the summary, the page, the plots and the terminal say a thing the same way.
Everything tolerates what a run left out: a missing or null figure is a dash, never an error.
"""

from __future__ import annotations

import math
from typing import Any

from ensemw2s.evaluation.metrics import verdict

NOTHING = "–"
MINUS = "−"
NBSP = "\u00a0"  # between a number and its unit, which must not part at the end of a line

SPLITS = {"id": "ID", "ood": "OOD"}

LABELS = {
    "base_zero_shot": "Weak bases, zero-shot",
    "expert_single": "One expert",
    "expert_compute_matched": "One expert, full budget",
    "bagging": "Bagging",
    "sequence_vote": "Sequence-level vote",
    "ensemw2s": "EnsemW2S ensemble",
    "student_easy_only": "Student, easy data only",
    "student_single": "Student of one expert",
    "student_bagging": "Student of bagging",
    "student_ensemw2s": "Student of EnsemW2S",
    "student_generations": "Student, last generation",
    "student_ceiling": "Student, true labels",
}

IN_A_SENTENCE = {
    "base_zero_shot": "the weak bases as they are",
    "expert_single": "one expert",
    "expert_compute_matched": "one expert with the whole ensemble’s training budget",
    "bagging": "bagging of as many experts",
    "sequence_vote": "a sequence-level vote",
    "ensemw2s": "the ensemble",
    "student_easy_only": "a student of the easy data alone",
    "student_single": "a student of one expert’s labels",
    "student_bagging": "a student of bagging’s labels",
    "student_ensemw2s": "the student of the ensemble’s labels",
    "student_generations": "the student of the last generation",
    "student_ceiling": "a student of the true labels",
}


def label(system: str) -> str:
    """Name of a system, or of a generation of students that made labels, in a table."""
    if system.startswith("generation_"):
        return f"Students, generation {system.removeprefix('generation_')}"
    return LABELS.get(system, system)


def in_a_sentence(system: str) -> str:
    """Name of a system inside a sentence."""
    return IN_A_SENTENCE.get(system, system)


def number(value: Any) -> float | None:
    """A finite number, or None for all that is none (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def pair(value: Any) -> tuple[float, float] | None:
    """An interval of two finite numbers, or None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    lo, hi = number(value[0]), number(value[1])
    return None if lo is None or hi is None else (lo, hi)


def plain(value: Any, digits: int = 2) -> str:
    """A number with so many digits after the point."""
    x = number(value)
    return NOTHING if x is None else f"{x:.{digits}f}".replace("-", MINUS)


def percent(value: Any, unit: str = f"{NBSP}%") -> str:
    """A fraction as per cent, one digit."""
    x = number(value)
    return NOTHING if x is None else f"{100 * x:.1f}{unit}".replace("-", MINUS)


def points(value: Any) -> str:
    """A difference of fractions as signed percentage points, one digit, without the word."""
    x = number(value)
    if x is None:
        return NOTHING
    text = f"{100 * x:+.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", MINUS)


def percent_range(ci95: Any) -> str:
    """An interval of fractions as `75.8–80.9`."""
    ends = pair(ci95)
    return NOTHING if ends is None else f"{percent(ends[0], '')}–{percent(ends[1], '')}"


def points_range(ci95: Any) -> str:
    """An interval of differences as `−1.2 to +3.4`."""
    ends = pair(ci95)
    return NOTHING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def count(value: Any) -> str:
    """A whole number, all of its digits."""
    x = number(value)
    return NOTHING if x is None else f"{x:.0f}"


def amount(value: Any) -> str:
    """A large number, three digits and a unit: 812, 41.3 k, 2.1 M."""
    x = number(value)
    if x is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{NBSP}{unit}"
    return count(x)


def seconds(value: Any) -> str:
    """A duration: 4.2 s, 58 s, 3 min 07 s, 2 h 05 min."""
    x = number(value)
    if x is None:
        return NOTHING
    if x < 9.95:
        return f"{x:.1f}{NBSP}s"
    whole = round(x)
    if whole < 60:
        return f"{whole}{NBSP}s"
    if whole < 3600:
        return f"{whole // 60}{NBSP}min {whole % 60:02d}{NBSP}s"
    return f"{whole // 3600}{NBSP}h {whole % 3600 // 60:02d}{NBSP}min"


def figure(results: dict[str, Any], system: str, split: str, name: str) -> Any:
    """One of a system's METRICS on a split, or None."""
    return ((_part(results, "systems").get(system) or {}).get(split) or {}).get(name)


def systems_of(results: dict[str, Any]) -> list[str]:
    """The systems that were run, in the order of the contract, unknown ones last."""
    present = _part(results, "systems")
    return [name for name in LABELS if name in present] + [name for name in present if name not in LABELS]


def compared(results: dict[str, Any], a: str, b: str, split: str) -> dict[str, Any] | None:
    """The paired comparison of a with b, turned round where it was stored as b with a; None where there is none.

    The verdict follows from the interval, so that no two places of a report can disagree on it.
    """
    for entry in results.get("comparisons") or []:
        names = (entry.get("a"), entry.get("b"))
        difference, ends = number(entry.get("difference")), pair(entry.get("ci95"))
        if entry.get("split") != split or difference is None or ends is None:
            continue
        if names == (b, a):
            difference, ends = -difference, (-ends[1], -ends[0])
        elif names != (a, b):
            continue
        return {"a": a, "b": b, "split": split, "difference": difference, "ci95": ends, "verdict": verdict(*ends)}
    return None


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def _part(results: dict[str, Any], key: str) -> dict[str, Any]:
    return results.get(key) or {}
