"""What is asked of the engine and what it answers: one prompt with its options, one generation with its votes.

Apart from the engine because everything that can be wrong with a request is found here, before it shares a batch with
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from ensemw2s.ensemble.combine import normalised_weights
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.shaping import Guide, Shaping
from ensemw2s.errors import ConfigError, DataError, ModelError

Tokens = Sequence[int] | np.ndarray

MOST_LIKELIEST = 256
"""Most likeliest tokens that are kept per step, so that little leaves the device beside whole distributions."""


@dataclass(frozen=True)
class Request:
    """One prompt and how it is to be answered.

    Attributes:
        prompt: Token ids, at least one.
        max_new_tokens: Longest answer in tokens, the end token included; 0, with `prompt_scores`: none.
        eos_ids: Tokens that end the answer.
        sampling: How tokens are chosen.
        seed: At least 0; the same seed gives the same tokens whatever else is decoded at the time (up to rounding,
            which in half precision depends on the batch).
        stop: Strings that end the answer when they appear in it; they need the engine to have a tokenizer.
        distributions: Keep this many of the likeliest tokens at every step; 0: none.
        votes: Keep this many of each member's likeliest tokens at every step; 0: only its first.
        weights: Weights of members by name in place of the ensemble's; members that are not named have none.
        shaping: What is changed of the combined distribution before a token is chosen.
        guide: What the answer has to look like; for this request alone.
        prompt_scores: Score the prompt's tokens, and keep this many of the likeliest tokens at each; None: do not.
    """

    prompt: Tokens
    max_new_tokens: int
    eos_ids: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    distributions: int = 0
    votes: int = 0
    weights: Mapping[str, float] | None = None
    prompt_scores: int | None = None
    shaping: Shaping | None = None
    guide: Guide | None = None

    @property
    def draftable(self) -> bool:
        """Whether a token's choice is known to depend on its distribution alone, so that a draft can be checked."""
        return self.shaping is None and self.guide is None


@dataclass(frozen=True)
class PromptScores:
    """A prompt under teacher forcing; p tokens, of which the first has nothing before it.

    Attributes:
        logprobs: `[p - 1]`, float32: log-probability of each token after the first under the combination.
        top_tokens: `[p - 1, k]`, int32: likeliest tokens of the combination.
        top_logprobs: `[p - 1, k]`, float32: their log-probabilities.
    """

    logprobs: np.ndarray
    top_tokens: np.ndarray
    top_logprobs: np.ndarray


@dataclass(frozen=True)
class Generation:
    """What was decoded after one prompt; n tokens, the end token included.

    Attributes:
        token_ids: The tokens; the last is an end token, or completes a stop string, unless the length ran out.
        logprobs: `[n]`, float32: log-probability of each token under the combination, before temperature and cut-offs.
        agreement: `[n]`, float32: weighted share of the members whose argmax is the token.
        votes: `[n, members]`, int32: each member's argmax.
        entropy: `[n]`, float32: entropy in nats of the weighted shares of these votes; 0 where all agree.
        finish_reason: `stop` (an end token or a stop string), `length` or `cancelled`.
        stop: The stop string that ended it.
        top_tokens: `[n, k]`, int32: likeliest tokens of the combination, if asked for.
        top_logprobs: `[n, k]`, float32: their log-probabilities.
        vote_tokens: `[n, members, k]`, int32: each member's likeliest tokens, if asked for.
        vote_logprobs: `[n, members, k]`, float32: the member's log-probabilities of them.
        prompt: Scores of the prompt, if asked for.
    """

    token_ids: list[int]
    logprobs: np.ndarray
    agreement: np.ndarray
    votes: np.ndarray
    entropy: np.ndarray
    finish_reason: str
    stop: str | None = None
    top_tokens: np.ndarray | None = None
    top_logprobs: np.ndarray | None = None
    vote_tokens: np.ndarray | None = None
    vote_logprobs: np.ndarray | None = None
    prompt: PromptScores | None = None

    def after(self, start: int) -> Generation:
        """The same without its first tokens."""
        return replace(self, **{name: value[start:] for name, value in self._of_tokens()})

    def _of_tokens(self) -> list[tuple[str, Any]]:
        """The fields that have an entry per token."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return [(name, value) for name, value in values if isinstance(value, list | np.ndarray)]


def check_request(
    model: EnsembleForCausalLM, request: Request, has_tokenizer: bool, name: str = "prompt"
) -> np.ndarray:
    """Checks that a request can be decoded.

    Args:
        model: The ensemble.
        request: The request.
        has_tokenizer: Whether stop strings can be looked for.
        name: What the prompt is called in messages.

    Returns:
        The prompt's tokens, int64.

    Raises:
        DataError: If the prompt is empty or has a token outside the vocabulary.
        ModelError: If prompt and answer do not fit into the context, or weights name an unknown member.
        ConfigError: If an option is out of range.
    """
    for option in ("max_new_tokens", "distributions", "votes", "seed"):
        if not isinstance(value := getattr(request, option), int | np.integer):
            raise ConfigError(f"{option} is {value!r}; expected a whole number")
    if request.max_new_tokens or request.prompt_scores is None:
        check_positive(max_new_tokens=request.max_new_tokens)
    most = min(MOST_LIKELIEST, model.vocabulary)
    for option in ("distributions", "votes", "prompt_scores"):
        if not 0 <= (count := getattr(request, option) or 0) <= most:
            raise ConfigError(f"{option} is {count}; expected 0 to {most}")
    if request.seed < 0:
        raise ConfigError(f"seed is {request.seed}; expected a number of at least 0")
    for option, kind in (("stop", str), ("eos_ids", int | np.integer)):
        values = getattr(request, option)
        if not isinstance(values, tuple | list) or not all(isinstance(value, kind) for value in values):
            raise ConfigError(
                f"{option} is {values!r}; expected a tuple of {'strings' if kind is str else 'token ids'}"
            )
    if any(not text for text in request.stop):
        raise ConfigError("stop has an empty string, which every answer begins with")
    if request.stop and not has_tokenizer:
        raise ConfigError("stop strings need a tokenizer; give the engine one")
    row = as_tokens(request.prompt)
    if not len(row):
        raise DataError(f"{name} is empty; expected at least one token (a begin-of-sequence token, say)")
    check_vocabulary(model, row, name)
    check_context(model, row, request.max_new_tokens, name, "new tokens")
    if request.shaping is not None:
        request.shaping.check(model.vocabulary)
    if request.weights is not None:
        member_weights(model, request.weights)
    return row


def longest_first(requests: Sequence[Request]) -> list[int]:
    """Indices in the order in which a batch takes them: those that may take longest, so that the last slots do not wait
    for one of them; of equal ones those with long prompts, so that what is too big for the memory fails at once.
    """

    def extent(i: int) -> tuple[int, int]:
        return requests[i].max_new_tokens, len(requests[i].prompt)

    return sorted(range(len(requests)), key=extent, reverse=True)


def member_weights(model: EnsembleForCausalLM, weights: Mapping[str, float]) -> list[float]:
    """Weights by name as a list in the members' order, divided by their sum.

    Raises:
        ModelError: If a name is not that of a member, or the weights cannot be used.
    """
    if unknown := [name for name in weights if name not in model.names]:
        raise ModelError(f"weights name {unknown[0]!r}, which is no expert here; available: {', '.join(model.names)}")
    try:
        return normalised_weights([weights.get(name, 0.0) for name in model.names])
    except (TypeError, ValueError) as error:
        raise ModelError(f"weights are {dict(weights)}; expected a number for each expert") from error


def as_tokens(row: Tokens) -> np.ndarray:
    """Token ids as an int64 array.

    Raises:
        DataError: If they are no numbers.
    """
    try:
        ids = np.asarray(row).reshape(-1)
    except ValueError as error:
        raise DataError(f"a prompt or answer is not token ids: {error}; tokenize it first") from error
    if len(ids) and ids.dtype.kind not in "iu":
        raise DataError(f"a prompt or answer is not token ids but {ids.dtype} ({ids[:3]} …); tokenize it first")
    return ids.astype(np.int64)


def check_context(model: EnsembleForCausalLM, row: np.ndarray, count: int, name: str, what: str) -> None:
    """Raises ModelError unless a prompt and `count` more tokens fit into the context."""
    if model.context is not None and len(row) + count > model.context:
        raise ModelError(
            f"{name} has {len(row)} tokens, which with {count} {what} is more than the model's context of "
            f"{model.context}; shorten it, or ask for fewer"
        )


def check_vocabulary(model: EnsembleForCausalLM, row: np.ndarray, name: str) -> None:
    """Raises DataError if a token lies outside the vocabulary."""
    if len(row) and (row.min() < 0 or row.max() >= model.vocabulary):
        bad = int(row[(row < 0) | (row >= model.vocabulary)][0])
        raise DataError(
            f"{name} has token {bad}, outside the vocabulary of {model.vocabulary}; "
            "was it tokenized with another tokenizer?"
        )


def check_positive(**values: int) -> None:
    """Raises ConfigError for a value under 1."""
    for name, value in values.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; expected at least 1")
