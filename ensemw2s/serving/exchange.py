"""What the front of the endpoint and the holders of models say to each other: plain values, nothing to load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict


class ChatMessage(TypedDict):
    """A message of a chat: `system`, `developer`, `user` or `assistant`, and its text."""

    role: str
    content: str


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        prompt: Text as it is, token ids, or the messages of a chat.
        max_tokens: Longest answer in tokens; default: as long as the endpoint allows.
        temperature: 0: the likeliest token.
        top_k: Draw from the k likeliest tokens; 0: from all.
        top_p: Draw from the likeliest tokens that together have this probability.
        seed: The same seed gives the same answer, on every replica.
        stop: Strings that end the answer.
        likeliest: How many of the likeliest tokens to show at each place.
        votes: How many of each expert's likeliest tokens to show at each place.
        weights: Weights of the experts by name, in place of their own.
        tokens: Whether pieces have an entry per token.
    """

    prompt: str | list[int] | list[ChatMessage]
    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    likeliest: int = 0
    votes: int = 0
    weights: dict[str, float] | None = None
    tokens: bool = False


Likeliest = list[tuple[int, str, float]]
"""Ids of tokens, their texts and log-probabilities in nats, the likeliest first."""


class Token(NamedTuple):
    """One token of an answer.

    Attributes:
        id: Its id.
        text: What it added to the text.
        logprob: Its log-probability under the combination, in nats.
        agreement: Weighted share of the experts that found it likeliest.
        entropy: Entropy of these votes, in nats.
        likeliest: The combination's likeliest tokens, if asked for.
        votes: Each expert's likeliest tokens, in the order of `ModelCard.experts`, if asked for.
    """

    id: int
    text: str
    logprob: float
    agreement: float
    entropy: float
    likeliest: Likeliest
    votes: list[Likeliest]


@dataclass(frozen=True)
class Piece:
    """The part of an answer that came since the piece before.

    Attributes:
        text: New text.
        count: New tokens.
        prompt_tokens: Tokens of the prompt.
        tokens: The new tokens, if asked for.
        finish: In the last piece: `stop` or `length`.
    """

    text: str
    count: int
    prompt_tokens: int
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None


LOST = 502
"""Status of an answer whose pieces did not reach the front; another try may succeed."""


@dataclass(frozen=True)
class Refused:
    """In place of an answer: what is wrong with the job.

    Attributes:
        message: For the user.
        status: HTTP status.
    """

    message: str
    status: int = 400


class ExpertCard(TypedDict):
    """What the endpoint says of an expert.

    Attributes:
        name: Its name.
        weight: Its weight, divided by the sum of all.
        alpha: Its alpha; None where the model is no saved ensemble.
        round: Its boosting round, from 1; None where the model is no saved ensemble.
    """

    name: str
    weight: float
    alpha: float | None
    round: int | None


@dataclass(frozen=True)
class ModelCard:
    """What the endpoint says of a model.

    Attributes:
        name: What requests call it.
        context: Most tokens of prompt and answer together; None: no limit.
        chat: Whether it has a chat template; else it takes one message.
        rule: How the experts' distributions are combined.
        experts: Its experts, in the order of the votes.
    """

    name: str
    context: int | None
    chat: bool
    rule: str
    experts: list[ExpertCard]
