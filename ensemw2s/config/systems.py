"""The table of the systems that a run compares: what each is called, what it learns from, what it is held against.

Pure data, below everything that reads it: the config checks `evaluation.systems` with it, the graph and the plan learn
what to train, the report what to print, a study what it may never leave out. To add a system, add an entry to `TABLE`
and its voter to `pipeline.systems`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

BASE_ZERO_SHOT = "base_zero_shot"
BASE_ENSEMBLE = "base_ensemble"
EXPERT_SINGLE = "expert_single"
COMPUTE_MATCHED = "expert_compute_matched"
BAGGING = "bagging"
DEEP_ENSEMBLE = "deep_ensemble"
SEQUENCE_VOTE = "sequence_vote"
ENSEMW2S = "ensemw2s"
STUDENT_EASY_ONLY = "student_easy_only"
STUDENT_EASY_MATCHED = "student_easy_matched"
STUDENT_SINGLE = "student_single"
STUDENT_BASE_ENSEMBLE = "student_base_ensemble"
STUDENT_BAGGING = "student_bagging"
STUDENT_DEEP_ENSEMBLE = "student_deep_ensemble"
STUDENT_ENSEMW2S = "student_ensemw2s"
GENERATIONS = "student_generations"
STUDENT_CEILING = "student_ceiling"


@dataclass(frozen=True, kw_only=True)
class System:
    """One system of the comparison.

    Attributes:
        name: Its name in configs, files and folders.
        label: Its name in tables and plots.
        in_a_sentence: Its name inside a sentence.
        kind: `bases` are the weak bases without any training, `experts` are trained on the easy labelled examples,
            a `student` is the strong base after training.
        vote: How its models answer together: by `tokens`, or by whole `answers`. None where one model answers alone.
        learns_from: What a student learns from beside the easy examples: nothing (`easy`), `pseudo` labels, or the
            `true` labels of the hard examples. None for weak systems.
        labels_by: The system whose pseudo-labels a student learns from; of several generations, the first one's.
        claims_over: The rivals that it must beat for the method to hold, the cheapest one first. Those that are not
            compared by default count where they are asked for.
        also_against: Other systems that it is compared with.
        standard: Whether a report says so when this rival is missing.
        ours: Whether it is the method itself, which tables set in bold.
        by_default: Whether it is compared when a config names no systems.
        in_every_study: Whether a study evaluates it in every run, whatever its config says.
    """

    name: str
    label: str
    in_a_sentence: str
    kind: Literal["bases", "experts", "student"]
    vote: Literal["tokens", "answers"] | None = None
    learns_from: Literal["easy", "pseudo", "true"] | None = None
    labels_by: str | None = None
    claims_over: tuple[str, ...] = ()
    also_against: tuple[str, ...] = ()
    standard: bool = False
    ours: bool = False
    by_default: bool = True
    in_every_study: bool = False

    @property
    def is_student(self) -> bool:
        return self.kind == "student"

    @property
    def averages_bases(self) -> bool:
        """Whether its figures are means over the weak bases, each of which answers alone."""
        return self.kind == "bases" and self.vote is None

    @property
    def rivals(self) -> tuple[str, ...]:
        """All that it is compared with: first those that it must beat, the cheapest one first."""
        return self.claims_over + self.also_against


_ENTRIES = (
    System(
        name=BASE_ZERO_SHOT,
        label="Weak bases, zero-shot",
        in_a_sentence="the weak bases as they are",
        kind="bases",
        in_every_study=True,
    ),
    System(
        name=BASE_ENSEMBLE,
        label="Weak bases, ensemble",
        in_a_sentence="the token-level ensemble of the untuned bases",
        kind="bases",
        vote="tokens",
        standard=True,
        in_every_study=True,
    ),
    System(
        name=EXPERT_SINGLE,
        label="One expert",
        in_a_sentence="one expert",
        kind="experts",
        standard=True,
        in_every_study=True,
    ),
    System(
        name=COMPUTE_MATCHED,
        label="One expert, full budget",
        in_a_sentence="one expert with the whole ensemble’s training budget",
        kind="experts",
        standard=True,
        in_every_study=True,
    ),
    System(
        name=BAGGING,
        label="Bagging",
        in_a_sentence="bagging of as many experts",
        kind="experts",
        vote="tokens",
        by_default=False,
    ),
    System(
        name=DEEP_ENSEMBLE,
        label="Deep ensemble",
        in_a_sentence="a deep ensemble of as many experts",
        kind="experts",
        vote="tokens",
        standard=True,
        in_every_study=True,
    ),
    System(
        name=SEQUENCE_VOTE,
        label="Sequence-level vote",
        in_a_sentence="a sequence-level vote",
        kind="experts",
        vote="answers",
        standard=True,
    ),
    System(
        name=ENSEMW2S,
        label="EnsemW2S ensemble",
        in_a_sentence="the ensemble",
        kind="experts",
        vote="tokens",
        claims_over=(BASE_ENSEMBLE, EXPERT_SINGLE, COMPUTE_MATCHED, BAGGING, DEEP_ENSEMBLE),
        also_against=(SEQUENCE_VOTE, BASE_ZERO_SHOT),
        ours=True,
        in_every_study=True,
    ),
    System(
        name=STUDENT_EASY_ONLY,
        label="Student, easy data only",
        in_a_sentence="a student of the easy data alone",
        kind="student",
        learns_from="easy",
    ),
    System(
        name=STUDENT_EASY_MATCHED,
        label="Student, easy data, full steps",
        in_a_sentence="a student of the easy data alone with as many steps",
        kind="student",
        learns_from="easy",
        by_default=False,
    ),
    System(
        name=STUDENT_SINGLE,
        label="Student of one expert",
        in_a_sentence="a student of one expert’s labels",
        kind="student",
        learns_from="pseudo",
        labels_by=EXPERT_SINGLE,
    ),
    System(
        name=STUDENT_BASE_ENSEMBLE,
        label="Student of the bases",
        in_a_sentence="a student of the untuned bases’ labels",
        kind="student",
        learns_from="pseudo",
        labels_by=BASE_ENSEMBLE,
    ),
    System(
        name=STUDENT_BAGGING,
        label="Student of bagging",
        in_a_sentence="a student of bagging’s labels",
        kind="student",
        learns_from="pseudo",
        labels_by=BAGGING,
        by_default=False,
    ),
    System(
        name=STUDENT_DEEP_ENSEMBLE,
        label="Student of the deep ensemble",
        in_a_sentence="a student of the deep ensemble’s labels",
        kind="student",
        learns_from="pseudo",
        labels_by=DEEP_ENSEMBLE,
    ),
    System(
        name=STUDENT_ENSEMW2S,
        label="Student of EnsemW2S",
        in_a_sentence="the student of the ensemble’s labels",
        kind="student",
        learns_from="pseudo",
        labels_by=ENSEMW2S,
        claims_over=(
            STUDENT_EASY_ONLY,
            STUDENT_SINGLE,
            STUDENT_BASE_ENSEMBLE,
            STUDENT_BAGGING,
            STUDENT_DEEP_ENSEMBLE,
        ),
        also_against=(STUDENT_EASY_MATCHED, ENSEMW2S),
        ours=True,
    ),
    System(
        name=GENERATIONS,
        label="Student, last generation",
        in_a_sentence="the student of the last generation",
        kind="student",
        learns_from="pseudo",
        labels_by=ENSEMW2S,
        claims_over=(STUDENT_ENSEMW2S,),
        by_default=False,
    ),
    System(
        name=STUDENT_CEILING,
        label="Student, true labels",
        in_a_sentence="a student of the true labels",
        kind="student",
        learns_from="true",
    ),
)

TABLE: Mapping[str, System] = MappingProxyType({entry.name: entry for entry in _ENTRIES})
"""All systems by name, in the order of a report."""

ALL_SYSTEMS = tuple(TABLE)
"""Names of all systems in the order of a report."""

SYSTEMS = tuple(entry.name for entry in _ENTRIES if entry.by_default)
"""Systems that are compared where a config names none. `GENERATIONS` joins them if `student.generations` is above 1."""

SYSTEMS_BEFORE = (
    BASE_ZERO_SHOT,
    EXPERT_SINGLE,
    COMPUTE_MATCHED,
    BAGGING,
    SEQUENCE_VOTE,
    ENSEMW2S,
    STUDENT_EASY_ONLY,
    STUDENT_SINGLE,
    STUDENT_BAGGING,
    STUDENT_ENSEMW2S,
    STUDENT_CEILING,
)
"""What `SYSTEMS` was until version 0.2. A run that began with these goes on with them."""
