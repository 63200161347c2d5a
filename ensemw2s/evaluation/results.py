"""What the figures say: per-example answers of every voter in, the parts of results.json out. Pure, no models.

True answers come in here and nowhere before, except into the ceiling student.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ensemw2s.boosting.records import BoostedExpert
from ensemw2s.config import Config
from ensemw2s.config.systems import ENSEMW2S, EXPERT_SINGLE, STUDENT_CEILING, TABLE
from ensemw2s.data.answers import Key, answer_key
from ensemw2s.data.examples import derive_seed
from ensemw2s.evaluation import metrics as m
from ensemw2s.evaluation import outcomes
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.records import (
    VALIDATION,
    BySplit,
    Comparison,
    Curves,
    ExampleShown,
    Metrics,
    Pgr,
    SystemCost,
    SystemResult,
    TrainingCost,
)
from ensemw2s.evaluation.records_labels import ChoiceResult, LabelResult
from ensemw2s.evaluation.voters import BASE, ROUNDS
from ensemw2s.labeling.choice import Choice

TESTS = ("id", "ood")


class Figures:
    """Figures of all systems on the test splits.

    Args:
        config: The run's config.
        truths: Split (`id`, `ood`, `validation`, and `hard_validation` if there is one) → its examples.
        columns: Split → voter → per-example columns (see `evaluate.evaluate_all`).
        members: The boosted experts with their weights.
        trained: Name of a system → what training it took.
    """

    def __init__(
        self,
        config: Config,
        truths: dict[str, pa.Table],
        columns: Mapping[str, Mapping[str, Rows]],
        members: Sequence[BoostedExpert],
        trained: Mapping[str, TrainingCost],
    ) -> None:
        self.config, self.columns, self.trained = config, columns, trained
        self.votes = {member.name: member.weight for member in members if member.weight > 0}
        self.answers = {split: table["answer"].to_pylist() for split, table in truths.items()}
        self.has_choices = {split: np.asarray(table["choices"].is_valid(), bool) for split, table in truths.items()}
        self.key = answer_key(config.data.answer_match)
        self.samples = config.evaluation.bootstrap_samples
        self.seed = derive_seed(config.seed, "statistics")
        self.exact = {name: {split: self._exact(name, split) for split in TESTS} for name in config.evaluation.systems}

    def _exact(self, name: str, split: str) -> m.FloatArray | m.BoolArray:
        """Right or not, for each example [n]; of the zero-shot bases the mean over them."""
        given = {voter: rows["answer"] for voter, rows in self.columns[split].items() if "answer" in rows}
        return outcomes.right(outcomes.answers_of(name, given, self.votes, self.key), self.answers[split], self.key)

    def _voters(self, name: str) -> list[str]:
        return outcomes.voters_of(name, self.columns["id"], self.votes)

    def systems(self) -> dict[str, SystemResult]:
        """Figures on both test splits, and the cost, of every system."""
        return {
            name: SystemResult(
                id=self._metrics(name, "id", exact["id"]),
                ood=self._metrics(name, "ood", exact["ood"]),
                cost=self._cost(name),
            )
            for name, exact in self.exact.items()
        }

    def validation(self, split: str = VALIDATION) -> dict[str, Metrics]:
        """Figures where choices are made, with exact match under teacher forcing.

        On easy validation there are the weak systems, on hard validation all that are models.
        """
        columns = self.columns.get(split, {})
        return {
            name: self._of_rows(columns[name], np.array(columns[name]["forced"]), split)
            for name in self.config.evaluation.systems
            if name in columns
        }

    def bases(self) -> dict[str, BySplit[Metrics]]:
        """Figures of each weak base before fine-tuning."""

        def of(voter: str, split: str) -> Metrics:
            rows = self.columns[split][voter]
            return self._of_rows(rows, m.exact_match(rows["answer"], self.answers[split], self.key), split)

        voters = [voter for voter in self.columns["id"] if voter.startswith(BASE)]
        return {v.removeprefix(BASE): BySplit[Metrics](id=of(v, "id"), ood=of(v, "ood")) for v in voters}

    def of_voter(self, voter: str) -> BySplit[Metrics] | None:
        """Figures of one voter that decoded both test splits, such as the ensemble before a consensus pass, if any."""
        if voter not in self.columns["id"]:
            return None

        def on(split: str) -> Metrics:
            rows = self.columns[split][voter]
            return self._of_rows(rows, m.exact_match(rows["answer"], self.answers[split]), split)

        return BySplit[Metrics](id=on("id"), ood=on("ood"))

    def _metrics(self, name: str, split: str, exact: np.ndarray) -> Metrics:
        system, columns = TABLE[name], self.columns[split]
        voters = [columns[voter] for voter in self._voters(name)]
        if system.vote == "answers":
            has = bool(self.has_choices[split].any())
            voted = outcomes.voted_options(voters, list(self.votes.values())) if has else {}
            options = self._options(voted, split)
            return m.metrics(exact, options=options, samples=self.samples, seed=self.seed)
        if system.averages_bases:
            each = [self._options(rows, split) for rows in voters]
            options = {figure: np.mean([one[figure] for one in each], axis=0) for figure in each[0]}
            return self._of_rows(_mean_rows(voters), exact, split, options)
        return self._of_rows(columns[name], exact, split)

    def _options(self, rows: Rows, split: str) -> dict[str, m.FloatArray]:
        return outcomes.options_right(rows, self.answers[split], self.has_choices[split])

    def _of_rows(
        self, rows: Rows, exact: np.ndarray, split: str, options: Mapping[str, m.FloatArray] | None = None
    ) -> Metrics:
        return m.metrics(
            exact,
            forced=rows["forced"],
            token_correct=rows["token_correct"],
            n_tokens=rows["n_tokens"],
            nll_sum=rows["nll"],
            options=self._options(rows, split) if options is None else options,
            samples=self.samples,
            seed=self.seed,
        )

    def _cost(self, name: str) -> SystemCost:
        trained = self.trained.get(name, TrainingCost(tokens_trained=0, train_seconds=0.0))
        rows = [self.columns[split][voter] for split in TESTS for voter in self._voters(name)]
        return SystemCost(
            tokens_trained=trained.tokens_trained,
            train_seconds=trained.train_seconds,
            tokens_decoded=sum(sum(r["n_decoded"]) for r in rows),
            decode_seconds=round(sum(sum(r["seconds"]) for r in rows), 3),
        )

    def pgr(self) -> dict[str, BySplit[Pgr]]:
        """Performance gap recovered, on both splits, of each student of pseudo-labels."""
        if not {EXPERT_SINGLE, STUDENT_CEILING} <= self.exact.keys():
            return {}
        weak, ceiling = self.exact[EXPERT_SINGLE], self.exact[STUDENT_CEILING]

        def of(student: str, split: str) -> Pgr:
            exact = self.exact[student][split]
            return m.pgr(weak[split], exact, ceiling[split], samples=self.samples, seed=self.seed)

        students = [name for name in self.exact if TABLE[name].learns_from == "pseudo"]
        return {name: BySplit[Pgr](id=of(name, "id"), ood=of(name, "ood")) for name in students}

    def comparisons(self) -> list[Comparison]:
        """Each system against its rivals among the systems of the same size, in the order of a report."""
        pairs = [
            (a, b)
            for a in self.exact
            for b in self.exact
            if b in TABLE[a].rivals and TABLE[a].is_student == TABLE[b].is_student
        ]
        return [self._comparison(a, b, split) for a, b in pairs for split in TESTS]

    def _comparison(self, a: str, b: str, split: str) -> Comparison:
        left, right = self.exact[a][split], self.exact[b][split]
        found = m.paired_difference(left, right, samples=self.samples, seed=self.seed)
        around = [m.interval(figures, samples=self.samples, seed=self.seed) for figures in (left, right)]
        return Comparison(
            a=a,
            b=b,
            split=split,
            difference=found.difference,
            ci95=found.ci95,
            verdict=m.verdict(*found.ci95, n=len(left), figures=around) if found.ci95 else "",
        )

    def curves(self) -> Curves:
        """Exact match by number of rounds, under teacher forcing (equal to greedy decoding of the one true answer)."""
        voters = [voter for voter in self.columns.get(VALIDATION, {}) if voter.startswith(ROUNDS)]
        rounds = sorted(int(voter.removeprefix(ROUNDS)) for voter in voters)

        def of(split: str) -> tuple[float, ...]:
            return tuple(float(np.mean(self.columns[split][f"{ROUNDS}{t}"]["forced"])) for t in rounds)

        return Curves(rounds=tuple(rounds), validation=of(VALIDATION), id=of("id"), ood=of("ood"))

    def examples(self, table: pa.Table) -> list[ExampleShown]:
        """The first test examples with every token's agreement and votes."""
        rows = self.columns["ood"].get(ENSEMW2S)
        if rows is None:
            return []
        return [
            ExampleShown(
                id=example["id"],
                prompt=example["prompt"],
                truth=example["answer"],
                answer=rows["answer"][i],
                correct=bool(m.exact_match([rows["answer"][i]], [example["answer"]], self.key)[0]),
                agreement=rows["agreement"][i],
                tokens=tokens,
            )
            for i, (tokens, example) in enumerate(zip(rows["tokens"], table.to_pylist(), strict=True))
            if tokens is not None
        ]


def label_result(labels: pa.Table, hard_labels: pa.Table, key: Callable[[str], Key] = str.strip) -> LabelResult:
    """How good pseudo-labels are, and what agreement says about it; prompts without a known answer do not count."""
    truth = dict(zip(hard_labels["id"].to_pylist(), hard_labels["answer"].to_pylist(), strict=True))
    rows = labels.select(["id", "answer", "agreement", "finish_reason"]).to_pylist()
    known = [row for row in rows if truth.get(row["id"]) is not None]
    right = m.exact_match([row["answer"] for row in known], [truth[row["id"]] for row in known], key)
    agreement = np.minimum([row["agreement"] for row in known], 1.0)
    return LabelResult(
        n=len(rows),
        accuracy=float(right.mean()) if len(right) else None,
        agreement_bins=m.agreement_bins(agreement, right) if known else (),
        finish_reasons=dict(Counter(row["finish_reason"] for row in rows)),
    )


def choice_result(
    choice: Choice, chosen: pa.Table, hard_labels: pa.Table, key: Callable[[str], Key] = str.strip
) -> ChoiceResult:
    """How a student's labels were chosen, and how many of them are right.

    Args:
        choice: How they were chosen.
        chosen: The kept ones (`Chosen.for_results`).
        hard_labels: True answers; prompts without a known one do not count.
        key: What is compared of an answer.
    """
    truth = dict(zip(hard_labels["id"].to_pylist(), hard_labels["answer"].to_pylist(), strict=True))
    known = [row for row in chosen.to_pylist() if truth.get(row["id"]) is not None]

    def right(rows: list[dict[str, Any]]) -> float | None:
        exact = m.exact_match([row["answer"] for row in rows], [truth[row["id"]] for row in rows], key)
        return float(exact.mean()) if rows else None

    return ChoiceResult(
        labels=choice.labels,
        prompts=choice.prompts,
        kept=choice.kept,
        weight=choice.weight,
        agreed=None if choice.agreed is None else choice.agreed / choice.prompts,
        accuracy=right(known),
        agreed_accuracy=right([row for row in known if row["agreed"]]) if choice.agreed is not None else None,
        easy_only=choice.easy_only,
    )


def share_right(answers: pa.Table, hard_labels: pa.Table, key: Callable[[str], Key] = str.strip) -> float | None:
    """Share of answers to hard prompts that is right, of those whose true answer is known."""
    truth = dict(zip(hard_labels["id"].to_pylist(), hard_labels["answer"].to_pylist(), strict=True))
    known = [row for row in answers.select(["id", "answer"]).to_pylist() if truth.get(row["id"]) is not None]
    right = m.exact_match([row["answer"] for row in known], [truth[row["id"]] for row in known], key)
    return float(right.mean()) if len(right) else None


def _mean_rows(bases: list[Rows]) -> Rows:
    """Teacher-forced columns averaged over the bases."""
    keys = ("forced", "token_correct", "n_tokens", "nll")
    return {key: list(np.mean([rows[key] for rows in bases], axis=0)) for key in keys}
