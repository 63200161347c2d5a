"""From examples to token ids: the prompt around which the template goes, the answer with its end token.

Tables of examples flow in, tables of `TOKENS_SCHEMA` flow out, and `TokenData` holds one of them as numpy arrays for
training and scoring. Its own module because here it is decided what a *sample* of the method is: an answer token.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig
from ensemw2s.errors import ArtifactError, DataError, ModelError
from ensemw2s.storage import remote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_SCHEMA = pa.schema(
    [("id", pa.string()), ("prompt_ids", pa.list_(pa.int32())), ("answer_ids", pa.list_(pa.int32()))]
)

WEIGHT = "weight"
"""A column that a table of tokens may have: what the loss of an example counts in training. Default: 1."""


def render(prompt: str, data_config: DataConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that a model reads before it answers: the prompt in its template, and in the chat template if asked for.

    Raises:
        ModelError: `data.chat_template` is set and the tokenizer has none.
    """
    text = data_config.prompt_template.replace("{prompt}", prompt)
    if not data_config.chat_template:
        return text
    if not tokenizer.chat_template:
        raise ModelError(
            f"data.chat_template is true, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat "
            "template; set it to false or use a chat model"
        )
    messages = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))


def tokenize_prompts(
    prompts: list[str], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> list[list[int]]:
    """Token ids of prompts as a model reads them, of whatever length.

    A prompt starts with the BOS token if the tokenizer has one (a chat template brings its own).

    Raises:
        ModelError: There is no chat template where one is asked for.
    """
    ids = _encode([render(prompt, data_config, tokenizer) for prompt in prompts], tokenizer)
    bos = tokenizer.bos_token_id
    if bos is None or data_config.chat_template:
        return ids
    return [p if p[:1] == [bos] else [bos, *p] for p in ids]


def tokenize_examples(table: pa.Table, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig) -> pa.Table:
    """Tokenizes prompts and answers.

    An answer is preceded by `data.answer_prefix` (not with a chat template) and ends with EOS.

    Args:
        table: Has the columns id, prompt and answer (text or null) of `EXAMPLE_SCHEMA`.
        tokenizer: Of the model that will read the tokens.
        data_config: Templates and limits; the end token counts towards `max_answer_tokens`, BOS towards
            `max_prompt_tokens`.

    Returns:
        Table of `TOKENS_SCHEMA`, rows in order; `answer_ids` is empty where the answer is null.

    Raises:
        DataError: A prompt or answer is too long, or a prompt has no token.
        ModelError: The tokenizer has no EOS token, or no chat template where one is asked for.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no EOS token, which ends every answer; "
            "set eos_token in its tokenizer_config.json"
        )
    ids = table["id"].to_pylist()
    prompts = tokenize_prompts(table["prompt"].to_pylist(), tokenizer, data_config)
    for identity, prompt in zip(ids, prompts, strict=True):
        if not prompt:
            raise DataError(f"the prompt of example {identity} has no tokens; a model needs at least one to start from")
    prefix = "" if data_config.chat_template else data_config.answer_prefix
    texts = table["answer"].to_pylist()
    encoded = iter(_encode([prefix + text for text in texts if text is not None], tokenizer))
    answers = [[] if text is None else [*next(encoded), eos] for text in texts]
    _check_lengths(ids, prompts, data_config.max_prompt_tokens, "prompt", "data.max_prompt_tokens")
    _check_lengths(ids, answers, data_config.max_answer_tokens, "answer", "data.max_answer_tokens")
    return pa.table({"id": ids, "prompt_ids": prompts, "answer_ids": answers}, schema=TOKENS_SCHEMA)


def _encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _check_lengths(ids: list[str], sequences: list[list[int]], limit: int, what: str, key: str) -> None:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    too_long = np.flatnonzero(lengths > limit)
    if too_long.size:
        first = int(too_long[0])
        raise DataError(
            f"the {what} of example {ids[first]} has {lengths[first]} tokens, {key} allows {limit}; {too_long.size} of "
            f"{len(ids)} are too long, the longest has {lengths.max()}: raise {key} or drop these examples"
        )


@dataclass(frozen=True)
class TokenData:
    """A table of `TOKENS_SCHEMA` as numpy arrays, with the samples (answer tokens) numbered through.

    Sample `offsets[i] + j` is token j of example i's answer. Error masks, draws and token weights are `[n_samples]`.

    Attributes:
        ids: n example ids.
        prompt_ids: n arrays `[prompt length]`, int32.
        answer_ids: n arrays `[answer length]`, int32, the end token included.
        offsets: `[n + 1]`, int64: first sample of each example, then the number of samples.
    """

    ids: list[str]
    prompt_ids: list[np.ndarray]
    answer_ids: list[np.ndarray]
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_samples(self) -> int:
        """Number of answer tokens, N of the method."""
        return int(self.offsets[-1])

    @classmethod
    def from_table(cls, table: pa.Table) -> TokenData:
        """From a table of `TOKENS_SCHEMA`; the arrays are read-only views of it.

        Raises:
            ArtifactError: The table has other columns.
        """
        wanted = {field.name: field.type for field in TOKENS_SCHEMA}
        found = {name: table.schema.field(name).type for name in wanted if name in table.column_names}
        if found != wanted:
            raise ArtifactError(
                f"not a table of tokens: its columns are {_describe(table.schema)}, expected {_describe(TOKENS_SCHEMA)}"
            )
        prompts, _ = _slices(table["prompt_ids"])
        answers, offsets = _slices(table["answer_ids"])
        return cls(table["id"].to_pylist(), prompts, answers, offsets)

    @classmethod
    def read(cls, path: str | Path) -> TokenData:
        """From a parquet file. Raises `ArtifactError` when it cannot be read or holds something else."""
        try:
            table = pq.read_table(str(remote.pull(Path(path))))
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"token file {path} cannot be read: {error}") from error
        try:
            return cls.from_table(table)
        except ArtifactError as error:
            raise ArtifactError(f"token file {path} is {error}") from None


def _slices(column: pa.ChunkedArray) -> tuple[list[np.ndarray], np.ndarray]:
    """A list column as arrays, and the offsets that part their concatenation."""
    combined = column.combine_chunks()
    values = combined.flatten().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(combined) + 1, dtype=np.int64)
    np.cumsum(combined.value_lengths().to_numpy(zero_copy_only=False), out=offsets[1:])
    return [values[a:b] for a, b in pairwise(offsets.tolist())], offsets


def _describe(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
