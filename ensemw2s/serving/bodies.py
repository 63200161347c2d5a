"""What the OpenAI API sends back: tokens of an answer come in; choices, usage, model cards and errors go out.

Plain dictionaries with known keys rather than models: they are made for every token of a stream, and only written.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Literal, TypedDict

from ensemw2s.serving.exchange import ExpertCard, Likeliest, ModelCard, Token


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
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class ScoredToken(TypedDict):
    """A token as chat completions show it; `bytes` are those of its text."""

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
    """A token that an expert finds likely."""

    token: str
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


class Head(TypedDict):
    """What every body and every chunk of a completion begins with."""

    id: str
    object: str
    created: int
    model: str


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


def text_logprobs(tokens: Sequence[Token], count: int, offset: int) -> TextLogprobs:
    """`logprobs` of a completion; `offset` is where the first token's text begins in the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_text(token.likeliest[:count]) for token in tokens] if count else None,
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[Token], count: int) -> ChatLogprobs:
    """`logprobs` of a chat completion."""
    return {
        "content": [
            {
                **_scored(token.text, token.logprob),
                "top_logprobs": [_scored(text, logprob) for _, text, logprob in token.likeliest[:count]],
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
                "token": token.text,
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


def _scored(text: str, logprob: float) -> ScoredToken:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _vote_tokens(likeliest: Likeliest) -> list[VoteToken]:
    return [{"token": text, "id": token_id, "logprob": value} for token_id, text, value in likeliest]


def _by_text(likeliest: Likeliest) -> dict[str, float]:
    """As an object; of tokens with the same text (parts of a character, say) the likeliest."""
    return {text: logprob for _, text, logprob in reversed(likeliest)}
