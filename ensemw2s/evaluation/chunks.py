"""What goes to the processes that evaluate, and what comes back: examples and who answers them, and their columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensemw2s.cluster.pool import Chunk

Rows = dict[str, list[Any]]
"""Per-example columns of one voter on one split."""

OPTION = {"answer": "option", "sum": "option_sum", "token": "option_token", "byte": "option_byte"}
"""Measure of options (`ensemble.options.By`) → the column with the option that is likeliest by it."""


@dataclass(frozen=True)
class SplitChunk:
    """Examples of a split, and which voters are to answer them.

    Attributes:
        examples: Where they are.
        split: Name of the split.
        group: Name of the voters' group.
        decoded: Whether the voters decode, too.
        shown: Examples of the split of which every token is kept, from the first on.
    """

    examples: Chunk
    split: str
    group: str
    decoded: bool
    shown: int


@dataclass(frozen=True)
class AnsweredChunk:
    """The columns of each voter for a chunk of a split that starts at row `start`."""

    split: str
    start: int
    columns: dict[str, Rows]
