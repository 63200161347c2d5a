"""The choice of an anchor λ without hard labels: what the ensemble does at each λ goes in, the chosen one comes out."""

from __future__ import annotations

from collections.abc import Sequence

from ensemw2s.boosting.records import AnchorPoint, AnchorSearch

ANCHORS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
"""What `auto` tries. At 0 the members are their bases: it shows what these know, and is not chosen."""

PROMPTS = 500
"""Easy validation examples and hard prompts that each λ is tried on, at most: two figures, each good to two points."""

KNOWN = 0.1
"""The bases know something where they alone reach this share of the trained ensemble's accuracy on easy validation."""

KEPT = 0.95
"""Share of that accuracy that an anchor must leave: members of one base agree more the lower it is, right or wrong."""


def choose(curve: Sequence[AnchorPoint], *, easy: int, hard: int) -> AnchorSearch:
    """Takes the λ with the largest sum of accuracy on easy validation and agreement on hard prompts.

    Args:
        curve: The ensemble at every λ, rising, with 0 and 1.
        easy: Number of easy validation examples.
        hard: Number of hard prompts.

    Returns:
        The choice. 1 where the bases know nothing; of equals the λ nearest to 1.
    """
    bases, trained = curve[0], curve[-1]
    know = bases.accuracy > 0 and bases.accuracy >= KNOWN * trained.accuracy
    fit = [p for p in curve[1:] if know and p.accuracy >= KEPT * trained.accuracy] or [trained]
    best = max(fit, key=lambda p: (p.accuracy + p.agreement, p.anchor))
    return AnchorSearch(anchor=best.anchor, curve=tuple(curve), easy=easy, hard=hard, bases_know=know)
