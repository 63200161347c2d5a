"""Which pseudo-labels a student learns from, and what each counts: labels of two judges in, chosen labels out.

The judges are the label maker and the strong model after training on easy examples alone. Its own module because the
choice is what keeps weak labels from doing harm, and because it must never see a hard label: true answers are no
argument of anything here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ensemw2s.config import StudentConfig
from ensemw2s.data.answers import Key
from ensemw2s.labeling.filters import passing
from ensemw2s.storage.record import Record, only_where_known

CHOICE = "choice.json"
"""File with what was chosen, beside a student's table of tokens."""

CHOSEN = "chosen.parquet"
"""File with the chosen labels, beside a student's table of tokens."""

LEAST_AGREED = 0.25
"""With `auto`, no label is learned where the judges agree on a smaller share of the prompts."""

UNANIMOUS = 1 - 1e-6
"""A share of votes that is one but for rounding."""


class Choice(Record):
    """What was chosen for a student.

    Attributes:
        labels: How, as in `student.labels`.
        prompts: Labels of the maker.
        agreed: Labels that both judges give; None where the strong model was not asked.
        kept: Labels that are learned.
        weight: What the loss of a kept label on which the judges differ counts; that of all others counts 1.
        easy_only: Whether the judges agree too seldom for `auto`: the student is that of the easy data alone.
    """

    labels: str
    prompts: int
    kept: int
    weight: float = 1.0
    agreed: int | None = only_where_known()
    easy_only: bool = False

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The choice in the folder of a student's table."""
        return cls.read_file(folder / CHOICE)

    def write(self, folder: Path) -> None:
        """Puts it into the folder of a student's table."""
        self.write_file(folder / CHOICE)


@dataclass(frozen=True)
class Chosen:
    """The labels that are learned.

    Attributes:
        labels: Rows of the maker's labels, or of the strong model's own.
        weights: What the loss of each counts, `[n]`.
        agreed: Whether both judges give it, `[n]`.
        choice: What is kept of all this in the results.
    """

    labels: pa.Table
    weights: NDArray[np.float64]
    agreed: NDArray[np.bool_]
    choice: Choice

    def for_results(self) -> pa.Table:
        """Id and answer of each label, what it counts and whether both judges give it, to be held against the truth."""
        return (
            self.labels.select(["id", "answer"])
            .append_column("weight", pa.array(self.weights))
            .append_column("agreed", pa.array(self.agreed))
        )


def choose(
    labels: pa.Table,
    own: pa.Table | None,
    wanted: StudentConfig,
    key: Callable[[str], Key] = str.strip,
    *,
    easy_only: bool = False,
) -> Chosen:
    """Chooses the labels that a student learns from.

    Args:
        labels: Of the label maker.
        own: The strong model's labels of the same prompts; None where it was not asked.
        wanted: How labels are chosen, and the filter that they must pass besides.
        key: What is compared of an answer (`data.answer_match`).
        easy_only: The label maker itself is the student of the easy data alone, since `auto` let nothing pass before.
            That it agrees with itself says nothing.

    Returns:
        The labels, in their order. There may be none.
    """
    agreed = np.zeros(len(labels), bool) if own is None else agreeing(labels, own, key)
    weight = 1.0
    source, both = labels, agreed
    if wanted.labels == "own":
        assert own is not None
        source, both = own, agreeing(own, labels, key)
    candidates = np.ones(len(source), bool)
    if wanted.labels == "unanimous":
        candidates = unanimous(labels)
    elif wanted.labels == "agreed":
        candidates = agreed
    elif wanted.labels == "auto":
        weight = 0.0 if easy_only else weight_of_others(float(agreed.mean()) if len(agreed) else 0.0)
        easy_only = weight == 0
        candidates[:] = not easy_only
    source, both = source.filter(pa.array(candidates)), both[candidates]
    kept = passing(source, wanted)
    source, both = source.filter(pa.array(kept)), both[kept]
    return Chosen(
        labels=source,
        weights=np.where(both, 1.0, weight) if wanted.labels == "auto" else np.ones(len(source)),
        agreed=both,
        choice=Choice(
            labels=wanted.labels,
            prompts=len(labels),
            kept=len(source),
            weight=weight,
            agreed=None if own is None else int(agreed.sum()),
            easy_only=easy_only,
        ),
    )


def agreeing(labels: pa.Table, others: pa.Table, key: Callable[[str], Key] = str.strip) -> NDArray[np.bool_]:
    """Which labels are also the other judge's: the same answer, from decoding that ended by itself, and not empty."""
    known = others.filter(pa.array(_usable(others)))
    answers = dict(zip(known["id"].to_pylist(), map(key, known["answer"].to_pylist()), strict=True))
    own = zip(labels["id"].to_pylist(), labels["answer"].to_pylist(), strict=True)
    return np.array([answers.get(identity) == key(text) for identity, text in own], bool) & _usable(labels)


def unanimous(labels: pa.Table) -> NDArray[np.bool_]:
    """Which labels every voting member gives by itself.

    A token has all votes if it is each member's likeliest one after the tokens before it. So a label whose every token
    has all votes is what each member decodes alone, and the reverse (greedy decoding).
    """
    return np.array([min(shares, default=0.0) >= UNANIMOUS for shares in labels["token_agreement"].to_pylist()], bool)


def weight_of_others(agreed: float) -> float:
    """What a label on which the judges differ counts under `auto`, from the share of prompts on which they agree."""
    return agreed if agreed >= LEAST_AGREED else 0.0


def _usable(labels: pa.Table) -> NDArray[np.bool_]:
    ended = np.asarray(labels["finish_reason"].to_pylist(), object) == "stop"
    return ended & (np.asarray(labels["answer"].to_pylist(), object) != "")
