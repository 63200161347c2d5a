"""Whether a row can be read by the models: an example and their tokenizers go in, what is wrong with it comes out.

Its own module because a run, `label` and `evaluate` ask the same questions before any model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemw2s.config import DataConfig
from ensemw2s.data.rows import Fields
from ensemw2s.data.tokens import encode_text, tokenize_prompts, turn_end
from ensemw2s.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class RowReader:
    """A model that will read rows.

    Attributes:
        name: Its name, for messages.
        tokenizer: Its tokenizer; None for a byte-level one that is not trained yet, which makes at most a token of a
            byte.
        context: Longest sequence that it takes, in tokens; None without a limit.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase | None
    context: int | None


def too_long(example: Fields, readers: Sequence[RowReader], data: DataConfig, keys: tuple[str, str]) -> str | None:
    """What is too long of an example, in words; None if nothing is.

    Args:
        example: The example.
        readers: The models that will read it.
        data: Templates and limits.
        keys: How the limits of prompts and of answers are called here.
    """
    for reader in readers:
        prompt, answer = _lengths(example, reader, data)
        for what, length, limit, key in (
            ("prompt", prompt, data.max_prompt_tokens, keys[0]),
            ("answer", answer, data.max_answer_tokens, keys[1]),
        ):
            if length > limit:
                return (
                    f"the {what} has {length} tokens of {reader.name}, {key} allows {limit}: raise it, or drop the row"
                )
        if reader.context is not None and prompt + answer > reader.context:
            return (
                f"prompt and answer have {prompt + answer} tokens, {reader.name} takes {reader.context}: drop the row, "
                "or take a model with a longer context"
            )
    return None


def unreadable(example: Fields, readers: Sequence[RowReader], data: DataConfig) -> str | None:
    """What a tokenizer cannot give back of an example's prompt or answer, in words; None if that is nothing."""
    for reader in readers:
        if reader.tokenizer is None:
            continue
        for what in ("prompt", "answer"):
            text = example["prompt"] if what == "prompt" else example["answer"]
            if text is not None and (found := lost(text, reader.tokenizer, answer=what == "answer")) is not None:
                return f"the {what} has {found}, which the tokenizer of {reader.name} cannot give back"
    return None


def lost(text: str, tokenizer: PreTrainedTokenizerBase, *, answer: bool) -> str | None:
    """What a tokenizer loses of a text: the first unknown character, or what becomes other text.

    Args:
        text: The text.
        tokenizer: The tokenizer.
        answer: Answers are decoded, so they must come back as they are; of prompts every character must be known.

    Raises:
        DataError: The tokenizer cannot write the text of a control token as text.
    """
    [ids] = encode_text([text], tokenizer)
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        known = {c for c in set(text) if unknown not in encode_text([c], tokenizer)[0]}
        place = next((i for i, c in enumerate(text) if c not in known), 0)
        return f"the character {text[place]!r} at place {place + 1}"
    if not answer:
        return None
    back = str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    if back.strip() == text.strip():
        return None
    same = next((i for i, (a, b) in enumerate(zip(text.strip(), back.strip(), strict=False)) if a != b), None)
    where = "" if same is None else f" (from character {same + 1} on)"
    return f"text that comes back as {back.strip()[:40]!r}{where}"


def _lengths(example: Fields, reader: RowReader, data: DataConfig) -> tuple[int, int]:
    """Tokens of the prompt and of the longest answer or option, with those that begin and end them."""
    prompt, tokenizer = example["prompt"], reader.tokenizer
    answers = [text for text in (example["answer"], *(example["choices"] or ())) if text is not None]
    if tokenizer is None:
        around = len(data.prompt_template.replace("{prompt}", "").encode()) + 1
        ending = len(data.answer_prefix.encode()) + 1
        return len(prompt.encode()) + around, max((len(text.encode()) + ending for text in answers), default=0)
    [ids] = tokenize_prompts([prompt], tokenizer, data)
    if not answers:
        return len(ids), 0
    before = "" if data.chat_template else data.answer_prefix
    encoded = encode_text(answers, tokenizer, before=before, after=turn_end(tokenizer, data)[0])
    return len(ids), max(map(len, encoded)) + 1


@dataclass(frozen=True)
class RunCheck:
    """Checks the examples of a run while they are read (a `RowCheck`).

    Attributes:
        readers: All models that will read them.
        data: Templates, limits, and what to do with rows that break them.
    """

    readers: tuple[RowReader, ...]
    data: DataConfig

    def __call__(self, origin: str, example: Fields) -> str | None:
        data = self.data
        exact = [reader for reader in self.readers if reader.tokenizer is not None]
        reads = self.readers if data.too_long == "drop" else exact  # an estimate is no reason for an error
        long = too_long(example, reads, data, ("data.max_prompt_tokens", "data.max_answer_tokens"))
        for kind, wrong in (("too_long", long), ("unreadable", unreadable(example, self.readers, data))):
            if wrong is not None:
                if getattr(data, kind) == "drop":
                    return kind
                raise DataError(f"{origin}: {wrong} (data.{kind}: drop leaves such rows out)")
        return None
