"""A request on its way through the engine: tokens and what was recorded of them come in, a generation goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from ensemw2s.ensemble.requests import Generation, PromptScores, Request

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STOP_MARGIN = 8
"""Tokens before a stop string that are decoded along with it: so its first bytes come out as they do in context."""


class Column(IntEnum):
    """What a step records of every token, by its place in the step's list of arrays `[slots, q, ...]`."""

    LOGPROB = 0
    VOTES = 1
    TOP_TOKENS = 2
    TOP_LOGPROBS = 3
    VOTE_TOKENS = 4
    VOTE_LOGPROBS = 5


@dataclass
class Running:
    """A request on its way. Its sequence is prompt and answer so far; `read` tokens of it are in the cache.

    Attributes:
        key: Its key in the engine.
        request: What was asked.
        sequence: Token ids.
        prompt_length: How many of them are the prompt.
        weights: The members' weights, divided by their sum.
        uniform: Its random numbers, one per new token; None if it is greedy.
        read: Tokens in the cache.
        records: For each new token the arrays of its step, its slot and its place there.
        scored: Scores of the parts of the prompt that were read, if they are wanted.
    """

    key: int
    request: Request
    sequence: list[int]
    prompt_length: int
    weights: Sequence[float]
    uniform: np.ndarray | None
    read: int = 0
    records: list[tuple[list[np.ndarray], int, int]] = field(default_factory=list)
    scored: list[PromptScores] = field(default_factory=list)

    @property
    def answered(self) -> int:
        """New tokens so far."""
        return len(self.sequence) - self.prompt_length

    @property
    def room(self) -> int:
        """Most tokens that a draft can save: one less than are still allowed."""
        return self.request.max_new_tokens - self.answered - 1

    def numbers(self, count: int) -> np.ndarray:
        """Its random numbers from here on, `[count]`, float64; zeros beyond the last one, and where it is greedy."""
        found = np.zeros(count)
        if self.uniform is not None:
            mine = self.uniform[self.answered : self.answered + count]
            found[: len(mine)] = mine
        return found

    @property
    def unread_prompt(self) -> int:
        """Tokens to read before the first step, which reads the last one itself."""
        return self.prompt_length - 1 - self.read

    def ended(self, tokenizer: PreTrainedTokenizerBase | None) -> tuple[str | None, str | None]:
        """Whether the answer ends with its last token: the reason, and the stop string if it is one.

        Args:
            tokenizer: For requests that have stop strings.
        """
        request = self.request
        if self.sequence[-1] in request.eos_ids:
            return "stop", None
        if request.stop and (request.shaping is None or self.answered >= request.shaping.min_tokens):
            assert tokenizer is not None, "stop strings are refused without a tokenizer"
            most_tokens = max(len(stop.encode()) for stop in request.stop)  # a token has at least one byte
            last = min(self.answered, most_tokens + STOP_MARGIN)
            text = str(tokenizer.decode(self.sequence[-last:]))
            if found := [stop for stop in request.stop if stop in text]:
                return "stop", min(found, key=text.index)
        return ("length" if self.answered >= request.max_new_tokens else None), None

    def generation(self, reason: str, stop: str | None = None, start: int = 0) -> Generation:
        """The answer so far.

        Args:
            reason: Why it ends here.
            stop: The stop string that ended it.
            start: How many of its first tokens to leave out.
        """
        members, request = len(self.weights), self.request
        tokens = self.sequence[self.prompt_length + start :]
        n, top, own = len(tokens), request.distributions, request.votes
        votes = self._column(Column.VOTES, start).reshape(n, members)
        hits = (votes == np.array(tokens)[:, None]).astype(np.float32)
        return Generation(
            token_ids=tokens,
            logprobs=self._column(Column.LOGPROB, start).astype(np.float32),
            agreement=np.minimum(hits @ np.array(self.weights, np.float32), 1.0),
            votes=votes.astype(np.int32),
            entropy=vote_entropy(votes, self.weights),
            finish_reason=reason,
            stop=stop,
            top_tokens=self._likeliest(Column.TOP_TOKENS, start, n, top).astype(np.int32) if top else None,
            top_logprobs=self._likeliest(Column.TOP_LOGPROBS, start, n, top).astype(np.float32) if top else None,
            vote_tokens=self._likeliest(Column.VOTE_TOKENS, start, n, members, own).astype(np.int32) if own else None,
            vote_logprobs=self._likeliest(Column.VOTE_LOGPROBS, start, n, members, own).astype(np.float32)
            if own
            else None,
            prompt=self._prompt() if request.prompt_scores is not None and start == 0 else None,
        )

    def _prompt(self) -> PromptScores:
        k = self.request.prompt_scores or 0
        nothing = PromptScores(np.zeros(0, np.float32), np.zeros((0, k), np.int32), np.zeros((0, k), np.float32))
        parts = [nothing, *self.scored]
        return PromptScores(
            *(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(PromptScores))
        )

    def _column(self, part: Column, start: int) -> np.ndarray:
        """One kind of record of the tokens from `start` on, `[n, ...]`."""
        return np.array([records[part][slot, place] for records, slot, place in self.records[start:]])

    def _likeliest(self, part: Column, start: int, *shape: int) -> np.ndarray:
        """The same for likeliest tokens, as many as this request asked for: others in the batch may want more."""
        steps = [records[part][slot, place][..., : shape[-1]] for records, slot, place in self.records[start:]]
        return np.array(steps).reshape(shape)


def vote_entropy(votes: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """How divided the members are at each token.

    Args:
        votes: `[n, members]`: each member's token.
        weights: The members' weights, which sum to 1.

    Returns:
        `[n]`, float32: entropy in nats of the shares of the tokens that were voted for.
    """
    same = votes[:, :, None] == votes[:, None, :]
    share = same @ np.array(weights)  # of the token that this member votes for, [n, members]
    # A member with no weight may vote alone; then its share is 0 and so is its part.
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    return np.maximum(-(logs @ np.array(weights)), 0.0).astype(np.float32)
