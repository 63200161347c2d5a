"""Which answers of an ensemble its members learn from: agreements and right or wrong go in, a gate and places come out.

Right and wrong are of easy validation answers alone. Of hard prompts only the agreement is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemw2s.boosting.anchors import KNOWN
from ensemw2s.storage.record import Record

PASS = "pass.json"
"""File of a pass's record, in the folder of the answers that it keeps."""

SURE = 0.1
"""Share of the validation answers, those of the highest agreement, whose precision the gate measures the others by."""

TRUSTED = 0.75
"""Least precision on easy validation of what passes. Hard answers of the same agreement are less often right than easy
ones, and members that learn from answers that are mostly wrong agree on what is wrong."""

ALONE = 0.9
"""The same where no second judge has a say: members that were trained on the same examples are wrong together."""

CERTAIN = 1.645
"""Standard normal quantile of the one-sided 95 % bound of a precision: a few answers that are all right show little."""

LEAST = 0.1
"""Least share of the hard prompts whose answers must pass the gate."""


@dataclass(frozen=True)
class Gate:
    """What agreement says about easy validation answers.

    Attributes:
        best: Precision of those of the highest agreement, in [0, 1].
        needed: Precision that answers must have to pass, in [0, 1].
        threshold: Lowest agreement at which they have it; None: there is none.
        precision: Precision at or above the threshold.
    """

    best: float
    needed: float
    threshold: float | None = None
    precision: float | None = None


def gate(agreement: Sequence[float], right: Sequence[bool], min_precision: float, trusted: float = TRUSTED) -> Gate:
    """Finds the lowest agreement at or above which validation answers are right often enough.

    Often enough is `min_precision` of what the tenth of the highest agreement reaches, and `trusted` at least, with a
    confidence of 95 %. A fixed precision would ask the same of members that can reach it and of members that cannot,
    however well their agreement tells right from wrong.

    Args:
        agreement: Of each validation answer that may pass, `[n]`.
        right: Whether it is right, `[n]`.
        min_precision: See `consensus.min_precision`; 0: everything passes.
        trusted: Least precision.
    """
    if min_precision == 0:
        return Gate(0.0, 0.0, 0.0, float(np.mean(right)) if len(right) else 0.0)
    if not len(agreement):
        return Gate(0.0, trusted)
    agreed, order = np.asarray(agreement, np.float64), np.argsort(-np.asarray(agreement, np.float64), kind="stable")
    agreed, hits = agreed[order], np.cumsum(np.asarray(right, bool)[order])
    last = np.flatnonzero(np.append(agreed[1:] != agreed[:-1], True))  # equal agreements pass together
    hits, number = hits[last], last + 1
    precision = hits / number
    best = float(precision[np.searchsorted(number, SURE * len(agreed))])
    needed = max(trusted, min_precision * best)
    enough = np.flatnonzero((precision >= needed) & (lower_bound(hits, number) >= trusted))
    if not enough.size:
        return Gate(best, needed)
    return Gate(best, needed, float(agreed[last[enough[-1]]]), float(precision[enough[-1]]))


def lower_bound(hits: NDArray[np.integer], number: NDArray[np.integer]) -> NDArray[np.float64]:
    """Least share of right answers that so many hits of so many allow, with a confidence of 95 % (Wilson's bound)."""
    share, z2 = hits / number, CERTAIN**2
    spread = CERTAIN * np.sqrt(share * (1 - share) / number + z2 / (4 * number**2))
    return np.asarray((share + z2 / (2 * number) - spread) / (1 + z2 / number))


def knows(bases_right: float, members_right: float) -> bool:
    """Whether the bases know enough to judge their members' answers, by their shares of right easy answers."""
    return bases_right > 0 and bases_right >= KNOWN * members_right


def keep(agreement: Sequence[float], usable: Sequence[bool], threshold: float | None, fraction: float) -> Kept:
    """Chooses the hard answers to learn from.

    Args:
        agreement: Of each hard prompt's answer, `[n]`.
        usable: Whether it ended by itself, is not empty, and is the second judge's answer too, if there is one, `[n]`.
        threshold: Of the gate; None: nothing passes.
        fraction: Largest share of all prompts to keep.

    Returns:
        How many pass, and the places of those that are kept, rising: the highest agreement first, of equals the
        earlier prompt; none where fewer than `LEAST` of the prompts pass.
    """
    agreed = np.asarray(agreement, np.float64)
    passing = np.asarray(usable, bool) & (agreed >= (np.inf if threshold is None else threshold))
    places = np.flatnonzero(passing)
    if not len(places) or len(places) < LEAST * len(agreed):
        return Kept(len(places), np.zeros(0, np.int64))
    best = np.argsort(-agreed[places], kind="stable")[: max(1, round(fraction * len(agreed)))]
    return Kept(len(places), np.sort(places[best]))


@dataclass(frozen=True)
class Kept:
    """Hard answers that pass the gate: their number, and the places of those that are kept, `[k]`, int64."""

    passing: int
    places: NDArray[np.int64]


class PassRecord(Record):
    """What a consensus pass was made of; no hard label has a part in it.

    Attributes:
        number: Counted from 1.
        anchor: λ at which the ensemble answered.
        agreement: `token` or `answer`.
        judge: Who had to give the same answer: `bases`, or `none`.
        seconded: Share of the hard answers that the second judge gives, too; None: there is no judge.
        validation: Number of easy validation answers.
        accuracy: Share of them that is right.
        best: The same of those of the highest agreement, of those that the second judge gives, too, if there is one.
        needed: Share that must be right above the gate.
        threshold: Least agreement that passes; None: none is enough.
        precision: Share of the validation answers at or above it that is right.
        prompts: Number of unlabelled hard prompts.
        passing: Hard answers at or above the threshold.
        kept: Those that the members learn from.
    """

    number: int
    anchor: float
    agreement: str
    judge: str = "none"
    seconded: float | None = None
    validation: int
    accuracy: float
    best: float
    needed: float
    threshold: float | None
    precision: float | None
    prompts: int
    passing: int
    kept: int

    @property
    def took_place(self) -> bool:
        """Whether any answer was kept; else there is no pass, and none after it."""
        return self.kept > 0

    @classmethod
    def read(cls, folder: Path) -> PassRecord:
        """Reads the record of a pass. Raises `ArtifactError` if the file is missing or damaged."""
        return cls.read_file(folder / PASS)

    def write(self, folder: Path) -> None:
        """Writes the record into the folder of the kept answers."""
        self.write_file(folder / PASS)
