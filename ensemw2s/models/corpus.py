"""Unlabelled text of the domain for the pre-training of the embedded tiny models.

The data source and the finished splits go in, short documents come out. With a generating source the documents are
fresh and none has a prompt of a held-out split; with a fixed one they are what the run may know without looking at
hard answers: the easy training examples and the bare hard prompts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ensemw2s.config import Corpus, DataConfig, FilesSource
from ensemw2s.data.columns import compile_template, render_row
from ensemw2s.data.examples import content_key
from ensemw2s.data.sources import iterate_rows
from ensemw2s.data.splits import Splits
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.errors import DataError

_ALPHABETS = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_BATCH = 4096


def documents(
    data: DataConfig, corpus: Corpus, splits: Splits, *, role: Literal["weak", "strong"], seed: int
) -> list[str]:
    """The documents that a tiny base of this role reads.

    Args:
        data: Where examples come from and how a prompt looks.
        corpus: Formats, amount and corruption.
        splits: The run's splits, to keep their held-out prompts out.
        role: Weak and strong bases see the task's own format in other shares.
        seed: Seed of generation, formats and corruption.

    Returns:
        Documents in a seeded random order.
    """
    rng = np.random.default_rng([seed, 0 if role == "weak" else 1])
    if corpus.paths:
        texts = list(itertools.islice(_texts(corpus.paths, corpus.text_column), corpus.documents))
    else:
        task_fraction = corpus.weak_task_fraction if role == "weak" else corpus.strong_task_fraction
        rows = _generated(data, splits, seed) if data.source.kind == "reasoning_gym" else _known(splits)
        texts = list(itertools.islice(_render(rows, data, corpus, task_fraction, rng), corpus.documents))
    return [
        _corrupt(text, rng) if wrong else text
        for text, wrong in zip(texts, rng.random(len(texts)) < corpus.corrupted, strict=True)
    ]


def _texts(paths: list[str], column: str) -> Iterator[str]:
    for row in iterate_rows(FilesSource(paths=paths), part="easy", seed=0):
        if not isinstance(row.get(column), str):
            raise DataError(
                f"models.pretraining.corpus.text_column: {column} is no text column of {paths[0]}, its columns are "
                f"{', '.join(sorted(row))}"
            )
        yield row[column]


def _generated(data: DataConfig, splits: Splits, seed: int) -> Iterator[dict[str, Any]]:
    """Endless rows, easy and hard in turn, without the prompts of any split but the easy training one."""
    held_out = {
        content_key(prompt)
        for name, table in splits.tables().items()
        if name != "easy_train"
        for prompt in table["prompt"].to_pylist()
    }
    hard_source = data.hard_source or data.source
    streams = [iterate_rows(data.source, part="easy", seed=seed), iterate_rows(hard_source, part="hard", seed=seed)]
    columns = [data.source.columns, hard_source.columns]
    for turn in itertools.count():
        row = next(streams[turn % 2])
        example = render_row(columns[turn % 2], row)
        if content_key(example["prompt"]) not in held_out:
            yield {**row, **example}


def _known(splits: Splits) -> Iterator[dict[str, Any]]:
    """The easy training examples, then the hard prompts without an answer."""
    for example in splits.easy_train.to_pylist():
        yield example
    for example in splits.hard_unlabelled.to_pylist():
        yield {**example, "answer": None}


def _render(
    rows: Iterable[dict[str, Any]], data: DataConfig, corpus: Corpus, task_fraction: float, rng: np.random.Generator
) -> Iterator[str]:
    templates = [compile_template(text) for text in corpus.templates]
    for turn, row in enumerate(rows):
        if row["answer"] is None:
            yield data.prompt_template.replace("{prompt}", row["prompt"])
        elif rng.random() < task_fraction or not templates:
            yield data.prompt_template.replace("{prompt}", row["prompt"]) + data.answer_prefix + row["answer"]
        else:
            yield templates[turn // 2 % len(templates)](row)


def _corrupt(text: str, rng: np.random.Generator) -> str:
    """Replaces one character by another of its kind (digit, lower case, upper case), if there is such a one."""
    places = [i for i, character in enumerate(text) if any(character in alphabet for alphabet in _ALPHABETS)]
    if not places:
        return text
    place = places[int(rng.integers(len(places)))]
    alphabet = next(alphabet for alphabet in _ALPHABETS if text[place] in alphabet)
    others = alphabet.replace(text[place], "")
    return text[:place] + others[int(rng.integers(len(others)))] + text[place + 1 :]


def tokenize_documents(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, context: int) -> pa.Table:
    """Documents as a token table: the beginning-of-sequence token is the prompt, text and end token the answer.

    Args:
        texts: Documents; longer ones are cut to the context.
        tokenizer: Tokenizer with bos and eos tokens.
        context: Largest length in tokens.

    Returns:
        A table with TOKENS_SCHEMA.
    """
    answers: list[list[int]] = []
    for start in range(0, len(texts), _BATCH):
        encoded = tokenizer(texts[start : start + _BATCH], add_special_tokens=False)["input_ids"]
        answers += [[*ids[: context - 2], tokenizer.eos_token_id] for ids in encoded]
    columns = {
        "id": [f"document-{i}" for i in range(len(texts))],
        "prompt_ids": [[tokenizer.bos_token_id]] * len(texts),
        "answer_ids": answers,
    }
    return pa.table(columns, schema=TOKENS_SCHEMA)
