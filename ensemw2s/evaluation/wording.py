"""Results in, their parts in words out: names of systems, numbers with units, who was compared.

One place for how figures read, so that the summary, the page, the plots and the terminal say a thing the same way.
A figure that a run does not have is a dash, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ensemw2s.boosting.records import AnchorSearch
from ensemw2s.config.systems import TABLE
from ensemw2s.evaluation.metrics import verdict
from ensemw2s.evaluation.records import Interval, PassResult, RunResults, Verdict

NOTHING = "–"
MINUS = "−"
NBSP = "\u00a0"  # between a number and its unit, which must not part at the end of a line

SPLITS = {"id": "ID", "ood": "OOD"}


def label(system: str) -> str:
    """Name of a system, or of a generation of students that made labels, in a table."""
    if system.startswith("generation_"):
        return f"Students, generation {system.removeprefix('generation_')}"
    return TABLE[system].label if system in TABLE else system


def in_a_sentence(system: str) -> str:
    """Name of a system inside a sentence."""
    return TABLE[system].in_a_sentence if system in TABLE else system


def number(value: object) -> float | None:
    """A finite number, or None for everything else (null, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def pair(value: object) -> tuple[float, float] | None:
    """An interval of two finite numbers, or None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    lo, hi = number(value[0]), number(value[1])
    return None if lo is None or hi is None else (lo, hi)


def plain(value: object, digits: int = 2) -> str:
    """A number with this many digits after the point."""
    x = number(value)
    return NOTHING if x is None else f"{x:.{digits}f}".replace("-", MINUS)


def percent(value: object, unit: str = f"{NBSP}%") -> str:
    """A fraction in per cent, with one digit after the point."""
    x = number(value)
    return NOTHING if x is None else f"{100 * x:.1f}{unit}".replace("-", MINUS)


def points(value: object) -> str:
    """A difference of fractions in percentage points, with its sign and one digit, without the word."""
    x = number(value)
    if x is None:
        return NOTHING
    text = f"{100 * x:+.1f}"
    return ("0.0" if text in ("+0.0", "-0.0") else text).replace("-", MINUS)


def percent_range(ci95: object) -> str:
    """An interval of fractions as `75.8–80.9`."""
    ends = pair(ci95)
    return NOTHING if ends is None else f"{percent(ends[0], '')}–{percent(ends[1], '')}"


def points_range(ci95: object) -> str:
    """An interval of differences as `−1.2 to +3.4`."""
    ends = pair(ci95)
    return NOTHING if ends is None else f"{points(ends[0])} to {points(ends[1])}"


def count(value: object) -> str:
    """A whole number with all of its digits."""
    x = number(value)
    return NOTHING if x is None else f"{x:.0f}"


def amount(value: object) -> str:
    """A large number with three digits and a unit: 812, 41.3 k, 2.1 M."""
    x = number(value)
    if x is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{NBSP}{unit}"
    return count(x)


def seconds(value: object) -> str:
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


def systems_of(results: RunResults) -> list[str]:
    """The systems that were run, in the order of a report, unknown ones last."""
    present = results.systems
    return [name for name in TABLE if name in present] + [name for name in present if name not in TABLE]


@dataclass(frozen=True)
class Bout:
    """A comparison that has its figures: system `a` minus system `b` on one split, in fractions.

    The verdict follows from the interval, so that no two places of a report can disagree on it. `n` is the number of
    examples, `figures` has the intervals of both systems' own figures.
    """

    a: str
    b: str
    split: str
    difference: float
    ci95: Interval
    n: int | None = None
    figures: tuple[Interval, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return verdict(*self.ci95, n=self.n, figures=self.figures)


def compared(results: RunResults, a: str, b: str, split: str) -> Bout | None:
    """The comparison of a with b, turned round where it was stored as b with a; None where there is none."""
    for entry in results.comparisons:
        difference, ends = number(entry.difference), pair(entry.ci95)
        if entry.split != split or difference is None or ends is None:
            continue
        both = [results.metrics(name, split) for name in (a, b)]
        known = tuple(around for found in both if (around := pair(found.ci95)) is not None)
        if (entry.a, entry.b) == (a, b):
            return Bout(a, b, split, difference, ends, both[0].n, known)
        if (entry.a, entry.b) == (b, a):
            return Bout(a, b, split, -difference, (-ends[1], -ends[0]), both[0].n, known)
    return None


def listed(items: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""


def of_anchor(found: AnchorSearch) -> str:
    """How the anchor was found, in a sentence or two."""
    if not found.bases_know:
        why = "The untuned bases (λ = 0) know too little to go back to, so members stay as they were trained."
    else:
        why = (
            f"λ = {found.anchor:g} has the largest sum of both columns, among those that keep nearly all of the "
            "accuracy on easy examples."
        )
    return f"Members keep the share λ of what training changed, and their base’s own weights for the rest. {why}"


def of_passes(found: Sequence[PassResult]) -> str:
    """What consensus passes are and how they went, for anyone."""
    what = (
        "In a pass, the ensemble answers hard prompts without knowing their true answers. The answers on which its "
        "members agree most are kept, and new members learn from these and from the easy examples."
    )
    last = found[-1].record if found else None
    if last is not None and last.judge == "bases":
        what += " Only answers that the untuned bases give, too, may be kept."
    if last is None or last.took_place:
        return what
    return (
        f"{what} Pass {last.number} did not take place, and the ensemble stayed as it was: {last.passing} of "
        f"{last.prompts} answers passed the gate, and a tenth must. The gate asks for an agreement at which answers to "
        f"easy validation examples are right in {percent(last.needed)} of the cases; of those with the highest "
        f"agreement, {percent(last.best)} are."
    )
