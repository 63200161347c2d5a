"""Prompts for a mixture over bytes: a text comes in, one tokenizer's ids and the bytes of the last word go out.

The ids are what the model was made to read. The last word stays bytes, because the answer may go on inside one of its
tokens: where a text is cut, a tokenizer often cuts otherwise than in the whole text ("token healing").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemw2s.data.tokens import tokenize_chat
from ensemw2s.ensemble.bytewise.vocabulary import ByteTable
from ensemw2s.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HEALED = 32
"""Most bytes of a prompt's end that are fed as bytes."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as one model reads it.

    Attributes:
        ids: Token ids, at least one.
        tail: Bytes behind them that the model's tokens may cut in any way.
    """

    ids: Sequence[int]
    tail: bytes = b""


def heal(tokenizer: PreTrainedTokenizerBase, table: ByteTable, text: str) -> Prompt:
    """A text as ids up to its last word, with what the tokenizer puts first (BOS), and the last word as bytes.

    Special tokens in the text are read as the text that they are. The cut is at one of the tokenizer's own boundaries,
    before the space that precedes the last word. A text of one word keeps its first token where there is no BOS.

    Raises:
        DataError: If the text is no valid Unicode, is empty for a tokenizer without BOS, or has characters that the
            tokenizer has no tokens for.
    """
    encoded(text)
    ids = tokenizer(text, split_special_tokens=True).input_ids
    first = next((i for i, token in enumerate(ids) if table.by_id[token]), len(ids))
    for token in ids[first:]:
        if table.by_id[token] is None:
            raise DataError(
                f"the tokenizer of {tokenizer.name_or_path} reads a part of the prompt {text[-40:]!r} as "
                f"{tokenizer.convert_ids_to_tokens(token)!r}: it has no tokens for these characters"
            )
    cut, tail = len(ids), b""
    while cut > max(first, 1) and not (tail[:1].isspace() and tail.strip()):
        token = table.by_id[ids[cut - 1]] or b""
        if tail and len(token) + len(tail) > HEALED:
            break
        cut, tail = cut - 1, token + tail
    if not ids:
        raise DataError(f"the prompt {text!r} has no tokens for the tokenizer of {tokenizer.name_or_path}")
    return Prompt(ids[:cut], tail)


def chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> Prompt:
    """A conversation in the tokenizer's own chat template, up to the beginning of the next answer.

    Template tokens are ids; nothing is fed as bytes, because the template ends where an answer starts.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: Each with `role` and `content`.

    Raises:
        DataError: If it has no chat template, or cannot write the text of a control token as text.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template; give a text, or a Prompt for each voice"
        )
    return Prompt(tokenize_chat([dict(message) for message in messages], tokenizer))


def encoded(text: str) -> bytes:
    """A text's UTF-8.

    Raises:
        DataError: If it has half a surrogate pair, which has none.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"text {text[:40]!r} is not valid Unicode: {error.reason} at {error.start}") from None
