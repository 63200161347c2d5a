"""Text of the domain for the pre-training of the embedded tiny models, with answers to easy and hard problems alike.

The data source and the finished splits go in, short documents come out. With a generating source the documents are
fresh and none has a prompt of a held-out split; with a fixed one they are the easy training examples. (Bare hard
prompts would teach a model to end where its answer should begin.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from ensemw2s.config import Corpus, DataConfig, FilesSource
from ensemw2s.data.columns import compile_template, render_row
from ensemw2s.data.examples import folded_key
from ensemw2s.data.rows import Row
from ensemw2s.data.sources import iterate_rows
from ensemw2s.data.splits import Splits
from ensemw2s.data.tokens import TOKENS_SCHEMA
from ensemw2s.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_ALPHABETS = ("0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_BATCH = 4096

Role = Literal["weak", "strong"]


def documents(
    data: DataConfig, corpus: Corpus, splits: Splits, *, amounts: dict[Role, int], seed: int
) -> dict[Role, list[str]]:
    """The documents that tiny bases read.

    Args:
        data: Where examples come from and how a prompt looks.
        corpus: Formats and corruption.
        splits: The run's splits, to keep their held-out prompts out.
        amounts: Documents for each role, at most; weak and strong bases see the same examples in other formats.
        seed: Seed of generation, formats and corruption.

    Returns:
        Each role's documents, in the order of the source.
    """
    generators = {role: np.random.default_rng([seed, number]) for number, role in enumerate(amounts)}
    texts: dict[Role, list[str]] = {role: [] for role in amounts}
    if corpus.paths:
        read = list(itertools.islice(_texts(corpus.paths, corpus.text_column), max(amounts.values())))
        texts = {role: read[:amount] for role, amount in amounts.items()}
    else:
        fractions = {"weak": corpus.weak_task_fraction, "strong": corpus.strong_task_fraction}
        templates = [_template(text) for text in corpus.templates]
        known: Iterator[Row] = iter(splits.easy_train.to_pylist())
        rows = _generated(data, splits, seed) if _is_endless(data) else known
        for turn, row in enumerate(itertools.islice(rows, max(amounts.values()))):
            other = templates[turn // 2 % len(templates)]
            for role, rng in generators.items():
                if turn < amounts[role]:
                    as_task = rng.random() < fractions[role]
                    texts[role].append(_task(row, data) if as_task else other(row))
    return {
        role: [_corrupt(text, rng) if rng.random() < corpus.corrupted else text for text in texts[role]]
        for role, rng in generators.items()
    }


def check(data: DataConfig, corpus: Corpus) -> None:
    """Finds what is wrong with the settings of the corpus, at the cost of a row.

    Raises:
        DataError: A template uses what rows do not have, or the files lack the text column.
    """
    if corpus.paths:
        if next(_texts(corpus.paths, corpus.text_column), None) is None:
            raise DataError(f"models.pretraining.corpus.paths: {', '.join(corpus.paths)} hold no rows")
        return
    row = next(iterate_rows(data.source, part="easy", seed=0))
    example = render_row(data.source.columns, row, answer_optional=True)
    example["answer"] = example["answer"] or "?"  # rows without one are not used with templates
    for text in corpus.templates:
        _template(text)({**row, **example} if _is_endless(data) else example)


def _is_endless(data: DataConfig) -> bool:
    """Whether both easy and hard examples are generated, as many as one likes."""
    return all(source.kind == "reasoning_gym" for source in (data.source, data.hard_source or data.source))


def _template(text: str) -> Callable[[Row], str]:
    """A compiled template whose failure names it."""
    render = compile_template(text)

    def fill(row: Row) -> str:
        try:
            return render(row)
        except Exception as error:  # a template may fail in any way that its data and filters can
            raise DataError(
                f"models.pretraining.corpus.templates: {text!r} failed: {error}; a row has {', '.join(row)}"
            ) from None

    return fill


def _texts(paths: list[str], column: str) -> Iterator[str]:
    for row in iterate_rows(FilesSource(paths=paths), part="easy", seed=0):
        text = row.get(column)
        if not isinstance(text, str):
            raise DataError(
                f"models.pretraining.corpus.text_column: {column} is no text column of {paths[0]}, its columns are "
                f"{', '.join(sorted(row))}"
            )
        yield text


def _generated(data: DataConfig, splits: Splits, seed: int) -> Iterator[Row]:
    """Endless rows, easy and hard in turn, without the prompts of any split but the easy training one."""
    held_out = {
        folded_key(prompt)
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
        if folded_key(example["prompt"]) not in held_out:
            yield {**row, **example}


def _task(row: Row, data: DataConfig) -> str:
    """A row in the task's own format."""
    return f"{data.prompt_template.replace('{prompt}', str(row['prompt']))}{data.answer_prefix}{row['answer']}"


def _corrupt(text: str, rng: np.random.Generator) -> str:
    """Replaces one character by another of its kind (digit, lower case, upper case), if there is such a one."""
    places = [i for i, character in enumerate(text) if any(character in alphabet for alphabet in _ALPHABETS)]
    if not places:
        return text
    place = places[int(rng.integers(len(places)))]
    alphabet = next(alphabet for alphabet in _ALPHABETS if text[place] in alphabet)
    others = alphabet.replace(text[place], "")
    return text[:place] + others[int(rng.integers(len(others)))] + text[place + 1 :]


def tokenize_documents(texts: list[str], tokenizer: PreTrainedTokenizerFast, *, context: int) -> pa.Table:
    """Documents as a token table: the beginning-of-sequence token is the prompt, text and end token the answer.

    Args:
        texts: Documents; longer ones are cut to the context.
        tokenizer: Tokenizer with bos and eos tokens.
        context: Largest length in tokens.

    Returns:
        A table with TOKENS_SCHEMA.
    """
    answers: list[list[int]] = []
    backend = tokenizer.backend_tokenizer  # the wrapper around it spends more time on its bookkeeping
    for start in range(0, len(texts), _BATCH):
        encoded = backend.encode_batch_fast(texts[start : start + _BATCH], add_special_tokens=False)
        answers += [[*found.ids[: context - 2], tokenizer.eos_token_id] for found in encoded]
    columns = {
        "id": [f"document-{i}" for i in range(len(texts))],
        "prompt_ids": [[tokenizer.bos_token_id]] * len(texts),
        "answer_ids": answers,
    }
    return pa.table(columns, schema=TOKENS_SCHEMA)
