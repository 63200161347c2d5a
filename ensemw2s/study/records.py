"""study.json as records, written and read here only.

An exact match is a fraction in [0, 1], and a difference is one of two such fractions. Means are over seeds; where
several tasks count as one (`all`), a seed's value is its mean over the tasks. Intervals are 95 % ones, `(low, high)`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer, model_validator

from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.records import Interval, Verdict
from ensemw2s.storage import remote, store
from ensemw2s.storage.record import Record, only_where_known
from ensemw2s.study.row import CommonErrors

ADVICE = "run `ensemw2s study` on the study's file again to write it anew"

StudyVerdict = Literal[Verdict, "unknown"]


class Mean(Record):
    """Mean of `n` seeds, with Student's interval; None with fewer than two: nothing is known of their spread."""

    mean: float
    ci95: Interval | None
    n: int


class SignFlip(Record):
    """A two-sided permutation test of paired differences.

    Attributes:
        p: Share of the sign patterns whose mean difference is at least as large.
        smallest_p: The least that so many pairs can give.
        exact: Whether all patterns were gone through.
    """

    p: float
    smallest_p: float
    exact: bool


class _Pairs(Mean):
    pairs: int


class MeanDifference(SignFlip, _Pairs):
    """Mean difference of exact match over seeds, with the test over its pairs.

    Attributes:
        pairs: Number of pairs of the same task and seed.
        verdict: What the interval lets one say; unknown with fewer than three seeds.
    """

    verdict: StudyVerdict


class _Cell(Record):
    task: str
    variant: str


class _SystemPlace(_Cell):
    system: str


class _SplitPlace(_SystemPlace):
    split: str


class _Pair(_Cell):
    a: str
    b: str
    split: str


class SystemMean(Mean, _SplitPlace):
    """Mean exact match of a system, and the means of its other figures (NLL in nats per token)."""

    token_accuracy: float | None = None
    nll: float | None = None
    option_accuracy: float | None = None
    label_accuracy: float | None = None


class SystemDifference(MeanDifference, _Pair):
    """System `a` minus system `b`, paired by task and seed."""


class VariantDifference(Record):
    """A variant minus the default or another one, paired by task and seed.

    Attributes:
        against: The other variant; None stands for the default.
        variant: Name of the variant.
        tasks: Tasks that it was run on; None in files of before 2026-11-28, where that is not known.
        differences: System and split → difference of exact match; None where the runs do not have both. In the file
            they stand beside `variant`, under `SYSTEM/SPLIT`.
    """

    against: str | None = only_where_known()
    variant: str
    tasks: tuple[str, ...] | None = only_where_known()
    differences: dict[tuple[str, str], MeanDifference | None] = {}

    def of(self, system: str, split: str) -> MeanDifference | None:
        """The difference of a system on a split, if there is one."""
        return self.differences.get((system, split))

    @model_validator(mode="before")
    @classmethod
    def _gathered(cls, value: object) -> object:
        if not isinstance(value, Mapping) or "differences" in value:
            return value
        plain = {key: each for key, each in value.items() if "/" not in key}
        return plain | {"differences": {tuple(key.split("/")): value[key] for key in value if key not in plain}}

    @model_serializer(mode="wrap")
    def _spread(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        plain: dict[str, object] = handler(self)
        del plain["differences"]
        return plain | {
            f"{system}/{split}": each and each.model_dump(mode="json")
            for (system, split), each in self.differences.items()
        }


class OtherData(Record):
    """A variant with other examples than the default's, and its tasks."""

    variant: str
    tasks: tuple[str, ...]


class MeanCurve(_Cell):
    """Exact match of the ensemble of the first rounds, under teacher forcing, mean over the seeds that have them.

    Attributes:
        rounds: Numbers of rounds, rising; the other fields have one value for each.
        seeds: Number of seeds whose boosting came so far.
        validation: On easy validation.
        id: On the easy test examples.
        ood: On the hard test examples.
    """

    rounds: tuple[int, ...]
    seeds: tuple[int, ...]
    validation: tuple[float, ...]
    id: tuple[float, ...]
    ood: tuple[float, ...]

    def on(self, split: str) -> tuple[float, ...]:
        """The values on `validation`, `id` or `ood`."""
        return {"validation": self.validation, "id": self.id, "ood": self.ood}[split]


class ChosenRounds(_Cell):
    """How many rounds validation chose, one number for each seed."""

    rounds: tuple[int, ...]


class PgrSpread(_SplitPlace):
    """PGR over the runs in which it is defined, and the plain differences over all of them.

    Attributes:
        median: Median of PGR; None where no run has one.
        range: Smallest and largest PGR.
        runs: Number of runs.
        undefined: Number of those without a PGR.
        student_minus_weak: The student minus the single expert.
        ceiling_minus_weak: The ceiling minus the single expert.
    """

    median: float | None
    range: Interval | None
    runs: int
    undefined: int
    student_minus_weak: Mean
    ceiling_minus_weak: Mean | None


class MeanCost(_SystemPlace):
    """What a run of a system costs in the mean (see `StudyRow`), and what that buys.

    Attributes:
        gain_id: Exact match over the weak bases as they are, on the easy test examples.
        gain_ood: The same on the hard ones.
        id_per_million_trained: `gain_id` per million tokens trained, those of a student's supervisors included.
        id_per_million_decoded: `gain_id` per million tokens decoded in the tests.
        ood_per_million_trained: `gain_ood` per million tokens trained.
        ood_per_million_decoded: `gain_ood` per million tokens decoded.
    """

    tokens_trained: float
    supervision_trained: float | None
    tokens_labelled: float | None
    tokens_decoded: float | None
    train_seconds: float | None
    decode_seconds: float | None
    gain_id: float | None
    gain_ood: float | None
    id_per_million_trained: float | None
    id_per_million_decoded: float | None
    ood_per_million_trained: float | None
    ood_per_million_decoded: float | None


class _RunPlace(Record):
    task: str
    system: str
    split: str
    seed: int


class DiagnosisPoint(CommonErrors, _RunPlace):
    """What members' errors have in common in one run, and what their vote gains.

    Attributes:
        gain: Exact match of the vote minus that of its mean member, under teacher forcing.
    """

    gain: float


class Correlation(Record):
    """Spearman's rank correlation within groups.

    Attributes:
        rho: Mean of the groups' correlations, weighted by their runs.
        p: Two-sided, by permutation within groups.
        n: Number of runs.
        groups: Number of groups.
    """

    rho: float
    p: float
    n: int
    groups: int


class _Association(Record):
    split: str
    figure: str


class Association(Correlation, _Association):
    """Whether a figure of `CommonErrors` goes with what a vote gains, within tasks."""


class Diagnosis(Record):
    """How members' errors go together in each run of the default variant, and whether that goes with the gain."""

    points: tuple[DiagnosisPoint, ...]
    associations: tuple[Association, ...]


class StudyFigures(Record):
    """What the rows of a study say together.

    Attributes:
        parameters: `single expert` or `student` → the sizes that they have in the default variant.
        systems: Means of every system.
        comparisons: Differences between systems of one variant.
        variants: Every variant minus the default, the best on validation first.
        pairs: Variants minus the others that the study names for them.
        other_data: Variants with other examples than the default's.
        curves: Exact match by number of rounds.
        chosen: How many rounds validation chose.
        pgr: Performance gap recovered.
        costs: What each system costs.
        diagnosis: What members' errors have in common.
    """

    parameters: dict[str, tuple[int, ...]]
    systems: tuple[SystemMean, ...]
    comparisons: tuple[SystemDifference, ...]
    variants: tuple[VariantDifference, ...]
    pairs: tuple[VariantDifference, ...] = ()
    other_data: tuple[OtherData, ...]
    curves: tuple[MeanCurve, ...]
    chosen: tuple[ChosenRounds, ...]
    pgr: tuple[PgrSpread, ...]
    costs: tuple[MeanCost, ...]
    diagnosis: Diagnosis


class _Origin(Record):
    name: str
    created: str
    versions: dict[str, str]
    git_commit: str | None
    commits: dict[str, int] = {}
    taken: dict[str, int] | None = only_where_known()
    cells: int
    finished: int
    missing: tuple[str, ...] = ()
    seeds: tuple[int, ...]
    failed: dict[str, str]
    resamples: int | None = only_where_known()


class StudyResults(StudyFigures, _Origin):
    """The content of study.json: where the figures come from, and the figures.

    Attributes:
        name: Name of the study.
        created: When the report was written, ISO 8601.
        versions: Package → version.
        git_commit: Commit of the code that wrote the report.
        commits: Commit of the code → number of cells that it finished.
        taken: File → number of cells that were run elsewhere, whose rows are from it; None without any.
        cells: Number of cells of the study.
        finished: Number of those whose figures are in.
        missing: Names of the others.
        seeds: Seeds that any cell has.
        failed: Name of a cell that failed → the reason.
        resamples: Resamples of the permutation tests; None in files of before 2026-11-28.
    """

    @classmethod
    def read(cls, path: Path) -> StudyResults:
        """Reads a study.json, which may be compressed (`.json.gz`).

        Raises:
            ArtifactError: If the file is missing or damaged; names the first key that is wrong.
        """
        if path.suffix != ".gz":
            return cls.of_file(path, store.read_json(path), ADVICE)
        try:
            value = json.loads(gzip.decompress(remote.pull(path).read_bytes()))
        except (OSError, EOFError, ValueError) as error:
            raise ArtifactError(f"{remote.shown(path)} cannot be read: {error}") from None
        return cls.of_file(path, value, ADVICE)
