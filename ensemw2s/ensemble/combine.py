"""How the experts' next-token distributions become one: log-probabilities of the members in, of the ensemble out.

Pure tensor functions, apart from models and decoding, because evaluation, scoring and decoding must all use exactly
the same three rules (docs/method.md, "The ensemble").
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from ensemw2s.errors import ModelError

if TYPE_CHECKING:  # a driver asks for the rules only, and torch takes seconds to import
    import torch

Rule: TypeAlias = Literal["probability", "log_probability", "vote"]
RULES: tuple[str, ...] = get_args(Rule)

# Share of the probability that the rule `vote` spreads evenly over the vocabulary. Tokens without a vote would have
# probability 0 and a wrong answer an infinite loss; with it the loss of such a token is log(V / 1e-6), 25 for V = 64k.
VOTE_FLOOR = 1e-6

# Shares under the smallest normal float32 are none: multiplied by an infinite log-probability, 0 is not a number.
SMALLEST_SHARE = 2.0**-126


def normalised_weights(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum.

    Raises:
        ModelError: If one is negative or not a number, or none is positive.
    """
    values = [float(weight) for weight in weights]
    if bad := [value for value in values if not math.isfinite(value) or value < 0]:
        raise ModelError(f"member weights are {values}; expected numbers of at least 0, not {bad[0]}")
    total = sum(values)
    if total <= 0:
        raise ModelError(f"member weights are {values}; no member has a positive weight, so the ensemble has no vote")
    if not math.isfinite(total):  # each is a number, their sum is none
        return normalised_weights([value / max(values) for value in values])
    return [value / total for value in values]


def combine(log_probs: torch.Tensor, weights: Sequence[float], rule: Rule = "probability") -> torch.Tensor:
    """Combines the members' distributions; a member of weight 0 is ignored, even where it is not finite.

    With a_m the weights divided by their sum:

    - `probability`: log Σ a_m p_m, as a log-sum-exp of log a_m + log p_m.
    - `log_probability`: Σ a_m log p_m, renormalised.
    - `vote`: log of the share of votes Σ a_m 1[argmax p_m] (a member's tie goes to the lowest id). Shares are rounded
      to six digits, so that equal ones stay equal, and mixed with `VOTE_FLOOR` of a uniform distribution, so that
      every log-probability is finite.

    The ensemble's choice is the argmax; `torch.argmax` gives ties to the lowest id.

    Args:
        log_probs: `[members, ..., vocabulary]`, natural logarithms that sum to 1 as probabilities over the last
            dimension; -inf is allowed.
        weights: A number of at least 0 for each member.
        rule: Combination rule.

    Returns:
        `[..., vocabulary]`, float32 log-probabilities.

    Raises:
        ModelError: If the weights are not usable, the rule is unknown or the numbers of members differ.
    """
    import torch

    if rule not in RULES:
        raise ModelError(f"combination rule is {rule!r}, available: {', '.join(RULES)}")
    if len(weights) != log_probs.shape[0]:
        raise ModelError(f"{len(weights)} weights for {log_probs.shape[0]} members")
    shares = normalised_weights(weights)
    voters = [m for m, share in enumerate(shares) if share >= SMALLEST_SHARE]
    members = (log_probs if len(voters) == len(shares) else log_probs[voters]).float()
    shares = [shares[m] for m in voters]
    if rule == "vote":
        return _vote(members, shares)
    if len(voters) == 1:
        return members[0]
    column = torch.tensor(shares, dtype=torch.float32, device=members.device).view(-1, *[1] * (members.dim() - 1))
    if rule == "probability":
        return functools.reduce(torch.logaddexp, members + column.log())  # faster than logsumexp for few
    return torch.log_softmax((members * column).sum(dim=0), dim=-1)


def agreement(member_tokens: torch.Tensor, tokens: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Weighted share of the members whose own choice is the token that was taken.

    Args:
        member_tokens: `[members, ...]`, int64, each member's argmax.
        tokens: `[...]`, int64, the tokens taken.
        weights: A number of at least 0 for each member.

    Returns:
        `[...]`, float32 between 0 and 1.
    """
    import torch

    shares = torch.tensor(normalised_weights(weights), dtype=torch.float32, device=tokens.device)
    hits = (member_tokens == tokens).float()
    return (hits * shares.view(-1, *[1] * tokens.dim())).sum(dim=0).clamp(max=1.0)


def _vote(members: torch.Tensor, shares: list[float]) -> torch.Tensor:
    """Log share of votes over `[members, ..., vocabulary]`, see `combine`."""
    import torch

    counted = torch.zeros_like(members[0])
    for member, share in zip(members, shares, strict=True):
        choice = member.argmax(dim=-1, keepdim=True)
        counted.scatter_add_(-1, choice, torch.full_like(choice, share, dtype=counted.dtype))
    counted = counted.round(decimals=6)
    return (counted * (1 - VOTE_FLOOR) + VOTE_FLOOR / counted.shape[-1]).log()
