"""Choosing the next token: log-probabilities of the combination in, token ids out, greedy or sampled.

Apart from the engine because the choice of a row must depend on nothing but its own distribution, seed and step: then
the same seed gives the same tokens whatever else is in the batch, in this engine and in any faster one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ensemw2s.errors import ConfigError

COLDEST = 1e-6
"""Lower temperatures are raised to this one, which is greedy in effect and does not overflow."""

LIKELIEST = 1024
"""Tokens that are looked at for `top_p`; where they do not reach it, the whole vocabulary is sorted."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from the combined distribution.

    Attributes:
        temperature: 0 is greedy (ties to the lowest id); otherwise log-probabilities are divided by it.
        top_k: Keep the k likeliest tokens (equal ones: lowest ids first); 0 keeps all.
        top_p: Then keep the fewest likeliest tokens whose probability reaches this; 1 keeps all.
        min_p: Then keep the tokens that have at least this share of the likeliest one's probability; 0 keeps all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0 or self.temperature == float("inf"):
            raise ConfigError(f"temperature is {self.temperature}; expected a number of at least 0")
        if not isinstance(self.top_k, int | np.integer) or self.top_k < 0:
            raise ConfigError(f"top_k is {self.top_k}; expected a whole number of at least 0 (0 keeps all tokens)")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; expected more than 0 and at most 1 (1 keeps all tokens)")
        if not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p is {self.min_p}; expected 0 to 1 (0 keeps all tokens)")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, and no random number used."""
        return self.temperature == 0


def draws(seed: int, prompt: Sequence[int], count: int) -> np.ndarray:
    """The random numbers of one row, one per step.

    They depend on the seed and the prompt, so that rows of different prompts are independent under one seed.

    Args:
        seed: At least 0.
        prompt: Token ids.
        count: How many steps.

    Returns:
        `[count]`, float64, uniform in [0, 1).
    """
    return np.random.default_rng([seed, len(prompt), *prompt]).random(count)


def choose(
    log_probs: torch.Tensor, sampling: Sampling | Sequence[Sampling], uniform: torch.Tensor | None
) -> torch.Tensor:
    """Chooses one token per row.

    Args:
        log_probs: `[rows, vocabulary]`, float32.
        sampling: How; one for all rows, or one for each.
        uniform: `[rows]`, float64 in [0, 1), this step's random numbers; not read for greedy rows.

    Returns:
        `[rows]`, int64.
    """
    each = [sampling] * len(log_probs) if isinstance(sampling, Sampling) else sampling
    drawn = [row for row, one in enumerate(each) if not one.greedy]
    if not drawn:
        return log_probs.argmax(dim=-1)
    assert uniform is not None
    if len(drawn) == len(each):
        return _draw(log_probs, each, uniform)
    tokens = log_probs.argmax(dim=-1)
    tokens[drawn] = _draw(log_probs[drawn], [each[row] for row in drawn], uniform[drawn])
    return tokens


def _draw(log_probs: torch.Tensor, sampling: Sequence[Sampling], uniform: torch.Tensor) -> torch.Tensor:
    """Inverse-transform sampling over ids in their order."""
    temperature = _column([max(one.temperature, COLDEST) for one in sampling], log_probs).float()
    probs = torch.softmax((log_probs - log_probs.amax(dim=-1, keepdim=True)) / temperature, dim=-1).double()
    cut = [row for row, one in enumerate(sampling) if one.top_k or one.top_p < 1]
    if cut:
        probs[cut] *= _kept(log_probs[cut], probs[cut], [sampling[row] for row in cut])
    if any(one.min_p for one in sampling):
        probs = probs * (probs >= _column([one.min_p for one in sampling], probs) * probs.amax(dim=-1, keepdim=True))
    ends = probs.cumsum(dim=-1)
    # The first token whose interval ends beyond the target; never one of probability 0, whose interval is empty.
    place = torch.searchsorted(ends, uniform.unsqueeze(-1) * ends[:, -1:], right=True)
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    return torch.minimum(place, last).squeeze(-1)


def _kept(log_probs: torch.Tensor, probs: torch.Tensor, sampling: Sequence[Sampling]) -> torch.Tensor:
    """Which tokens the cut-offs leave, `[rows, vocabulary]`, bool; all are sorted only where the likeliest don't do."""
    size = log_probs.shape[-1]
    most = _column([min(one.top_k or size, size) for one in sampling], log_probs)
    share = _column([one.top_p if one.top_p < 1 else torch.inf for one in sampling], log_probs)
    looked = min(size, max([LIKELIEST, *(one.top_k for one in sampling)]))
    while True:
        scores, ids = log_probs.topk(looked, dim=-1)
        top = probs.gather(-1, ids).masked_fill(torch.arange(looked, device=ids.device) >= most, 0.0)
        left = torch.where(most < size, top.sum(dim=-1, keepdim=True), probs.sum(dim=-1, keepdim=True))
        inside = (top.cumsum(dim=-1) - top < share * left) & (torch.arange(looked, device=ids.device) < most)
        count = inside.sum(dim=-1, keepdim=True)
        if looked == size or bool(((count < looked) | (most <= looked)).all()):
            break
        looked = size
    border = scores.gather(-1, count - 1)
    above, equal = log_probs > border, log_probs == border
    return above | (equal & (equal.cumsum(dim=-1) <= count - above.sum(dim=-1, keepdim=True)))


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(-1)
