"""Which answers of an ensemble its members learn from: agreements and right or wrong go in, a gate and places come out.

Right and wrong are of easy validation answers alone. Of hard prompts only the agreement is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemw2s.storage.record import Record

PASS = "pass.json"
"""File of a pass's record, in the folder of the answers that it keeps."""

SURE = 0.1
"""Share of the validation answers, those of the highest agreement, whose precision the gate measures the others by."""

TRUSTED = 0.75
"""Least precision on easy validation of what passes. Hard answers of the same agreement are less often right than easy
ones, and members that learn from answers that are mostly wrong agree on what is wrong."""

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


def gate(agreement: Sequence[float], right: Sequence[bool], min_precision: float) -> Gate:
    """Finds the lowest agreement at or above which validation answers are right often enough.

    Often enough is `min_precision` of what the tenth of the highest agreement reaches, and `TRUSTED` at least. A fixed
    precision would ask the same of members that can reach it and of members that cannot, however well their agreement
    tells right from wrong.

    Args:
        agreement: Of each validation answer, `[n]`.
        right: Whether it is right, `[n]`.
        min_precision: See `consensus.min_precision`.
    """
    if not len(agreement):
        return Gate(0.0, TRUSTED)
    agreed, order = np.asarray(agreement, np.float64), np.argsort(-np.asarray(agreement, np.float64), kind="stable")
    agreed, hits = agreed[order], np.cumsum(np.asarray(right, bool)[order])
    last = np.flatnonzero(np.append(agreed[1:] != agreed[:-1], True))  # equal agreements pass together
    precision = hits[last] / (last + 1)
    best = float(precision[np.searchsorted(last + 1, SURE * len(agreed))])
    needed = max(TRUSTED, min_precision * best)
    if not (enough := np.flatnonzero(precision >= needed)).size:
        return Gate(best, needed)
    return Gate(best, needed, float(agreed[last[enough[-1]]]), float(precision[enough[-1]]))


def keep(agreement: Sequence[float], usable: Sequence[bool], threshold: float | None, fraction: float) -> Kept:
    """Chooses the hard answers to learn from.

    Args:
        agreement: Of each hard prompt's answer, `[n]`.
        usable: Whether it ended by itself and is not empty, `[n]`.
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
        validation: Number of easy validation answers.
        accuracy: Share of them that is right.
        best: The same of those of the highest agreement.
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
