"""What a request changes of the combined distribution before a token is chosen: biases, penalties, bans, a grammar.

Apart from `sampling` because it depends on what has been answered so far, and there a choice depends on nothing but its
distribution. Recorded log-probabilities are those before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from ensemw2s.errors import ConfigError, ModelError


class NoTokenLeft(ModelError):
    """A guide allows nothing that the vocabulary has."""


class Guide(Protocol):
    """What an answer has to look like; for one request."""

    def allowed(self) -> torch.Tensor:
        """`[at most vocabulary]`, bool: the tokens that may come next; those beyond its end may not."""

    def take(self, token: int) -> None:
        """The next token."""


@dataclass(frozen=True)
class Shaping:
    """Changes of the combined log-probabilities, in the order in which they are made.

    Attributes:
        repetition: Log-probabilities of tokens of the prompt and of the answer are multiplied by it; 1: no change.
        frequency: Subtracted as often as the token is in the answer.
        presence: Subtracted if the token is in the answer.
        bias: Added to tokens, by id.
        min_tokens: No end token before so many tokens.
        bad_words: Sequences of tokens that may not come.
    """

    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    bad_words: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.repetition < float("inf"):
            raise ConfigError(f"repetition penalty is {self.repetition}; expected more than 0")

    def check(self, vocabulary: int) -> None:
        """Raises ConfigError if a token lies outside the vocabulary."""
        for token in (*self.bias, *(token for word in self.bad_words for token in word)):
            if not 0 <= token < vocabulary:
                raise ConfigError(f"there is no token {token}: the vocabulary has {vocabulary} tokens")


def shaped(
    scores: torch.Tensor, shaping: Shaping, prompt: Sequence[int], answer: Sequence[int], ends: Sequence[int]
) -> torch.Tensor:
    """The changed log-probabilities, which need not sum to 1.

    Args:
        scores: `[vocabulary]`, float32: combined log-probabilities; left as they are.
        shaping: The changes.
        prompt: Its tokens.
        answer: The tokens so far.
        ends: End tokens.
    """
    scores, device = scores.clone(), scores.device
    if shaping.repetition != 1:
        seen = torch.tensor(sorted({*prompt, *answer}), device=device)
        scores[seen] *= shaping.repetition
    if answer and (shaping.frequency or shaping.presence):
        tokens, counts = torch.tensor(answer, device=device).unique(return_counts=True)
        scores[tokens] -= shaping.frequency * counts + shaping.presence
    if shaping.bias:
        tokens = torch.tensor(list(shaping.bias), device=device)
        scores[tokens] += torch.tensor(list(shaping.bias.values()), dtype=scores.dtype, device=device)
    banned = [word[-1] for word in shaping.bad_words if word and _ends_with(answer, word[:-1])]
    if len(answer) < shaping.min_tokens:
        banned += [end for end in ends if end < len(scores)]
    if banned:
        scores[torch.tensor(banned, device=device)] = -torch.inf
    return scores


def _ends_with(answer: Sequence[int], tokens: Sequence[int]) -> bool:
    return len(tokens) <= len(answer) and list(answer[len(answer) - len(tokens) :]) == list(tokens)


def guided(scores: torch.Tensor, guide: Guide) -> torch.Tensor:
    """The log-probabilities of tokens that the guide allows, -inf for the others.

    Raises:
        NoTokenLeft: If it allows none.
    """
    allowed = torch.zeros(scores.shape, dtype=torch.bool)
    mask = guide.allowed()
    allowed[: len(mask)] = mask[: len(allowed)]
    if not allowed.any():
        raise NoTokenLeft("no token may come next: the vocabulary cannot write what was asked for")
    return scores.masked_fill(~allowed.to(scores.device), -torch.inf)
