"""What goes to the actors that make labels, and what comes back: prompts and their maker; figures of a chunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ensemw2s.cluster.pool import Chunk, chunks
from ensemw2s.ensemble.voter import Voter


@dataclass(frozen=True)
class LabelJob:
    """Prompts to label, by whom, and the folder of the parts."""

    voter: Voter
    prompts: Path
    output: Path

    def chunks(self, size: int) -> list[LabelChunk]:
        """The prompts in chunks of at most `size`, one for each part."""
        return [LabelChunk(chunk, self.output.resolve()) for chunk in chunks(self.prompts, size)]


@dataclass(frozen=True)
class LabelChunk:
    """Prompts to label, and the folder that their part goes into."""

    prompts: Chunk
    output: Path


@dataclass(frozen=True)
class LabeledChunk:
    """What came of a chunk.

    Attributes:
        rows: Its prompts.
        rejected: How many of them cannot be labelled.
        reason: Why the first of these cannot; empty if there is none.
        tokens: Tokens of the labels.
        actor: Name of the actor that made them.
        proposed: Tokens that drafts proposed in this actor so far.
        accepted: How many of these were accepted.
        kinds: How the members run in this actor; empty if the chunk had been labelled before.
        began: When decoding began, in seconds since 1970.
        ended: When the part was written.
    """

    rows: int
    rejected: int
    reason: str
    tokens: int
    actor: str
    proposed: int
    accepted: int
    kinds: tuple[str, ...]
    began: float
    ended: float
