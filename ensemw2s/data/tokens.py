"""From examples to token ids: the prompt around which the template goes, the answer with its end token.

Tables of examples flow in, tables of `TOKENS_SCHEMA` flow out, and `TokenData` holds one of them as numpy arrays for
training and scoring. Its own module because here it is decided what a *sample* of the method is: an answer token.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import DataConfig
from ensemw2s.errors import ArtifactError, DataError, ExampleError, ModelError
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
    _check_chat(tokenizer)
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(_asked(text, data_config), add_generation_prompt=True, tokenize=False))
    except TemplateError as error:
        if data_config.system_prompt is None:
            raise
        raise ModelError(
            f"the chat template of {tokenizer.name_or_path or 'the model'} refuses a system message: {error}; leave "
            "data.system_prompt out and write its text into data.prompt_template"
        ) from None


def with_system(messages: list[dict[str, str]], data_config: DataConfig) -> list[dict[str, str]]:
    """A conversation that begins with `data.system_prompt`, unless it has a system message of its own."""
    if data_config.system_prompt is None or (messages and messages[0]["role"] in ("system", "developer")):
        return messages
    return [{"role": "system", "content": data_config.system_prompt}, *messages]


def _asked(text: str, data_config: DataConfig) -> list[dict[str, str]]:
    return with_system([{"role": "user", "content": text}], data_config)


def tokenize_prompts(
    prompts: list[str], tokenizer: PreTrainedTokenizerBase, data_config: DataConfig
) -> list[list[int]]:
    """Token ids of prompts as a model reads them, of whatever length.

    A prompt starts as `begin_ids` says (a chat template brings its own). Text of a prompt never becomes a control
    token; the templates around it may write them.

    Raises:
        DataError: The tokenizer cannot write the text of a control token as text.
        ModelError: There is no chat template where one is asked for.
    """
    if data_config.chat_template:
        _check_chat(tokenizer)
        asked = [data_config.prompt_template.replace("{prompt}", prompt) for prompt in prompts]
        return [tokenize_chat(_asked(text, data_config), tokenizer) for text in asked]
    before, after = data_config.prompt_template.split("{prompt}", 1)
    ids = encode_text(prompts, tokenizer, before=before, after=after)
    begin = begin_ids(tokenizer, data_config)
    return [p if begin and p[: len(begin)] == begin else [*begin, *p] for p in ids]


def tokenize_chat(messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a conversation up to the beginning of the next answer. Only the template writes control tokens.

    Raises:
        DataError: The tokenizer cannot write the text of a control token as text.
    """
    added = _patterns(tokenizer).added
    marked = added is not None and any(added.search(message["content"]) for message in messages)
    try:
        found: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=marked
        )
    except ValueError as error:
        if not str(error).startswith("Can't sanitize"):
            raise
        raise DataError(f"{error}; take it out of the text") from None
    return list(found)


def encode_text(
    texts: list[str], tokenizer: PreTrainedTokenizerBase, *, before: str = "", after: str = ""
) -> list[list[int]]:
    """Token ids of texts without what a tokenizer adds. The text of a control token is encoded as text.

    Args:
        texts: The texts.
        tokenizer: Of the model that will read the tokens.
        before: Put before each text; its control tokens are control tokens.
        after: Put after each text, the same.

    Raises:
        DataError: The tokenizer cannot write the text of a control token as text.
    """
    if not texts:
        return []
    pattern = _patterns(tokenizer).special
    ids = tokenizer(
        [before + text + after for text in texts],
        add_special_tokens=False,
        return_attention_mask=False,
        verbose=False,
    )["input_ids"]
    if pattern is None:
        return list(ids)
    return [
        _encode_as_text(before, text, after, pattern, tokenizer) if pattern.search(text) else found
        for text, found in zip(texts, ids, strict=True)
    ]


def _encode_as_text(
    before: str, text: str, after: str, pattern: re.Pattern[str], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

    try:
        return list(encode_marked_chat(tokenizer, before + mark_control_tokens(text, pattern) + after))
    except ValueError as error:
        raise DataError(f"{error}; take it out of the text") from None


class _Patterns(NamedTuple):
    """What finds the texts of tokens that are not for text, the longest first; None: there are none.

    Attributes:
        size: Number of tokens that the tokenizer had.
        special: Finds those that are marked as special.
        added: Finds all that were added to the vocabulary, such as those around tool calls, too.
    """

    size: int
    special: re.Pattern[str] | None
    added: re.Pattern[str] | None


_PATTERNS: WeakKeyDictionary[PreTrainedTokenizerBase, _Patterns] = WeakKeyDictionary()
"""Patterns by tokenizer: every prompt needs them, and some tokenizers have thousands of such tokens."""


def _patterns(tokenizer: PreTrainedTokenizerBase) -> _Patterns:
    size, known = len(tokenizer), _PATTERNS.get(tokenizer)
    if known is None or known.size != size:
        added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
        special = {text for text, is_special in added.items() if is_special} | set(tokenizer.all_special_tokens)
        known = _PATTERNS[tokenizer] = _Patterns(size, _any_of(special), _any_of(added))
    return known


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def begin_ids(tokenizer: PreTrainedTokenizerBase, data_config: DataConfig) -> list[int]:
    """The tokens before a prompt: those that the tokenizer adds by itself, or as `data.add_bos` says.

    With a chat template there are none, since the template writes its own.
    """
    if data_config.chat_template or data_config.add_bos is False:
        return []
    if data_config.add_bos is None:
        plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = tokenizer("a")["input_ids"]
        return whole[: next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), 0)]
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def turn_end(tokenizer: PreTrainedTokenizerBase, data_config: DataConfig) -> tuple[str, int]:
    """How an answer ends: text that belongs to its end, and the end token.

    Without a chat template that is EOS. With one it is what the template writes after an answer, up to its first
    control token, or EOS where it writes none.

    Raises:
        ModelError: The tokenizer has no EOS token.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no EOS token, which ends every answer; "
            "set eos_token in its tokenizer_config.json"
        )
    if data_config.chat_template:
        from jinja2 import TemplateError

        _check_chat(tokenizer)
        turns = [*_asked("a", data_config), {"role": "assistant", "content": _MARK}]
        try:
            tail = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition(_MARK)[2]
        except (TemplateError, ValueError):  # a template for questions alone
            tail = ""
        known = tokenizer.added_tokens_encoder
        places = [(tail.index(token), -len(token), token) for token in known if token.strip() and token in tail]
        if places:
            place, _, token = min(places)
            return tail[:place], tokenizer.added_tokens_encoder[token]
    return "", int(tokenizer.eos_token_id)


_MARK = "answer-7f3a"  # what no template writes by itself


def _check_chat(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.chat_template:
        raise ModelError(
            f"data.chat_template is true, but the tokenizer of {tokenizer.name_or_path or 'the model'} has no chat "
            "template; set it to false or use a chat model"
        )


def tokenize_examples(table: pa.Table, tokenizer: PreTrainedTokenizerBase, data_config: DataConfig) -> pa.Table:
    """Tokenizes prompts and answers.

    An answer is preceded by `data.answer_prefix` (not with a chat template) and ends as `turn_end` says.

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
    end_text, end = turn_end(tokenizer, data_config)
    ids = table["id"].to_pylist()
    prompts = tokenize_prompts(table["prompt"].to_pylist(), tokenizer, data_config)
    for identity, prompt in zip(ids, prompts, strict=True):
        if not prompt:
            raise ExampleError(
                f"the prompt of example {identity} has no tokens; a model needs at least one to start from", identity
            )
    prefix = "" if data_config.chat_template else data_config.answer_prefix
    texts = table["answer"].to_pylist()
    answered = [text for text in texts if text is not None]
    encoded = iter(encode_text(answered, tokenizer, before=prefix, after=end_text))
    answers = [[] if text is None else [*next(encoded), end] for text in texts]
    _check_lengths(ids, prompts, data_config.max_prompt_tokens, "prompt", "data.max_prompt_tokens")
    _check_lengths(ids, answers, data_config.max_answer_tokens, "answer", "data.max_answer_tokens")
    return pa.table({"id": ids, "prompt_ids": prompts, "answer_ids": answers}, schema=TOKENS_SCHEMA)


def check_answers_fit(tokens: pa.Table, longest: int) -> None:
    """Checks that labels can be as long as the answers that the models learn from.

    Args:
        tokens: Easy labelled examples (`TOKENS_SCHEMA`).
        longest: `labeling.max_new_tokens`.

    Raises:
        DataError: An answer is longer; says which, and how many are.
    """
    lengths = np.array([len(ids) for ids in tokens["answer_ids"].to_pylist()], dtype=np.int64)
    longer = np.flatnonzero(lengths > longest)
    if longer.size:
        first = int(longer[0])
        raise ExampleError(
            f"the answer of easy example {tokens['id'][first]} has {lengths[first]} tokens, labeling.max_new_tokens "
            f"({longest}) cuts such answers; {longer.size} of {len(lengths)} are longer, the longest has "
            f"{lengths.max()}: raise labeling.max_new_tokens to {lengths.max()} at least",
            tokens["id"][first].as_py(),
        )


def _check_lengths(ids: list[str], sequences: list[list[int]], limit: int, what: str, key: str) -> None:
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    too_long = np.flatnonzero(lengths > limit)
    if too_long.size:
        first = int(too_long[0])
        raise ExampleError(
            f"the {what} of example {ids[first]} has {lengths[first]} tokens, {key} allows {limit}; {too_long.size} of "
            f"{len(ids)} are too long, the longest has {lengths.max()}: raise {key} or drop these examples",
            ids[first],
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
