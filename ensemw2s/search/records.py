"""What a search measures and finds, as records: `Measurement` goes to Tune, `SearchResult` is search.json.

Here alone is search.json read and written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ensemw2s.search.space import Point
from ensemw2s.storage.record import Record, only_where_known

RESULT = "search.json"

OBJECTIVE = "objective"
"""The field of `Measurement` by which Tune compares trials."""

ITERATION = "iteration"
"""What schedulers count: boosting rounds, then consensus passes."""

State = Literal["finished", "stopped", "failed"]


class Measurement(Record):
    """What Tune is told of one ensemble of a trial: after a boosting round, or after a consensus pass.

    Attributes:
        rounds: Boosting rounds so far; after a pass, those that a pass has.
        passes: Consensus passes so far. One that does not take place counts, and leaves the ensemble as it was.
        experts: How many experts vote.
        value: The searched metric at this size.
        exact_match: Share of the examples whose tokens are all right under teacher forcing.
        token_accuracy: Share of the answer tokens that are right under teacher forcing.
        nll: Mean negative log-likelihood in nats per answer token.
        option_accuracy: Share of the questions whose right option is the likeliest; None without options.
        objective: The value of the best size so far; in the last measurement of a student's search the student's.
        best_rounds: The size that `objective` belongs to.
        best_passes: The number of passes that it belongs to.
        seconds: Since the trial began.
        final: Whether nothing follows.
        reason: Not empty where no round gave an expert with a vote; `value` is then that of knowing nothing.
    """

    rounds: int
    passes: int = 0
    experts: int
    value: float
    exact_match: float | None = None
    token_accuracy: float | None = None
    nll: float | None = None
    option_accuracy: float | None = None
    objective: float
    best_rounds: int
    best_passes: int = 0
    seconds: float
    final: bool = False
    reason: str = ""

    def for_tune(self) -> dict[str, object]:
        """As Tune takes it: a metric that was not measured is left out."""
        return {**self.model_dump(exclude_none=True), ITERATION: self.rounds + self.passes}


class BestTrial(Record):
    """The trial and size that a search chose.

    Attributes:
        trial: Number of the trial, from 0.
        rounds: Boosting rounds.
        passes: Consensus passes; None where the search makes none.
        value: The searched metric there.
        point: The trial's point.
    """

    trial: int
    rounds: int
    passes: int | None = only_where_known()
    value: float
    point: Point


class TrialRecord(Record):
    """A trial that measured something.

    Attributes:
        trial: Its number, from 0.
        state: `finished`, `stopped` by the scheduler, or `failed`.
        rounds: Boosting rounds that it made.
        passes: Consensus passes that it came to; None where the search makes none.
        objective: The value of its best size.
        best_rounds: That size.
        best_passes: The passes that led to it; None where the search makes none.
        seconds: How long it took.
        point: Its point.
    """

    trial: int
    state: State
    rounds: int
    passes: int | None = only_where_known()
    objective: float
    best_rounds: int
    best_passes: int | None = only_where_known()
    seconds: float
    point: Point


class FailedTrial(Record):
    """A trial that failed, or in which no expert came to a vote, and why."""

    trial: int
    reason: str
    point: Point


class SearchResult(Record):
    """The whole of search.json.

    Attributes:
        name: The config's name.
        created: When the search ended, ISO 8601 in UTC.
        objective: `ensemble` or `student`: what was measured.
        metric: The searched metric.
        mode: `min` or `max`.
        validation: Which validation examples judged: `easy` or `hard`.
        best: What was chosen.
        trials: All trials that measured something, by number.
        failed: All others, and those of `trials` that failed in the end.
    """

    name: str
    created: str
    objective: str
    metric: str
    mode: str
    validation: str
    best: BestTrial
    trials: list[TrialRecord]
    failed: list[FailedTrial]


def read_result(folder: Path) -> SearchResult:
    """Reads the search.json of a search's folder.

    Raises:
        ArtifactError: If it is not what a search wrote.
    """
    return SearchResult.read_file(folder / RESULT, "--fresh searches anew")


def write_result(folder: Path, result: SearchResult) -> None:
    """Writes search.json, which says that the search is complete."""
    result.put_file(folder / RESULT)
