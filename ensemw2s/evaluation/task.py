"""What a run is about, for people who did not start it: config and splits in, a record and its sentences out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ensemw2s.config import DataConfig
from ensemw2s.storage.record import Record

LONGEST = 400
"""Characters of a prompt or an answer that a report shows of its example."""


class ExampleOfTask(Record):
    """An example as the data has it, cut where it is long.

    Attributes:
        prompt: Its prompt, before the template.
        answer: Its true answer.
    """

    prompt: str
    answer: str


class Task(Record):
    """The task of a run.

    Attributes:
        source: Where the examples come from.
        split: What makes an example easy or hard.
        sizes: Split → its number of examples.
        easy: The first easy test example.
        hard: The first hard test example.
    """

    source: str
    split: str
    sizes: dict[str, int]
    easy: ExampleOfTask
    hard: ExampleOfTask

    @classmethod
    def of(cls, data: DataConfig, splits: Mapping[str, pa.Table]) -> Task:
        """The task of a config.

        Args:
            data: Its section `data`.
            splits: Split → its examples; `id_test` and `ood_test` are among them.
        """
        return cls(
            source=source_words(data),
            split=split_words(data),
            sizes={name: len(table) for name, table in splits.items()},
            easy=_first(splits["id_test"]),
            hard=_first(splits["ood_test"]),
        )

    def sentences(self) -> list[str]:
        """What is learned from what, and what the two test splits are."""
        n = self.sizes
        found = [f"The examples come from {self.source}. {self.split}"]
        if "easy_train" in n and "hard_unlabelled" in n:
            found.append(
                f"The weak models learn from {n['easy_train']} easy examples with answers. Their ensemble answers "
                f"{n['hard_unlabelled']} hard prompts that have none, and the strong model learns from these answers."
            )
        if "id_test" in n and "ood_test" in n:
            found.append(
                f"ID (in distribution) means {n['id_test']} easy examples that no model has seen, OOD (out of "
                f"distribution) {n['ood_test']} hard ones. Weak models have never seen a hard answer, so OOD is what "
                "the method is for."
            )
        return found


def source_words(data: DataConfig) -> str:
    """The source as a sentence names it."""
    return " and ".join(_named(source) for source in (data.source, data.hard_source) if source is not None)


def _named(source: object) -> str:
    kind = getattr(source, "kind", "")
    if kind == "reasoning_gym":
        return f"the generator {getattr(source, 'dataset', '')} of reasoning_gym"
    if kind == "huggingface":
        return f"the data set {getattr(source, 'path', '')}"
    return ", ".join(getattr(source, "paths", ()))


def split_words(data: DataConfig) -> str:
    """What makes an example easy, in a sentence."""
    split = data.split
    if split.mode == "random":
        return "Easy and hard examples are drawn from the same ones: here the two names mean with and without answers."
    if split.mode == "cross_source":
        return f"Examples from {_named(data.source)} are easy, those from {_named(data.hard_source)} are hard."
    bound = "the median" if split.easy_max is None else f"{split.easy_max:g}"
    if split.difficulty_from == "column":
        column = getattr(getattr(data.source, "columns", None), "difficulty", None) or "difficulty"
        return f"An example is easy if its {column} is at most {bound}, else hard."
    if split.difficulty_from == "answer_length":
        return f"An example is easy if its answer has at most {bound} characters, else hard."
    if split.difficulty_from == "reference_loss":
        return f"An example is easy if a reference model’s loss of its answer is at most {bound}, else hard."
    easy, hard = getattr(data.source, "easy", {}), getattr(data.source, "hard", {})
    apart = [key for key in dict.fromkeys((*easy, *hard)) if easy.get(key) != hard.get(key)]
    if not apart:
        return "The source says which ones are easy."
    return f"Easy ones have {_settings(easy, apart)}; hard ones have {_settings(hard, apart)}."


def _settings(config: Mapping[str, object], keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {config.get(key, 'by default')}" for key in keys)


def _first(table: pa.Table) -> ExampleOfTask:
    row = table.slice(0, 1).to_pylist()[0]
    return ExampleOfTask(prompt=_cut(row["prompt"]), answer=_cut(row["answer"] or ""))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
