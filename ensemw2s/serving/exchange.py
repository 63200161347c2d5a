"""What the front of the endpoint and the holders of models say to each other: plain values, nothing to load."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict


class ChatMessage(TypedDict):
    """A message of a chat: `system`, `developer`, `user` or `assistant`, and its text."""

    role: str
    content: str


class Form(NamedTuple):
    """What an answer has to look like.

    Attributes:
        kind: `JSON schema`, `regular expression`, `list of choices` (as JSON) or `grammar` (as Lark has it).
        text: The schema, the expression, the list or the grammar.
        param: The parameter that it comes from.
    """

    kind: str
    text: str
    param: str


Prompt = str | list[int] | list[ChatMessage]
"""Text as it is, token ids, or the messages of a chat."""


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
        echo: Whether the prompt's text comes with the first piece.
        prompt_scores: Score the prompt's tokens, and show so many of the likeliest at each; None: do not.
        min_p: Draw from the tokens that have at least this share of the likeliest one's probability.
        bias: Added to the log-probabilities of tokens, by id.
        presence: Subtracted from those of tokens that are in the answer.
        frequency: The same, as often as they are in it.
        repetition: Factor of the log-probabilities of tokens in prompt or answer.
        min_tokens: No end before so many tokens.
        end_ids: Tokens that end the answer and are not part of its text.
        bad_words: Texts that may not come.
        form: What the answer has to look like.
    """

    prompt: Prompt
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
    echo: bool = False
    prompt_scores: int | None = None
    min_p: float = 0.0
    bias: dict[int, float] = field(default_factory=dict)
    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    min_tokens: int = 0
    end_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()
    form: Form | None = None


Likeliest = list[tuple[int, str, list[int], float]]
"""Ids of tokens, their texts, bytes and log-probabilities in nats, the likeliest first."""


class Token(NamedTuple):
    """One token of an answer.

    Attributes:
        id: Its id.
        text: What it added to the text; nothing while a character is unfinished.
        shown: How it is shown: its own text, or its bytes as escapes where they are a part of a character.
        bytes: Its own bytes; those of all tokens are the text.
        logprob: Its log-probability under the combination, in nats.
        agreement: Weighted share of the experts that found it likeliest.
        entropy: Entropy of these votes, in nats.
        likeliest: The combination's likeliest tokens, if asked for; the token itself is among them.
        votes: Each expert's likeliest tokens, in the order of `ModelCard.experts`, if asked for.
    """

    id: int
    text: str
    shown: str
    bytes: list[int]
    logprob: float
    agreement: float
    entropy: float
    likeliest: Likeliest
    votes: list[Likeliest]


class PromptPart(NamedTuple):
    """The prompt of an answer.

    Attributes:
        text: Its text.
        tokens: Its tokens, if they were to be scored; the first one, which has nothing before it, has no scores.
        ids: Their ids.
    """

    text: str
    tokens: list[Token]
    ids: list[int]


@dataclass(frozen=True)
class Piece:
    """The part of an answer that came since the piece before.

    Attributes:
        text: New text.
        count: New tokens.
        prompt_tokens: Tokens of the prompt.
        tokens: The new tokens, if asked for.
        finish: In the last piece: `stop` or `length`.
        prompt: In the first piece: the prompt, if it was to be scored or given back.
    """

    text: str
    count: int
    prompt_tokens: int
    tokens: list[Token] = field(default_factory=list)
    finish: str | None = None
    prompt: PromptPart | None = None


LOST = 502
"""Status of an answer whose pieces did not reach the front; another try may succeed."""


@dataclass(frozen=True)
class Refused:
    """In place of an answer: what is wrong with the job.

    Attributes:
        message: For the user.
        status: HTTP status.
        param: The parameter that is wrong.
        code: OpenAI's code, where there is one.
    """

    message: str
    status: int = 400
    param: str | None = None
    code: str | None = None


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
        version: Changes with its content.
    """

    name: str
    context: int | None
    chat: bool
    rule: str
    experts: list[ExpertCard]
    version: str = ""
