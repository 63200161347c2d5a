"""What the figures say: per-example answers of every voter in, the content of results.json out. Pure, no models.

True answers come in here and nowhere before, except into the ceiling student.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ensemw2s.boosting.records import Member
from ensemw2s.config import GENERATIONS, Config
from ensemw2s.data.examples import derive_seed
from ensemw2s.evaluation import metrics as m
from ensemw2s.evaluation.chunks import Rows

Facts = dict[str, Any]
Columns = dict[str, dict[str, Rows]]

BASELINES = ("base_zero_shot", "expert_single", "expert_compute_matched", "bagging", "sequence_vote")
STUDENTS = ("student_single", "student_bagging", "student_ensemw2s", GENERATIONS)


class Figures:
    """Figures of all systems on the test splits.

    Args:
        config: The run's config.
        truths: Split (`id`, `ood`, `validation`, and `hard_validation` if there is one) → its examples.
        columns: Split → voter → per-example columns (see `evaluate.evaluate_all`).
        members: The boosted experts with their weights.
        trained: What training each system took: name → `tokens_trained`, `train_seconds`.
    """

    def __init__(
        self,
        config: Config,
        truths: dict[str, pa.Table],
        columns: Columns,
        members: Sequence[Member],
        trained: dict[str, Facts],
    ) -> None:
        self.config, self.columns, self.members, self.trained = config, columns, members, trained
        self.answers = {split: table["answer"].to_pylist() for split, table in truths.items()}
        self.has_choices = {split: np.asarray(table["choices"].is_valid(), bool) for split, table in truths.items()}
        self.statistics = {
            "samples": config.evaluation.bootstrap_samples,
            "seed": derive_seed(config.seed, "statistics"),
        }
        self.exact = {
            name: {split: self._exact(name, split) for split in ("id", "ood")} for name in config.evaluation.systems
        }

    def _exact(self, name: str, split: str) -> np.ndarray:
        """Right or not, an example each [n]; of the zero-shot bases the mean over them."""
        columns, truths = self.columns[split], self.answers[split]
        if name == "base_zero_shot":
            bases = [rows for voter, rows in columns.items() if voter.startswith("base:")]
            return np.mean([m.exact_match(rows["answer"], truths) for rows in bases], axis=0)
        if name == "sequence_vote":
            voting = [e for e in self.members if e.weight > 0]
            answers = [columns[f"expert:{e.name}"]["answer"] for e in voting]
            chosen = [answer for answer, _ in m.majority_vote(answers, [e.weight for e in voting])]
            return m.exact_match(chosen, truths)
        return m.exact_match(columns[name]["answer"], truths)

    def systems(self) -> dict[str, Facts]:
        """METRICS on both splits, and the cost, of every system."""
        found = {}
        for name, exact in self.exact.items():
            found[name] = {split: self._metrics(name, split, exact[split]) for split in ("id", "ood")}
            found[name]["cost"] = self._cost(name)
        return found

    def validation(self, split: str = "validation") -> dict[str, Facts]:
        """METRICS where choices are made, exact match being teacher-forced: of the weak systems on easy validation, of
        all that are models on hard validation.
        """
        columns = self.columns.get(split, {})
        return {
            name: self._of_rows(columns[name], np.array(columns[name]["forced"]), split)
            for name in self.config.evaluation.systems
            if name in columns
        }

    def bases(self) -> dict[str, Facts]:
        """METRICS of each weak base before fine-tuning."""
        names = [v.removeprefix("base:") for v in self.columns["id"] if v.startswith("base:")]
        return {
            name: {
                split: self._of_rows(
                    self.columns[split][f"base:{name}"],
                    m.exact_match(self.columns[split][f"base:{name}"]["answer"], self.answers[split]),
                    split,
                )
                for split in ("id", "ood")
            }
            for name in names
        }

    def _metrics(self, name: str, split: str, exact: np.ndarray) -> Facts:
        columns = self.columns[split]
        if name == "base_zero_shot":
            bases = [rows for voter, rows in columns.items() if voter.startswith("base:")]
            return self._of_rows(_mean_rows(bases), exact, split, option=_mean_options(bases, self.answers[split]))
        if name == "sequence_vote":
            return m.metrics(exact, **self.statistics)
        return self._of_rows(columns[name], exact, split)

    def _of_rows(self, rows: Rows, exact: np.ndarray, split: str, option: np.ndarray | None = None) -> Facts:
        asked = self.has_choices[split]
        if option is None:
            option = np.array([o == t for o, t in zip(rows["option"], self.answers[split], strict=True)])
        return m.metrics(
            exact,
            forced=rows["forced"],
            token_correct=rows["token_correct"],
            n_tokens=rows["n_tokens"],
            nll_sum=rows["nll"],
            option_correct=option[asked] if asked.any() else None,
            **self.statistics,
        )

    def _cost(self, name: str) -> Facts:
        voters = [name]
        if name == "base_zero_shot":
            voters = [v for v in self.columns["id"] if v.startswith("base:")]
        if name == "sequence_vote":
            voters = [f"expert:{e.name}" for e in self.members if e.weight > 0]
        rows = [self.columns[split][voter] for split in ("id", "ood") for voter in voters]
        return {
            **self.trained.get(name, {"tokens_trained": 0, "train_seconds": 0.0}),
            "tokens_decoded": sum(sum(r["n_decoded"]) for r in rows),
            "decode_seconds": round(sum(sum(r["seconds"]) for r in rows), 3),
        }

    def pgr(self) -> dict[str, Facts]:
        """Performance gap recovered, on both splits, of each student of pseudo-labels."""
        if not {"expert_single", "student_ceiling"} <= self.exact.keys():
            return {}
        weak, ceiling = self.exact["expert_single"], self.exact["student_ceiling"]
        return {
            name: {
                split: m.pgr(weak[split], self.exact[name][split], ceiling[split], **self.statistics)
                for split in ("id", "ood")
            }
            for name in STUDENTS
            if name in self.exact
        }

    def comparisons(self) -> list[Facts]:
        """The ensemble against every baseline, its student against the other students, and the student of the last
        generation against that of the first, paired by example.
        """
        pairs = [("ensemw2s", other) for other in BASELINES]
        pairs += [("student_ensemw2s", other) for other in ("student_easy_only", "student_single", "student_bagging")]
        pairs += [(GENERATIONS, "student_ensemw2s")]
        return [
            {
                "a": a,
                "b": b,
                "split": split,
                **m.paired_difference(self.exact[a][split], self.exact[b][split], **self.statistics),
            }
            for a, b in pairs
            if a in self.exact and b in self.exact
            for split in ("id", "ood")
        ]

    def curves(self) -> Facts:
        """Exact match by number of rounds, under teacher forcing (equal to greedy decoding of the one true answer)."""
        names = sorted(
            (v for v in self.columns.get("validation", {}) if v.startswith("rounds:")),
            key=lambda v: int(v.split(":")[1]),
        )
        return {
            "rounds": [int(name.split(":")[1]) for name in names],
            **{
                split: [float(np.mean(self.columns[split][name]["forced"])) for name in names]
                for split in ("validation", "id", "ood")
            },
        }

    def examples(self, table: pa.Table) -> list[Facts]:
        """The first test examples with every token's agreement and votes."""
        rows = self.columns["ood"].get("ensemw2s")
        if rows is None:
            return []
        shown = []
        for i, (tokens, example) in enumerate(zip(rows["tokens"], table.to_pylist(), strict=True)):
            if tokens is not None:
                shown.append(
                    {
                        "id": example["id"],
                        "prompt": example["prompt"],
                        "truth": example["answer"],
                        "answer": rows["answer"][i],
                        "correct": bool(m.exact_match([rows["answer"][i]], [example["answer"]])[0]),
                        "agreement": rows["agreement"][i],
                        "tokens": tokens,
                    }
                )
        return shown


def label_facts(labels: pa.Table, hard_labels: pa.Table) -> Facts:
    """How good pseudo-labels are, and what agreement says about it; prompts without a known answer do not count."""
    truth = dict(zip(hard_labels["id"].to_pylist(), hard_labels["answer"].to_pylist(), strict=True))
    rows = labels.select(["id", "answer", "agreement", "finish_reason"]).to_pylist()
    known = [row for row in rows if truth.get(row["id"]) is not None]
    right = m.exact_match([row["answer"] for row in known], [truth[row["id"]] for row in known])
    return {
        "n": len(rows),
        "accuracy": float(right.mean()) if len(right) else None,
        "agreement_bins": m.agreement_bins(np.minimum([row["agreement"] for row in known], 1.0), right)
        if known
        else [],
        "finish_reasons": dict(Counter(row["finish_reason"] for row in rows)),
    }


def _mean_rows(bases: list[Rows]) -> Rows:
    """Teacher-forced columns averaged over the bases."""
    keys = ("forced", "token_correct", "n_tokens", "nll")
    return {key: list(np.mean([rows[key] for rows in bases], axis=0)) for key in keys}


def _mean_options(bases: list[Rows], truths: list[str]) -> np.ndarray:
    return np.mean([[o == t for o, t in zip(rows["option"], truths, strict=True)] for rows in bases], axis=0)
