"""A pilot in plain words: its figures go in, a paragraph comes out that says what to expect of the whole run.

Pure. Each sentence follows from a figure by a rule that a test can hold.
"""

from __future__ import annotations

import math

from ensemw2s.evaluation.wording import percent, plain
from ensemw2s.pilot.records import Agreement, PilotResult

NOTHING_LEARNED = 0.05
"""Exact match below which weak labels are nearly all wrong."""

APART = 0.1
"""Difference of two shares that is worth a word."""


def paragraph(found: PilotResult) -> str:
    """What a pilot found and what it lets one expect."""
    alone = f"trained on {found.easy} easy examples alone, {percent(found.easy_only)} of the hard ones"
    sentences = [
        f"The ensemble answers {percent(found.ensemble_easy)} of the easy test examples and {percent(found.ensemble)} "
        f"of the hard ones; the strong model, {alone}{_ceiling(found)}.",
        _gap(found),
        *_agreement(found.agreement),
        _expect(found),
        f"A pilot is rough: with {found.tests} hard test examples, figures are good to about "
        f"± {error(found.tests):.0f} points, and seeds differ, too.",
        found.time,
    ]
    return " ".join(sentences)


def error(n: int) -> float:
    """Half of a 95 % interval of a share, at its widest, in points."""
    return 100 * 1.96 * math.sqrt(0.25 / n)


def _ceiling(found: PilotResult) -> str:
    return f", and on true answers to hard ones {percent(found.ceiling)}" if found.ceiling is not None else ""


def _weak(found: PilotResult) -> float:
    """What the student has without any method: the better of the label maker and of the easy data alone."""
    return max(found.ensemble, found.easy_only)


def _gap(found: PilotResult) -> str:
    if found.ceiling is None:
        return "Too few true answers to hard prompts are known to say how large the gap is."
    gap = found.ceiling - _weak(found)
    if gap * 100 <= error(found.tests) / 2:
        return (
            "There is no gap to recover here: true answers to hard examples would hardly help. Harder hard examples, "
            "or a stronger model, would make one."
        )
    return f"There is a gap of {plain(100 * gap, 0)} points to recover."


def _agreement(found: Agreement | None) -> list[str]:
    if found is None:
        return [
            "Fewer than two experts have a vote, so nothing can be said of agreement: more easy examples or epochs may "
            "help."
        ]
    where = f"to {percent(found.short)} of the shortest third and {percent(found.long)} of the longest"
    if abs(found.short - found.long) < APART:
        where = "to short and to long ones alike"
    said = (
        f"The {found.experts} experts, each by itself, give the same answer to {percent(found.share)} of the "
        f"{found.prompts} hard prompts without labels, {where}."
    )
    if found.right is None:
        return [said, "They never agree on a hard test example."]
    others = f", the ensemble on the others in {percent(found.right_others)}" if found.right_others is not None else ""
    return [said, f"Where they agree on hard test examples, they are right in {percent(found.right)}{others}."]


def _expect(found: PilotResult) -> str:
    if found.ensemble < NOTHING_LEARNED:
        return (
            "The weak models cannot do the hard task at all, so expect nothing of their labels: make the hard examples "
            "easier, or take better weak models."
        )
    if found.easy_only > found.ensemble + APART:
        return (
            "The strong model already does better from easy examples alone than the ensemble, so labels may do harm: "
            "use student.labels auto, which finds that out by itself."
        )
    same = found.agreement
    if same is not None and same.right is not None and same.right > found.ensemble + APART:
        return "Agreement tells right from wrong here: use student.labels auto or unanimous, and try consensus.passes."
    if found.easy_only + APART < found.ensemble:
        return "Expect the student to come near the ensemble, and perhaps past it."
    return "Expect the student to be about as good as one of easy examples alone; several seeds would tell."
