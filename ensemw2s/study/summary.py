"""The rows of a study in, what they say together out: the content of study.json, from which every report is made.

Pure. Means are over seeds; where several tasks count as one ("all"), a seed's value is its mean over tasks, so that an
interval still speaks of seeds. Systems are compared in pairs of the same task and seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import pandas as pd

from ensemw2s.config.study import DEFAULT
from ensemw2s.config.systems import BASE_ZERO_SHOT, ENSEMW2S, GENERATIONS, STUDENT_ENSEMW2S, TABLE
from ensemw2s.data.examples import derive_seed
from ensemw2s.evaluation.metrics import verdict
from ensemw2s.evaluation.records import HARD_VALIDATION, VALIDATION
from ensemw2s.study import statistics
from ensemw2s.study.records import (
    Association,
    ChosenRounds,
    Diagnosis,
    DiagnosisPoint,
    Mean,
    MeanCost,
    MeanCurve,
    MeanDifference,
    OtherData,
    PgrSpread,
    StudyFigures,
    StudyVerdict,
    SystemDifference,
    SystemMean,
    VariantDifference,
)
from ensemw2s.study.rows import CHOSEN, DIAGNOSIS, DIFFERENCES

ALL = "all"
"""The tasks together."""

SPLITS = ("id", "ood")

FEWEST = 3
"""Seeds below which nothing is said to hold: two that agree by chance have a narrow interval, too."""

MILLION = 1_000_000


def summarise(
    rows: pd.DataFrame, *, resamples: int, other_data: Collection[str] = (), against: Mapping[str, str] | None = None
) -> StudyFigures:
    """All statistics of a study.

    Args:
        rows: study.parquet.
        resamples: Of the permutation tests.
        other_data: Variants with other examples than the default's: no difference from it means anything.
        against: Variant → another one that it is compared with, beside the default.
    """
    made = StudySummary(rows, resamples, other_data, against or {})
    return StudyFigures(
        parameters=made.parameters(),
        systems=tuple(made.systems()),
        comparisons=tuple(made.comparisons()),
        variants=tuple(made.variants()),
        pairs=tuple(made.pairs()),
        other_data=tuple(made.others()),
        curves=tuple(made.curves()),
        chosen=tuple(made.chosen()),
        pgr=tuple(made.pgr()),
        costs=tuple(made.costs()),
        diagnosis=made.diagnosis(),
    )


def rivals(system: str) -> tuple[str, ...]:
    """Systems that one is compared with: those that it must beat first, the strongest one first."""
    return (*reversed(TABLE[system].claims_over), *TABLE[system].also_against)


class StudySummary:
    """The parts of `summarise`, each from the same rows."""

    def __init__(
        self, rows: pd.DataFrame, resamples: int, other_data: Collection[str], against: Mapping[str, str]
    ) -> None:
        self.rows, self.resamples, self.other_data, self.against = rows, resamples, other_data, against
        self.tasks = list(dict.fromkeys(rows["task"]))
        self.names = list(dict.fromkeys(rows["variant"]))
        self.order = list(dict.fromkeys(rows["system"]))
        by_run = rows.set_index(["task", "seed"])
        self._nothing = by_run.iloc[:0]
        self._groups = dict(list(by_run.groupby(["variant", "system", "split"], sort=False)))
        self._known: dict[tuple[str, str, str, str], pd.Series] = {}

    def _places(self) -> Iterator[tuple[str, str]]:
        """Where statistics are made: the default variant for all tasks and each, others for all tasks together."""
        scopes = [*([ALL] if len(self.tasks) > 1 else []), *self.tasks]
        for variant in self.names:
            yield from ((scope, variant) for scope in (scopes if variant == DEFAULT else scopes[:1]))

    def _values(self, variant: str, system: str, split: str, column: str = "exact_match") -> pd.Series:
        """A figure of one system, by task and seed; what is null is left out."""
        key = (variant, system, split, column)
        if key not in self._known:
            own = self._groups.get((variant, system, split), self._nothing)
            self._known[key] = own[column].dropna()
        return self._known[key]

    def _of(self, values: pd.Series, scope: str) -> pd.Series:
        return values if scope == ALL else values[values.index.get_level_values("task") == scope]

    def _whole(self, values: pd.Series) -> pd.Series:
        """The values of the seeds that have all tasks which any has."""
        tasks = values.index.get_level_values("task").nunique()
        return values if tasks < 2 else values[values.groupby("seed").transform("size") == tasks]

    def _by_seed(self, values: pd.Series) -> list[float]:
        """The means over tasks, one for each seed that has all of them."""
        if values.empty:
            return []
        seeds: list[float] = self._whole(values).groupby("seed").mean().tolist()
        return seeds

    def _mean(self, values: pd.Series) -> Mean | None:
        seeds = self._by_seed(values)
        return statistics.mean_interval(seeds) if seeds else None

    def _center(self, values: pd.Series) -> float | None:
        """The mean alone, where nothing is said of its interval."""
        seeds = self._by_seed(values)
        return statistics.mean(seeds) if seeds else None

    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Sizes that a single expert and a student have in the default variant."""
        own = self.rows[self.rows["variant"] == DEFAULT].dropna(subset=["parameters"])
        student = own["system"].map(is_student).astype(bool)
        return {
            name: tuple(sorted({int(n) for n in own[chosen]["parameters"]}))
            for name, chosen in (("single expert", ~student), ("student", student))
        }

    def systems(self) -> Iterator[SystemMean]:
        """Mean exact match of every system with its interval, and the means of its other figures."""
        for scope, variant in self._places():
            for system, split in itertools.product(self.order, (*SPLITS, VALIDATION, HARD_VALIDATION)):
                found = self._mean(self._of(self._values(variant, system, split), scope))
                if found is None:
                    continue
                others = {
                    key: self._center(self._of(self._values(variant, system, split, key), scope))
                    for key in ("token_accuracy", "nll", "option_accuracy", "label_accuracy")
                }
                yield SystemMean(task=scope, variant=variant, system=system, split=split, **dict(found), **others)

    def comparisons(self) -> Iterator[SystemDifference]:
        """The ensemble against its rivals, with all rounds and with those that validation chose; students likewise.

        Exact match is of decoded answers; with chosen rounds, which do not decode, both are teacher-forced.
        """
        pairs = [(a, b) for a in (ENSEMW2S, CHOSEN) for b in rivals(ENSEMW2S)]
        pairs += [(a, b) for a in TABLE if a != ENSEMW2S for b in rivals(a)]
        for scope, variant in self._places():
            for (a, b), split in itertools.product(pairs, SPLITS):
                column = "forced_exact_match" if a == CHOSEN else "exact_match"
                values = self._values(variant, a, split, column) - self._values(variant, b, split, column)
                found = self._difference(self._of(values.dropna(), scope), f"{a}/{b}/{split}")
                if found is not None:
                    yield SystemDifference(task=scope, variant=variant, a=a, b=b, split=split, **dict(found))

    def _difference(self, values: pd.Series, name: str) -> MeanDifference | None:
        """Mean difference over seeds, its interval, the test over the pairs of these, and what can be said."""
        values = self._whole(values)
        found = self._mean(values)
        if found is None:
            return None
        test = statistics.sign_flip_test(values.tolist(), resamples=self.resamples, seed=derive_seed(0, name))
        said: StudyVerdict = verdict(*found.ci95) if found.ci95 and found.n >= FEWEST else "unknown"
        return MeanDifference(**dict(found), pairs=len(values), **dict(test), verdict=said)

    def variants(self) -> Iterator[VariantDifference]:
        """Variants with the default's examples minus the default, paired by task and seed, best on validation first.

        The student of a variant is that of its last generation.
        """
        names = [name for name in self.names if name != DEFAULT and name not in self.other_data]
        found = [self._minus(variant, DEFAULT) for variant in names]
        yield from sorted(found, key=lambda e: -(own.mean if (own := e.of(ENSEMW2S, VALIDATION)) else float("-inf")))

    def pairs(self) -> Iterator[VariantDifference]:
        """Variants minus the others that they are to be compared with, likewise."""
        for variant, other in self.against.items():
            if {variant, other} <= set(self.names):
                yield self._minus(variant, other).model_copy(update={"against": other})

    def _minus(self, variant: str, other: str) -> VariantDifference:
        found: dict[tuple[str, str], MeanDifference | None] = {}
        for system in (ENSEMW2S, STUDENT_ENSEMW2S):
            a, b = (self._last_generation(system, name) for name in (variant, other))
            for split in (VALIDATION, HARD_VALIDATION, *SPLITS):
                values = self._values(variant, a, split) - self._values(other, b, split)
                found[system, split] = self._difference(values.dropna(), f"{variant}/{system}/{split}")
        return VariantDifference(variant=variant, tasks=self._tasks_of(variant), differences=found)

    def _last_generation(self, system: str, variant: str) -> str:
        """The system itself, or, of the student of a variant with several generations, that of the last one."""
        later = system == STUDENT_ENSEMW2S and (variant, GENERATIONS, SPLITS[0]) in self._groups
        return GENERATIONS if later else system

    def others(self) -> Iterator[OtherData]:
        """Variants with other examples, and their tasks."""
        for variant in self.names:
            if variant in self.other_data:
                yield OtherData(variant=variant, tasks=self._tasks_of(variant))

    def _tasks_of(self, variant: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.rows[self.rows["variant"] == variant]["task"]))

    def curves(self) -> Iterator[MeanCurve]:
        """Exact match by number of rounds, averaged over seeds (those whose boosting came as far)."""
        rows = self.rows[(self.rows["system"] == ENSEMW2S) & self.rows["curve"].notna()]
        for (task, variant), own in rows.groupby(["task", "variant"], sort=False):
            points = own.explode(["curve_rounds", "curve"]).astype({"curve_rounds": int, "curve": float})
            table = points.pivot_table(index="curve_rounds", columns="split", values="curve", aggfunc="mean")
            seeds = points[points["split"] == "id"].groupby("curve_rounds")["seed"].nunique()
            yield MeanCurve(
                task=task,
                variant=variant,
                rounds=tuple(int(r) for r in table.index),
                seeds=tuple(int(n) for n in seeds),
                validation=tuple(table[VALIDATION]),
                id=tuple(table["id"]),
                ood=tuple(table["ood"]),
            )

    def chosen(self) -> Iterator[ChosenRounds]:
        """How many rounds validation chose, by seed."""
        for task in self.tasks:
            for variant in self.names:
                values = self._of(self._values(variant, CHOSEN, VALIDATION, "rounds"), task)
                if len(values):
                    yield ChosenRounds(task=task, variant=variant, rounds=tuple(int(v) for v in values))

    def pgr(self) -> Iterator[PgrSpread]:
        """Median and range of PGR over the runs in which it is defined, and the plain differences over all of them."""
        for scope, variant in self._places():
            for system, split in itertools.product(self.order, SPLITS):
                keys = ("pgr", *DIFFERENCES)
                defined, *values = (self._of(self._values(variant, system, split, key), scope) for key in keys)
                gain, gap = map(self._mean, values)
                if gain is None:
                    continue
                runs, known = len(values[0]), bool(len(defined))
                yield PgrSpread(
                    task=scope,
                    variant=variant,
                    system=system,
                    split=split,
                    median=float(defined.median()) if known else None,
                    range=(float(defined.min()), float(defined.max())) if known else None,
                    runs=runs,
                    undefined=runs - len(defined),
                    student_minus_weak=gain,
                    ceiling_minus_weak=gap,
                )

    def costs(self) -> Iterator[MeanCost]:
        """What a run of each system costs, and what its tokens buy: points over the weak bases as they are."""
        for scope, variant in self._places():
            for system in self.order:
                yield from self._cost(scope, variant, system)

    def _cost(self, scope: str, variant: str, system: str) -> Iterator[MeanCost]:
        def mean(column: str) -> float | None:
            return self._center(self._of(self._values(variant, system, "id", column), scope))

        def gain(split: str) -> float | None:
            own, base = (self._values(variant, name, split) for name in (system, BASE_ZERO_SHOT))
            return self._center(self._of((own - base).dropna(), scope))

        def per_million(bought: float | None, tokens: float | None) -> float | None:
            return bought / tokens * MILLION if bought is not None and tokens else None

        own, supervision, decoded = map(mean, ("tokens_trained", "supervision_trained", "tokens_decoded"))
        if own is None or system == CHOSEN:
            return
        on_id, on_ood, trained = gain("id"), gain("ood"), own + (supervision or 0.0)
        yield MeanCost(
            task=scope,
            variant=variant,
            system=system,
            tokens_trained=own,
            supervision_trained=supervision,
            tokens_labelled=mean("tokens_labelled"),
            tokens_decoded=decoded,
            train_seconds=mean("train_seconds"),
            decode_seconds=mean("decode_seconds"),
            gain_id=on_id,
            gain_ood=on_ood,
            id_per_million_trained=per_million(on_id, trained),
            id_per_million_decoded=per_million(on_id, decoded),
            ood_per_million_trained=per_million(on_ood, trained),
            ood_per_million_decoded=per_million(on_ood, decoded),
        )

    def diagnosis(self) -> Diagnosis:
        """How members' errors go together in each run of the default, and whether that goes with what their vote gains.

        The gain is of teacher-forced exact match, for the members' is known under teacher forcing alone.
        """
        rows = self.rows[(self.rows["variant"] == DEFAULT) & self.rows["split"].isin([*SPLITS, VALIDATION])]
        rows = rows.dropna(subset=["error_correlation", "forced_exact_match"])
        points = tuple(
            DiagnosisPoint(
                task=row["task"],
                system=row["system"],
                split=row["split"],
                seed=int(row["seed"]),
                **{key: None if pd.isna(row[key]) else float(row[key]) for key in DIAGNOSIS},
                # rounded, else equal ones differ
                gain=round(float(row["forced_exact_match"] - row["member_exact_match"]), 12),
            )
            for row in rows.to_dict("records")
        )
        return Diagnosis(points=points, associations=tuple(associations(points, self.resamples)))


def associations(points: Sequence[DiagnosisPoint], resamples: int) -> Iterator[Association]:
    """Within tasks: does what the boosted experts' errors have in common go with what their vote gains?

    Bagging's are other points of the same runs: with them, what sets two systems apart would pass for an association.

    Args:
        points: Those of `StudySummary.diagnosis`.
        resamples: Permutations of each test.
    """
    for split in (*SPLITS, VALIDATION):
        own = [p for p in points if (p.system, p.split) == (ENSEMW2S, split)]
        for figure in ("error_correlation", "same_wrong", "all_same_wrong", "all_same_wrong_answer"):
            known = [(value, p) for p in own if (value := getattr(p, figure)) is not None]
            told = statistics.association(
                [value for value, _ in known],
                [p.gain for _, p in known],
                [p.task for _, p in known],
                resamples=resamples,
                seed=0,
            )
            if told is not None:
                yield Association(split=split, figure=figure, **dict(told))


def is_student(system: str) -> bool:
    """Whether a system of a study is a student."""
    return system in TABLE and TABLE[system].is_student
