"""What boosting found out, as records: one per round in its round.json, and one of the fit of the votes in fit.json.

`read` and `write` of a record are the only places that know its file. results.json repeats them under `rounds` and
`fit`; its rounds have the votes that the ensemble really has.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ensemw2s.storage.record import Record, only_where_known

ROUND = "round.json"
"""File of a round's record, in the round's folder."""

FIT = "fit.json"
"""File beside ensemble.json: how the votes were fitted, if they were."""


ANCHOR = "anchor.json"
"""File of the search for an anchor, in the folder of its stage."""


class TrainingSpent(Record):
    """What a training took.

    Attributes:
        tokens_trained: Tokens of prompts and answers that were read, each epoch counted.
        seconds: Wall-clock seconds.
    """

    tokens_trained: int
    seconds: float


class ExpertRecord(Record):
    """A boosted expert and how it did on the easy training split.

    Attributes:
        name: Name of its stage, such as `rounds/2/experts/0`.
        base: Name of its base model in the config.
        alpha: Its own alpha, in nats.
        weight: Its vote in the ensemble; 0 for no vote. In round.json its share of the round's alpha, in nats.
        weighted_error: Share of wrong units, by the round's weights, in [0, 1].
        error: Share of wrong answer tokens, all alike, in [0, 1].
        train_loss: Weighted loss of the last epoch, in nats per token.
        seconds: Wall-clock seconds of its training.
        tokens_trained: Tokens of prompts and answers that its training read, each epoch counted.
        first_try: What the first expert of its place took, where a retry replaced it.
        temperature: What its logits are divided by; None where temperatures were not fitted.
    """

    name: str
    base: str
    alpha: float
    weight: float
    weighted_error: float
    error: float
    train_loss: float
    seconds: float
    tokens_trained: int
    first_try: TrainingSpent | None = only_where_known()
    temperature: float | None = only_where_known()


def member_name(round: int, expert: str) -> str:
    """What people call an expert, in reports, ensembles and votes: `round-2-expert-0`.

    Args:
        round: Number of its round, counted from 1.
        expert: Name of its stage, such as `rounds/2/experts/0`.
    """
    return f"round-{round}-expert-{expert.rsplit('/', 1)[-1]}"


class BoostedExpert(ExpertRecord):
    """An expert with the number of its round, counted from 1."""

    round: int

    @property
    def member(self) -> str:
        """Its name as a member of an ensemble."""
        return member_name(self.round, self.name)


class WeightQuantiles(Record):
    """How unequal a round's weights are, as multiples of the uniform weight 1/U of U units.

    Attributes:
        min: Smallest weight.
        p50: Median.
        p90: 90th percentile.
        p99: 99th percentile.
        max: Largest weight.
        effective_fraction: Effective sample size 1/Σw² as a share of U, in (0, 1]; 1 for uniform weights.
    """

    min: float
    p50: float
    p90: float
    p99: float
    max: float
    effective_fraction: float


class RoundSeconds(Record):
    """Wall-clock seconds of a round's parts, of the try that counts."""

    training: float
    scoring: float


class RoundRecord(Record):
    """A boosting round: what its experts' vote is worth, and what it was trained on.

    Attributes:
        round: Number, counted from 1.
        alpha: Alpha of the round's vote, in nats; not positive: the round has no vote.
        weighted_error: Share of units that the round's vote gets wrong, by the round's weights, in [0, 1].
        reference_error: The same for the base models before fine-tuning; None unless `boosting.prior` is pretrained.
        accepted: Whether the round has a vote.
        reset: Whether the round was tried again with uniform weights; later weights then start from it.
        experts: Its experts, in order.
        weights: The weights it was trained on.
        seconds: What its parts took; None in runs of older versions.
        started: Seconds since 1970.
        finished: Seconds since 1970.
    """

    round: int
    alpha: float
    weighted_error: float
    reference_error: float | None
    accepted: bool
    reset: bool
    experts: tuple[ExpertRecord, ...]
    weights: WeightQuantiles
    seconds: RoundSeconds | None = only_where_known()
    started: float
    finished: float

    @classmethod
    def read(cls, folder: Path) -> RoundRecord:
        """Reads the record of a finished round.

        Raises:
            ArtifactError: If the file is missing or damaged, or lacks something.
        """
        return cls.read_file(folder / ROUND)

    def write(self, folder: Path) -> None:
        """Writes the record into a round's folder."""
        self.write_file(folder / ROUND)


class HalfCounts(Record):
    """Numbers of validation examples on which votes were fitted, and which were held out."""

    fitted: int
    held_out: int


class HalfLoss(Record):
    """Loss of the ensemble on each half of the validation examples, in nats per answer token."""

    fitted: float
    held_out: float


class FitLoss(Record):
    """Loss with the votes before they were fitted, and after."""

    before: HalfLoss
    after: HalfLoss


class VoteFit(Record):
    """How the ensemble's votes were fitted on half of easy validation."""

    examples: HalfCounts
    nll: FitLoss

    @classmethod
    def read(cls, folder: Path) -> VoteFit:
        """Reads the record beside an ensemble. Raises `ArtifactError` if the file is missing or damaged."""
        return cls.read_file(folder / FIT)

    def write(self, folder: Path) -> None:
        """Writes the record into an ensemble's folder."""
        self.write_file(folder / FIT)


class AnchorPoint(Record):
    """The ensemble at one anchor, without any hard label.

    Attributes:
        anchor: λ, the share of what training changed that is kept.
        accuracy: Exact match on easy validation.
        agreement: Mean over unlabelled hard prompts of the share of the votes for the tokens of the answer.
    """

    anchor: float
    accuracy: float
    agreement: float


class AnchorSearch(Record):
    """How `auto` found the anchor.

    Attributes:
        anchor: The λ that was chosen.
        curve: All that were tried, rising.
        easy: Number of easy validation examples.
        hard: Number of unlabelled hard prompts.
        bases_know: Whether the untuned bases know enough for any anchor below 1.
    """

    anchor: float
    curve: tuple[AnchorPoint, ...]
    easy: int
    hard: int
    bases_know: bool

    @classmethod
    def read(cls, folder: Path) -> AnchorSearch:
        """Reads the record of a finished search. Raises `ArtifactError` if the file is missing or damaged."""
        return cls.read_file(folder / ANCHOR)


def members_of(history: Sequence[RoundRecord]) -> list[BoostedExpert]:
    """The experts of all rounds, in order; those of rounds without a vote have weight 0."""
    return [BoostedExpert(round=record.round, **dict(expert)) for record in history for expert in record.experts]
