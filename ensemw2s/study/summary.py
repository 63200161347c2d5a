"""The rows of a study in, what they say together out: the content of study.json, from which every report is made.

Pure. Means are over seeds; where several tasks count as one ("all"), a seed's value is its mean over tasks, so that an
interval still speaks of seeds. Systems are compared in pairs of the same task and seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pandas as pd

from ensemw2s.config import GENERATIONS
from ensemw2s.config.study import DEFAULT
from ensemw2s.data.examples import derive_seed
from ensemw2s.evaluation.metrics import verdict
from ensemw2s.study import statistics
from ensemw2s.study.rows import CHOSEN, DIAGNOSIS, DIFFERENCES, HARD_VALIDATION, VALIDATION

Facts = dict[str, Any]

ALL = "all"
"""The tasks together."""

SPLITS = ("id", "ood")

RIVALS = ("bagging", "expert_compute_matched", "expert_single", "sequence_vote", "base_zero_shot")
STUDENT_RIVALS = ("student_bagging", "student_single", "student_easy_only", "ensemw2s")

FEWEST = 3
"""Seeds below which nothing is said to hold: two that agree by chance have a narrow interval, too."""

MILLION = 1_000_000


def summarise(
    rows: pd.DataFrame, *, resamples: int, other_data: Collection[str] = (), against: Mapping[str, str] | None = None
) -> Facts:
    """All statistics of a study.

    Args:
        rows: study.parquet.
        resamples: Of the permutation tests.
        other_data: Variants with other examples than the default's: no difference from it means anything.
        against: Variant → another one that it is compared with, beside the default.

    Returns:
        `parameters`, `systems`, `comparisons`, `variants`, `pairs`, `other_data`, `curves`, `chosen`, `pgr`, `costs`,
        `diagnosis` (docs/study.md).
    """
    made = Summary(rows, resamples, other_data, against or {})
    return {
        "parameters": made.parameters(),
        "systems": list(made.systems()),
        "comparisons": list(made.comparisons()),
        "variants": list(made.variants()),
        "pairs": list(made.pairs()),
        "other_data": list(made.others()),
        "curves": list(made.curves()),
        "chosen": list(made.chosen()),
        "pgr": list(made.pgr()),
        "costs": list(made.costs()),
        "diagnosis": made.diagnosis(),
    }


class Summary:
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

    def _places(self) -> Iterator[tuple[str, str]]:
        """Where statistics are made: the default variant for all tasks and each, others for all tasks together."""
        scopes = [*([ALL] if len(self.tasks) > 1 else []), *self.tasks]
        for variant in self.names:
            yield from ((scope, variant) for scope in (scopes if variant == DEFAULT else scopes[:1]))

    def _values(self, variant: str, system: str, split: str, column: str = "exact_match") -> pd.Series:
        """A figure of one system, by task and seed; what is null is left out."""
        own = self._groups.get((variant, system, split), self._nothing)
        return own[column].dropna()

    def _of(self, values: pd.Series, scope: str) -> pd.Series:
        return values if scope == ALL else values[values.index.get_level_values("task") == scope]

    def _whole(self, values: pd.Series) -> pd.Series:
        """The values of the seeds that have all tasks which any has."""
        tasks = values.index.get_level_values("task").nunique()
        return values[values.groupby("seed").transform("size") == tasks]

    def _mean(self, values: pd.Series) -> Facts | None:
        seeds = self._whole(values).groupby("seed").mean()
        return statistics.mean_interval(seeds.tolist()) if len(seeds) else None

    def parameters(self) -> dict[str, list[int]]:
        """Sizes that a single expert and a student have in the default variant."""
        own = self.rows[self.rows["variant"] == DEFAULT].dropna(subset=["parameters"])
        student = own["system"].str.startswith("student_")
        return {
            name: sorted({int(n) for n in own[chosen]["parameters"]})
            for name, chosen in (("single expert", ~student), ("student", student))
        }

    def systems(self) -> Iterator[Facts]:
        """Mean exact match of every system with its interval, and the means of its other figures."""
        for scope, variant in self._places():
            for system, split in itertools.product(self.order, (*SPLITS, VALIDATION, HARD_VALIDATION)):
                found = self._mean(self._of(self._values(variant, system, split), scope))
                if found is None:
                    continue
                others = {}
                for key in ("token_accuracy", "nll", "option_accuracy", "label_accuracy"):
                    mean = self._mean(self._of(self._values(variant, system, split, key), scope))
                    others[key] = None if mean is None else mean["mean"]
                where = {"task": scope, "variant": variant, "system": system, "split": split}
                yield {**where, **found, **others}

    def comparisons(self) -> Iterator[Facts]:
        """The ensemble against its rivals, with all rounds and with those that validation chose; students likewise.

        Exact match is of decoded answers; with chosen rounds, which do not decode, both are teacher-forced.
        """
        pairs = [(a, b) for a in ("ensemw2s", CHOSEN) for b in RIVALS]
        pairs += [("student_ensemw2s", b) for b in STUDENT_RIVALS]
        pairs += [(GENERATIONS, "student_ensemw2s")]
        for scope, variant in self._places():
            for (a, b), split in itertools.product(pairs, SPLITS):
                column = "forced_exact_match" if a == CHOSEN else "exact_match"
                values = self._values(variant, a, split, column) - self._values(variant, b, split, column)
                found = self._difference(self._of(values.dropna(), scope), f"{a}/{b}/{split}")
                if found is not None:
                    where = {"task": scope, "variant": variant, "a": a, "b": b, "split": split}
                    yield {**where, **found}

    def _difference(self, values: pd.Series, name: str) -> Facts | None:
        """Mean difference over seeds, its interval, the test over the pairs of these, and what can be said."""
        values = self._whole(values)
        found = self._mean(values)
        if found is None:
            return None
        test = statistics.sign_flip_test(values.tolist(), resamples=self.resamples, seed=derive_seed(0, name))
        said = verdict(*found["ci95"]) if found["n"] >= FEWEST else "unknown"
        return {**found, "pairs": len(values), **test, "verdict": said}

    def variants(self) -> Iterator[Facts]:
        """Variants with the default's examples minus the default, paired by task and seed, best on validation first.

        The student of a variant is that of its last generation.
        """
        names = [name for name in self.names if name != DEFAULT and name not in self.other_data]
        found = [self._minus(variant, DEFAULT) for variant in names]
        key = f"ensemw2s/{VALIDATION}"
        yield from sorted(found, key=lambda e: -(e[key]["mean"] if e[key] else float("-inf")))

    def pairs(self) -> Iterator[Facts]:
        """Variants minus the others that they are to be compared with, likewise."""
        for variant, other in self.against.items():
            if {variant, other} <= set(self.names):
                yield {"against": other, **self._minus(variant, other)}

    def _minus(self, variant: str, other: str) -> Facts:
        entry: Facts = {"variant": variant, "tasks": self._tasks_of(variant)}
        for system in ("ensemw2s", "student_ensemw2s"):
            a, b = (self._last_generation(system, name) for name in (variant, other))
            for split in (VALIDATION, HARD_VALIDATION, *SPLITS):
                values = self._values(variant, a, split) - self._values(other, b, split)
                entry[f"{system}/{split}"] = self._difference(values.dropna(), f"{variant}/{system}/{split}")
        return entry

    def _last_generation(self, system: str, variant: str) -> str:
        """The system itself, or, of the student of a variant with several generations, that of the last one."""
        later = system == "student_ensemw2s" and (variant, GENERATIONS, SPLITS[0]) in self._groups
        return GENERATIONS if later else system

    def others(self) -> Iterator[Facts]:
        """Variants with other examples, and their tasks."""
        for variant in self.names:
            if variant in self.other_data:
                yield {"variant": variant, "tasks": self._tasks_of(variant)}

    def _tasks_of(self, variant: str) -> list[str]:
        return list(dict.fromkeys(self.rows[self.rows["variant"] == variant]["task"]))

    def curves(self) -> Iterator[Facts]:
        """Exact match by number of rounds, averaged over seeds (those whose boosting came as far)."""
        rows = self.rows[(self.rows["system"] == "ensemw2s") & self.rows["curve"].notna()]
        for (task, variant), own in rows.groupby(["task", "variant"], sort=False):
            points = own.explode(["curve_rounds", "curve"]).astype({"curve_rounds": int, "curve": float})
            table = points.pivot_table(index="curve_rounds", columns="split", values="curve", aggfunc="mean")
            seeds = points[points["split"] == "id"].groupby("curve_rounds")["seed"].nunique()
            yield {
                "task": task,
                "variant": variant,
                "rounds": [int(r) for r in table.index],
                "seeds": [int(n) for n in seeds],
                **{split: [float(v) for v in table[split]] for split in (VALIDATION, *SPLITS)},
            }

    def chosen(self) -> Iterator[Facts]:
        """How many rounds validation chose, by seed."""
        for task in self.tasks:
            for variant in self.names:
                values = self._of(self._values(variant, CHOSEN, VALIDATION, "rounds"), task)
                if len(values):
                    yield {"task": task, "variant": variant, "rounds": [int(v) for v in values]}

    def pgr(self) -> Iterator[Facts]:
        """Median and range of PGR over the runs in which it is defined, and the plain differences over all of them."""
        for scope, variant in self._places():
            for system, split in itertools.product(self.order, SPLITS):
                keys = ("pgr", *DIFFERENCES)
                defined, *values = (self._of(self._values(variant, system, split, key), scope) for key in keys)
                plain = {key: self._mean(found) for key, found in zip(DIFFERENCES, values, strict=True)}
                if plain[DIFFERENCES[0]] is None:
                    continue
                runs = len(values[0])
                yield {
                    "task": scope,
                    "variant": variant,
                    "system": system,
                    "split": split,
                    "median": float(defined.median()) if len(defined) else None,
                    "range": [float(defined.min()), float(defined.max())] if len(defined) else None,
                    "runs": runs,
                    "undefined": runs - len(defined),
                    **plain,
                }

    def costs(self) -> Iterator[Facts]:
        """What each system cost, a run, and what its tokens bought: points over the weak bases as they are."""
        for scope, variant in self._places():
            for system in self.order:
                yield from self._cost(scope, variant, system)

    def _cost(self, scope: str, variant: str, system: str) -> Iterator[Facts]:
        def mean(column: str) -> float | None:
            found = self._mean(self._of(self._values(variant, system, "id", column), scope))
            return None if found is None else float(found["mean"])

        spent = {
            key: mean(key)
            for key in (
                "tokens_trained",
                "supervision_trained",
                "tokens_labelled",
                "tokens_decoded",
                "train_seconds",
                "decode_seconds",
            )
        }
        if spent["tokens_trained"] is None or system == CHOSEN:
            return
        gains: Facts = {}
        for split in SPLITS:
            own, base = (self._values(variant, name, split) for name in (system, "base_zero_shot"))
            gain = self._mean(self._of((own - base).dropna(), scope))
            gains[split] = None if gain is None else float(gain["mean"])
        trained = spent["tokens_trained"] + (spent["supervision_trained"] or 0.0)
        yield {
            "task": scope,
            "variant": variant,
            "system": system,
            **spent,
            **{f"gain_{split}": gain for split, gain in gains.items()},
            **{
                f"{split}_per_million_{kind}": gain / tokens * MILLION if gain is not None and tokens else None
                for split, gain in gains.items()
                for kind, tokens in (("trained", trained), ("decoded", spent["tokens_decoded"]))
            },
        }

    def diagnosis(self) -> Facts:
        """How members' errors go together in each run of the default, and whether that goes with what their vote gains.

        The gain is of teacher-forced exact match, for the members' is known under teacher forcing alone.
        """
        rows = self.rows[(self.rows["variant"] == DEFAULT) & self.rows["split"].isin([*SPLITS, VALIDATION])]
        rows = rows.dropna(subset=["error_correlation", "forced_exact_match"])
        points = [
            {
                **{key: row[key] for key in ("task", "system", "split")},
                "seed": int(row["seed"]),
                **{key: None if pd.isna(row[key]) else float(row[key]) for key in DIAGNOSIS},
                # rounded, else equal ones differ
                "gain": round(float(row["forced_exact_match"] - row["member_exact_match"]), 12),
            }
            for row in rows.to_dict("records")
        ]
        return {"points": points, "associations": associations(points, self.resamples)}


def associations(points: list[Facts], resamples: int) -> list[Facts]:
    """Within tasks: does what the boosted experts' errors have in common go with what their vote gains?

    Bagging's are other points of the same runs: with them, what sets two systems apart would pass for an association.

    Args:
        points: Those of `Summary.diagnosis`.
        resamples: Permutations of each test.
    """
    found = []
    for split in (*SPLITS, VALIDATION):
        for key in ("error_correlation", "same_wrong", "all_same_wrong", "all_same_wrong_answer"):
            known = [p for p in points if (p["system"], p["split"]) == ("ensemw2s", split) and p[key] is not None]
            told = statistics.association(
                *([p[name] for p in known] for name in (key, "gain", "task")), resamples=resamples, seed=0
            )
            if told is not None:
                found.append({"split": split, "figure": key, **told})
    return found
