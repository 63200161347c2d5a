"""What may make a run's figures say less than they seem to: counts go in, sentences come out.

Its own module because the terminal, results.json and the report show the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ensemw2s.boosting.records import RoundRecord
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.records_labels import LabelResult

CUT = 0.05
"""Share of answers that may end by length before it is said."""

SOLVED = 0.01
"""Weighted error of the first round below which there is next to nothing to boost."""


def of_labels(maker: str, reasons: Mapping[str, int], limit: int) -> list[str]:
    """A warning where many labels were cut.

    Args:
        maker: Who made the labels.
        reasons: Why answers ended → how many (`stop`, `length`).
        limit: `labeling.max_new_tokens`.
    """
    total, cut = sum(reasons.values()), reasons.get("length", 0)
    if not total or cut / total <= CUT:
        return []
    return [
        f"{cut / total:.0%} of the labels of {maker} were cut at labeling.max_new_tokens ({limit}); no student learns "
        "from them. Raise it."
    ]


def of_run(
    labels: Mapping[str, LabelResult],
    columns: Mapping[str, Mapping[str, Rows]],
    rounds: Sequence[RoundRecord],
    limit: int,
) -> tuple[str, ...]:
    """The warnings of a run.

    Args:
        labels: Maker → its labels.
        columns: Test split → voter → per-example columns.
        rounds: The boosting rounds.
        limit: `labeling.max_new_tokens`.
    """
    said = [text for maker, made in labels.items() for text in of_labels(maker, made.finish_reasons, limit)]
    shares = {
        f"{voter} ({split.upper()})": float(np.mean(rows["cut"]))
        for split in ("id", "ood")
        for voter, rows in columns.get(split, {}).items()
        if "cut" in rows and np.mean(rows["cut"]) > CUT
    }
    if shares:
        most = max(shares, key=shares.__getitem__)
        several = f" and {len(shares) - 1} more" if len(shares) > 1 else ""
        said.append(
            f"{shares[most]:.0%} of the test answers of {most}{several} were cut at labeling.max_new_tokens ({limit}) "
            "and count as wrong. Raise it, or look at the answers."
        )
    return (*said, *of_rounds(rounds))


def of_rounds(rounds: Sequence[RoundRecord]) -> list[str]:
    """A warning where the first expert makes next to no error on the easy training set."""
    if not rounds or rounds[0].weighted_error >= SOLVED:
        return []
    return [
        f"The easy training set is solved: the first round's weighted error is {rounds[0].weighted_error:.2%}, so "
        "boosting has next to nothing to work on. Take harder easy examples, fewer epochs or smaller weak models."
    ]
