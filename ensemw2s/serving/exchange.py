"""What the front of the endpoint and the holders of models say to each other: plain values, nothing to load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

Message = dict[str, str]


@dataclass(frozen=True)
class Job:
    """One answer that is wanted.

    Attributes:
        prompt: Text as it is, token ids, or the messages of a chat.
        max_tokens: Longest answer in tokens; none: as long as may be.
        temperature: 0: the likeliest token.
        top_k: Draw from so many; 0: all.
        top_p: Draw from the likeliest of this probability together.
        seed: The same seed gives the same answer, on every replica.
        stop: Strings that end the answer.
        likeliest: Show so many of each token's likeliest.
        votes: Show so many of each expert's likeliest; 0: none.
        weights: Weights of the experts by name, in place of their own.
        tokens: Tell of each token.
    """

    prompt: str | list[int] | list[Message]
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
"""Ids of tokens, their texts and log-probabilities, the likeliest first."""


class Token(NamedTuple):
    """One token of an answer.

    Attributes:
        id: Its id.
        text: What it added to the text.
        logprob: Under the combination.
        agreement: Weighted share of the experts whose first it was.
        entropy: Of these votes, in nats.
        likeliest: Of the combination, if asked for.
        votes: Of each expert, in the order of `Facts.experts`, if asked for.
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
    """What came of an answer since the piece before.

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
"""Status of an answer whose pieces cannot be brought to who asked; another try may."""


@dataclass(frozen=True)
class Refused:
    """In place of an answer: what is wrong with the job.

    Attributes:
        message: For the user.
        status: HTTP status.
    """

    message: str
    status: int = 400


@dataclass(frozen=True)
class Facts:
    """What a model is.

    Attributes:
        name: What requests call it.
        context: Tokens of prompt and answer together; none: no limit.
        chat: Whether it has a chat template; else it takes one message.
        rule: How the experts' distributions are combined.
        experts: Name, alpha, round and normalised weight of each.
    """

    name: str
    context: int | None
    chat: bool
    rule: str
    experts: list[dict[str, Any]]
