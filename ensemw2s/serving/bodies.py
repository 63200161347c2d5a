"""What the OpenAI API sends back: tokens of an answer come in; choices, usage, model cards and errors go out.

Plain dictionaries with known keys rather than models: they are made for every token of a stream, and only written.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Literal, TypedDict

from ensemw2s.serving.exchange import ExpertCard, Likeliest, ModelCard, PromptPart, Token


class ErrorDetail(TypedDict):
    """What is wrong: a text, OpenAI's type of error, the parameter, and OpenAI's code where there is one."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every answer that is an error."""

    error: ErrorDetail


class Usage(TypedDict):
    """Counts of tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TextLogprobs(TypedDict):
    """`logprobs` of a completion, an entry per token; natural logarithms, offsets in characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(TypedDict):
    """A token that is likely at a place of the prompt."""

    logprob: float
    decoded_token: str


class ScoredToken(TypedDict):
    """A token as chat completions show it; `bytes` are its own, which may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatToken(ScoredToken):
    """A token of the answer, with the likeliest tokens at its place."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(TypedDict):
    """`logprobs` of a chat completion."""

    content: list[ChatToken]
    refusal: None


class VoteToken(TypedDict):
    """A token that an expert finds likely; `bytes` are its own, none for a special token."""

    token: str
    bytes: list[int]
    id: int
    logprob: float


class ExpertVotes(TypedDict):
    """One expert's likeliest tokens, the likeliest first."""

    expert: str
    top: list[VoteToken]


class TokenVotes(VoteToken):
    """A token of the answer and how the experts voted; see `exchange.Token`."""

    agreement: float
    entropy: float
    votes: list[ExpertVotes]


class EnsembleVotes(TypedDict):
    """`ensemble` of a choice."""

    tokens: list[TokenVotes]


class AnswerMessage(TypedDict):
    """The message of a chat completion."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Delta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str


class _Choice(TypedDict):
    index: int
    finish_reason: str | None
    logprobs: TextLogprobs | ChatLogprobs | None


class Choice(_Choice, total=False):
    """One answer, or what a chunk adds to it: `text` of completions, `message` and `delta` of chats."""

    text: str
    message: AnswerMessage
    delta: Delta
    ensemble: EnsembleVotes
    prompt_logprobs: list[dict[str, PromptLogprob] | None]
    token_ids: list[int]
    prompt_token_ids: list[int]


class Head(TypedDict):
    """What every body and every chunk of a completion begins with."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str


class Completion(Head):
    """The body of a whole answer."""

    choices: list[Choice]
    usage: Usage


class ModelObject(TypedDict):
    """An entry of /v1/models; all from `context` on goes beyond OpenAI's."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context: int | None
    chat_template: bool
    combine: str
    experts: list[ExpertCard]


class ModelList(TypedDict):
    """The body of /v1/models."""

    object: Literal["list"]
    data: list[ModelObject]


class TokenList(TypedDict):
    """The body of /tokenize."""

    count: int
    max_model_len: int | None
    tokens: list[int]


class TokenText(TypedDict):
    """The body of /detokenize."""

    prompt: str


def token_list(found: PromptPart, card: ModelCard) -> TokenList:
    """The body of /tokenize."""
    return {"count": len(found.ids), "max_model_len": card.context, "tokens": found.ids}


def new_id(kind: str) -> str:
    """An id for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def created() -> int:
    """Seconds since 1970."""
    return int(time.time())


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    """Counts of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def text_logprobs(tokens: Sequence[Token], count: int, offset: int, *, begins: bool = False) -> TextLogprobs:
    """`logprobs` of a completion.

    Args:
        tokens: The tokens.
        count: How many likeliest tokens are shown.
        offset: Where the first token's text begins in the answer, in characters.
        begins: Whether the first token is that of the prompt.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    found: TextLogprobs = {
        "tokens": [_text_key(token.shown, token.bytes) for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_text(token.likeliest) for token in tokens] if count else None,
        "text_offset": offsets,
    }
    if begins and tokens:  # nothing comes before the first token of a prompt
        found["token_logprobs"][0] = None
        if found["top_logprobs"]:
            found["top_logprobs"][0] = None
    return found


def prompt_logprobs(tokens: Sequence[Token]) -> list[dict[str, PromptLogprob] | None]:
    """`prompt_logprobs` of a choice: of each token of the prompt, by id, the likeliest tokens and the token itself."""
    found: list[dict[str, PromptLogprob] | None] = [None]
    for token in tokens[1:]:
        top = token.likeliest or [(token.id, token.shown, token.bytes, token.logprob)]
        found.append({str(one): {"logprob": value, "decoded_token": shown} for one, shown, _, value in top})
    return found[: len(tokens)]


def chat_logprobs(tokens: Sequence[Token]) -> ChatLogprobs:
    """`logprobs` of a chat completion."""
    return {
        "content": [
            {
                **_scored(token.shown, token.bytes, token.logprob),
                "top_logprobs": [_scored(shown, raw, logprob) for _, shown, raw, logprob in token.likeliest],
            }
            for token in tokens
        ],
        "refusal": None,
    }


def votes(tokens: Sequence[Token], card: ModelCard) -> EnsembleVotes:
    """`ensemble` of a choice: how the experts voted at each token."""
    names = [expert["name"] for expert in card.experts]
    return {
        "tokens": [
            {
                "token": token.shown,
                "bytes": token.bytes,
                "id": token.id,
                "logprob": token.logprob,
                "agreement": token.agreement,
                "entropy": token.entropy,
                "votes": [
                    {"expert": name, "top": _vote_tokens(top)} for name, top in zip(names, token.votes, strict=False)
                ],
            }
            for token in tokens
        ]
    }


def model_object(card: ModelCard, began: int) -> ModelObject:
    """An entry of /v1/models; `began` is when the endpoint came up, in seconds since 1970."""
    return {
        "id": card.name,
        "object": "model",
        "created": began,
        "owned_by": "ensemw2s",
        "context": card.context,
        "chat_template": card.chat,
        "combine": card.rule,
        "experts": card.experts,
    }


def _scored(shown: str, raw: list[int], logprob: float) -> ScoredToken:
    return {"token": shown, "logprob": logprob, "bytes": raw}


def _vote_tokens(likeliest: Likeliest) -> list[VoteToken]:
    return [{"token": shown, "bytes": raw, "id": token, "logprob": value} for token, shown, raw, value in likeliest]


def _by_text(likeliest: Likeliest) -> dict[str, float]:
    """As an object, an entry for each token; of tokens with the same text, the less likely ones by their ids."""
    found: dict[str, float] = {}
    for token, shown, raw, logprob in likeliest:
        key = _text_key(shown, raw)
        found[f"token_id:{token}" if key in found else key] = logprob
    return found


def _text_key(shown: str, raw: list[int]) -> str:
    """A token as completions show it, where parts of characters are marked."""
    return shown if not raw or shown == bytes(raw).decode(errors="replace") else f"bytes:{shown}"
