"""results.json as records, written and read here only.

A figure that a run does not have is None, and null and absent mean the same in the file: readers show a dash. Fractions
are in [0, 1], differences are of fractions, and intervals are 95 % ones, `(low, high)`. An *exact match* is an answer
that equals the true one, white space at both ends aside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import Field

from ensemw2s.boosting.consensus import PassRecord
from ensemw2s.boosting.records import AnchorSearch, RoundRecord, VoteFit
from ensemw2s.data.dropped import Dropped
from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.records_labels import ChoiceResult, LabelResult
from ensemw2s.evaluation.task import Task
from ensemw2s.storage import store
from ensemw2s.storage.record import ByName, SparseRecord, only_where_known
from ensemw2s.storage.remote import shown

RESULTS = "results.json"
"""File of a run's results, in the run's folder; without what only the run knows, in the folder of its evaluation."""

VALIDATION, HARD_VALIDATION = "validation", "hard_validation"
"""Splits on which choices may be made; the second one is there where `data.sizes.hard_validation` is above 0."""

T = TypeVar("T")
Interval = tuple[float, float]
Verdict = Literal["better", "worse", "no difference", "saturated", "too few to tell"]


class BySplit(SparseRecord, Generic[T]):
    """The same for each test split.

    Attributes:
        id: On the easy test examples (in distribution).
        ood: On the hard test examples (out of distribution).
    """

    id: T | None = None
    ood: T | None = None

    def on(self, split: str) -> T | None:
        """What there is on `id` or `ood`; None on every other split."""
        return {"id": self.id, "ood": self.ood}.get(split)


class Metrics(SparseRecord):
    """How one system did on one split.

    Attributes:
        exact_match: Share of the examples whose decoded answer is the true one.
        forced_exact_match: Share of the examples whose every token is the likeliest one under teacher forcing.
        token_accuracy: Share of the answer tokens, end tokens included, that are the likeliest under teacher forcing.
        nll: Negative log-likelihood of the true answer, in nats per token. None also where it is infinite: with hard
            votes a true token can get no probability at all.
        n: Number of examples.
        ci95: Bootstrap interval of `exact_match`, over examples.
        option_accuracy: Of the examples with options, the share whose likeliest option is the true one. Options are
            compared by the log-likelihood of the whole answer, end token included.
        option_acc: The same by the log-likelihood of the option alone, without the end token (lm-eval's `acc`).
        option_acc_token: The same by that per token.
        option_acc_norm: The same by that per byte of the option's text (lm-eval's `acc_bytes`, and its `acc_norm` where
            a character is a byte).
    """

    exact_match: float | None = None
    forced_exact_match: float | None = None
    token_accuracy: float | None = None
    nll: float | None = None
    n: int | None = None
    ci95: Interval | None = None
    option_accuracy: float | None = None
    option_acc: float | None = only_where_known()
    option_acc_token: float | None = only_where_known()
    option_acc_norm: float | None = only_where_known()


class TrainingCost(SparseRecord):
    """What training a system took, without those who made its labels.

    Attributes:
        tokens_trained: Answer tokens seen, each epoch counted.
        train_seconds: Wall-clock seconds, summed over its models.
    """

    tokens_trained: int
    train_seconds: float


class SystemCost(TrainingCost):
    """What a system took.

    Attributes:
        tokens_decoded: Tokens decoded for both test splits; each member of an ensemble counts.
        decode_seconds: Seconds of decoding them, summed over workers.
    """

    tokens_decoded: int
    decode_seconds: float


class SystemResult(BySplit[Metrics]):
    """A system on both test splits, and what it took."""

    cost: SystemCost | None = None


class Difference(SparseRecord):
    """A difference of two exact matches on the same examples, with its bootstrap interval."""

    difference: float | None = None
    ci95: Interval | None = None


class Comparison(SparseRecord):
    """System `a` minus system `b`, paired by example.

    Attributes:
        a: Name of a system.
        b: Name of its rival.
        split: `id` or `ood`.
        difference: Exact match of `a` minus that of `b`.
        ci95: Bootstrap interval of the difference.
        verdict: What the interval lets one say of `a`: better, worse, or no difference. With fewer than 50 examples it
            is too few to tell; without a difference, where either system is at 0 or 100 %, it is saturated.
    """

    a: str
    b: str
    split: str
    difference: float | None = None
    ci95: Interval | None = None
    verdict: str = ""


class Pgr(SparseRecord):
    """Performance gap recovered by a student: (student - weak) / (ceiling - weak).

    Attributes:
        value: The ratio. None where the ceiling is not above the weak expert.
        ci95: Bootstrap interval of the ratio. None where too many resamples have no gap: it then has no bounds.
        reason: Why there is no value.
        student_minus_weak: The student minus the weak expert.
        ceiling_minus_weak: The student of the true labels minus the weak expert.
    """

    value: float | None = None
    ci95: Interval | None = None
    reason: str | None = None
    student_minus_weak: Difference = Difference()
    ceiling_minus_weak: Difference = Difference()


class Curves(SparseRecord):
    """Exact match of the ensemble of the first rounds, under teacher forcing.

    Attributes:
        rounds: Numbers of rounds, rising.
        validation: Exact match on easy validation with so many rounds, one value for each entry of `rounds`.
        id: The same on the easy test examples.
        ood: The same on the hard test examples.
    """

    rounds: tuple[int, ...] = ()
    validation: tuple[float | None, ...] = ()
    id: tuple[float | None, ...] = ()
    ood: tuple[float | None, ...] = ()

    def on(self, split: str) -> tuple[float | None, ...]:
        """The values on `validation`, `id` or `ood`; none on every other split."""
        return {VALIDATION: self.validation, "id": self.id, "ood": self.ood}.get(split, ())


class TokenVote(SparseRecord):
    """What one expert would have said for a token.

    Attributes:
        member: Name of the expert.
        alpha: Its share of the votes.
        token: Text of its likeliest token.
    """

    member: str
    alpha: float | None = None
    token: str = ""


class TokenShown(SparseRecord):
    """A token that the ensemble decoded: its text, the share of the votes for it, and each expert's vote."""

    text: str = ""
    agreement: float | None = None
    votes: tuple[TokenVote, ...] = ()


class ExampleShown(SparseRecord):
    """A hard test example with the ensemble's answer, token by token.

    Attributes:
        id: Id of the example.
        prompt: Its prompt, before rendering.
        truth: Its true answer.
        answer: What the ensemble answered.
        correct: Whether that is an exact match.
        agreement: Mean over tokens of the share of the votes for the token.
        tokens: The tokens of the answer, the end token included.
    """

    id: str = ""
    prompt: str = ""
    truth: str | None = None
    answer: str | None = None
    correct: bool | None = None
    agreement: float | None = None
    tokens: tuple[TokenShown, ...] = ()


class GenerationResult(SparseRecord):
    """A generation of students that made labels for the next one.

    Attributes:
        name: Its name as a maker of labels, such as `generation_1`.
        students: Number of its students.
        tokens_trained: Answer tokens seen in training all of them, each epoch counted.
        train_seconds: Wall-clock seconds of training all of them, summed.
    """

    name: str
    students: int
    tokens_trained: int
    train_seconds: float


class PassResult(SparseRecord):
    """A consensus pass and the ensemble that came out of it.

    Attributes:
        number: Number of the pass; 0: the ensemble before any.
        ensemble: Its figures; None where the pass did not take place.
        record: What the pass was made of; None for number 0.
        right: Share of the kept answers that is right, of those whose true answer is known. Nothing depends on it.
    """

    number: int
    ensemble: BySplit[Metrics] | None = None
    record: PassRecord | None = None
    right: float | None = None


class StageTime(SparseRecord):
    """When a stage ran.

    Attributes:
        name: Name of the stage.
        started: Seconds since 1970.
        finished: Seconds since 1970.
        seconds: Wall-clock seconds between both.
        status: `ran` in this call of the run, or `reused` from an earlier one.
    """

    name: str
    started: float | None = None
    finished: float | None = None
    seconds: float | None = None
    status: str | None = None


class RunResults(SparseRecord):
    """All figures of a run.

    Attributes:
        name: Name of the run.
        seed: Its seed.
        config_fingerprint: Fingerprint of the evaluation's stage, which everything before it decides.
        systems: Name → the system's figures and cost, in the order of a report.
        validation: Name of a weak system → its figures on easy validation, where exact match is teacher-forced.
        hard_validation: Name of a system → the same on hard validation.
        bases: Name of a weak base → its figures before any training.
        pgr: Name of a student of pseudo-labels → what it recovers of the performance gap.
        comparisons: Every pair of systems that was compared, on both test splits.
        rounds: The boosting rounds, with the votes that the ensemble has.
        passes: The consensus passes, from the ensemble before any; None where none was asked for.
        anchor: How `boosting.anchor: auto` found the anchor; None where the config names one.
        fit: How the votes were fitted; None where they were not.
        curves: Exact match by number of rounds.
        labels: Name of a maker → how good its pseudo-labels are.
        choices: Name of a student → how its pseudo-labels were chosen, and how good these are.
        generations: Generations of students that made labels; None where `student.generations` is 1.
        examples: Answers of the ensemble, token by token.
        dropped: Which rows of the sources became no example; None where all did.
        warnings: What may make the figures say less than they seem to.
        created: When the run ended, ISO 8601. This and what follows only the run's own results.json has.
        task: What the examples are, and what is easy and hard.
        versions: Package → version.
        stages: What ran, over all calls of the run.
        total_seconds: Seconds of all stages together.
    """

    name: str = "run"
    seed: int | None = None
    config_fingerprint: str | None = None
    systems: ByName[SystemResult] = {}
    validation: ByName[Metrics] = {}
    hard_validation: ByName[Metrics] | None = only_where_known()
    bases: ByName[BySplit[Metrics]] = {}
    pgr: ByName[BySplit[Pgr]] = {}
    comparisons: tuple[Comparison, ...] = ()
    rounds: tuple[RoundRecord, ...] = ()
    passes: tuple[PassResult, ...] | None = only_where_known()
    anchor: AnchorSearch | None = only_where_known()
    fit: VoteFit | None = only_where_known()
    curves: Curves = Curves()
    labels: ByName[LabelResult] = {}
    choices: ByName[ChoiceResult] | None = only_where_known()
    generations: tuple[GenerationResult, ...] | None = only_where_known()
    examples: tuple[ExampleShown, ...] = ()
    dropped: Dropped | None = only_where_known()
    warnings: tuple[str, ...] = Field((), exclude_if=lambda value: not value)
    created: str | None = only_where_known()
    task: Task | None = only_where_known()
    versions: ByName[str] | None = only_where_known()
    stages: tuple[StageTime, ...] | None = only_where_known()
    total_seconds: float | None = only_where_known()

    @classmethod
    def read(cls, path: Path) -> RunResults:
        """Reads a results.json.

        Raises:
            ArtifactError: If the file is missing or damaged, or is no run's; names the first key that is wrong.
        """
        value = store.read_json(path)
        if not isinstance(value, Mapping) or not isinstance(value.get("systems"), Mapping):
            raise ArtifactError(f"{shown(path)} is not the results.json of a run: it has no systems")
        return cls.of_file(path, value, "delete it and run the same config again")

    def metrics(self, system: str, split: str) -> Metrics:
        """Figures of a system on a test split; all of them None where there are none."""
        found = self.systems[system].on(split) if system in self.systems else None
        return found or Metrics()

    def cost(self, system: str) -> SystemCost | None:
        """What a system took, if that is known."""
        return self.systems[system].cost if system in self.systems else None

    def recovered(self, student: str, split: str) -> Pgr | None:
        """What a student recovers of the performance gap on a split, if it was computed."""
        return self.pgr[student].on(split) if student in self.pgr else None
