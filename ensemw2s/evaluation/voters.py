"""Who answers in an evaluation: groups of voters that share a worker's memory, and names of voters that are no system.

Most systems are one voter of the same name. The zero-shot bases, the members of the sequence vote and the ensembles of
the first rounds are voters of their own, whose answers become figures of a system later (`evaluation.results`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ensemw2s.ensemble.voter import Voter

BASE = "base:"
"""Begins the name of a zero-shot base's voter; the base's name follows."""

EXPERT = "expert:"
"""Begins the name of a voter in the sequence vote; the expert's name follows."""

ROUNDS = "rounds:"
"""Begins the name of an ensemble of the first rounds; their number follows."""

PASSES = "passes:"
"""Begins the name of the ensemble before a consensus pass; the number of passes before it follows."""


class VoterGroup(BaseModel):
    """Voters that share models and a tokenizer, so a worker has them in memory together.

    Attributes:
        name: Name of the group; groups of one name are the same.
        voters: Its voters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    voters: tuple[Voter, ...]


@dataclass(frozen=True)
class EvaluationWork:
    """One split to evaluate with one group.

    Attributes:
        split: Name of the split in the results.
        examples: Its parquet file.
        group: Who answers.
        decoded: Whether the voters decode; else they are scored under teacher forcing only.
    """

    split: str
    examples: Path
    group: VoterGroup
    decoded: bool
