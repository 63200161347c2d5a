"""The maths of boosting in numpy, without state: error masks and alphas go in, weights and alphas come out.

Weights are never stored. They are a pure function of the masks and alphas of the rounds before, so a run can restart
anywhere. Formulas: SAMME, Zhu, Zou, Rosset and Hastie 2009; EnsemW2S, arXiv 2410.04571 and 2505.21959.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ensemw2s.errors import BoostingError

EPSILON = 1e-6
"""Weighted errors are clamped to [EPSILON, 1 - EPSILON], so that alpha stays finite."""

Unit = Literal["token", "window", "example"]
Prior = Literal["none", "samme", "pretrained"]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def unit_ids(lengths: Sequence[int] | Ints, unit: Unit, window: int = 1) -> Ints:
    """Assigns every token to the unit whose error and weight it shares.

    Args:
        lengths: Answer tokens of each example, in order; their sum is N.
        unit: `token`, `window` (of `window` tokens, never across examples) or `example`.
        window: Tokens per window.

    Returns:
        Unit of each token, [N], int64, counted from 0 without gaps.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if unit == "token":
        return np.arange(sizes.sum(), dtype=np.int64)
    if unit == "example":
        return np.repeat(np.arange((sizes > 0).sum(), dtype=np.int64), sizes[sizes > 0])
    windows = -(-sizes // window)
    first = np.concatenate([[0], np.cumsum(windows)[:-1]])
    position = np.arange(sizes.sum()) - np.repeat(np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    return (np.repeat(first, sizes) + position // window).astype(np.int64)


def unit_errors(errors: Bools, units: Ints) -> Bools:
    """A unit is wrong if any token in it is. `errors` and `units` are [N]; returns [U]."""
    wrong = np.zeros(int(units[-1]) + 1 if len(units) else 0, dtype=bool)
    np.logical_or.at(wrong, units, errors)
    return wrong


def weights(
    masks: Sequence[Bools], alphas: Sequence[float], *, n: int, shrinkage: float = 1.0, clip: float | None = None
) -> Floats:
    """Weights of the next round: w_i ∝ exp(Σ_s shrinkage · alpha_s · e_{s,i}), in log space.

    Args:
        masks: Error mask of each earlier round that counts, each [n].
        alphas: Their alphas.
        n: Number of units; with no masks every weight is 1/n.
        shrinkage: Damping of the exponent, in (0, 1].
        clip: Largest weight in multiples of 1/n; what is cut off is spread over the others in proportion.

    Returns:
        Weights [n], float64, that sum to 1.

    Raises:
        BoostingError: If a mask has another length or an alpha is not finite.
    """
    if n == 0:
        raise BoostingError("there are no answer tokens to weigh: the easy training split is empty")
    log_w = np.zeros(n)
    for s, (mask, alpha) in enumerate(zip(masks, alphas, strict=True)):
        if mask.shape != (n,):
            raise BoostingError(f"error mask of round {s + 1} has shape {mask.shape}, expected ({n},)")
        if not np.isfinite(alpha):
            raise BoostingError(f"alpha of round {s + 1} is {alpha}, expected a finite number")
        log_w[mask] += shrinkage * alpha
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    return w if clip is None else _capped(w, clip / n)


def _capped(w: Floats, cap: float) -> Floats:
    """The nearest rescaling of `w` with sum 1 in which no weight passes `cap` (needs cap · n > 1)."""
    capped = np.zeros(len(w), dtype=bool)
    while True:
        free = w[~capped].sum()
        scale = (1.0 - cap * capped.sum()) / free if free > 0 else 0.0
        over = ~capped & (w * scale > cap)
        if not over.any():
            return np.where(capped, cap, w * scale)
        capped |= over


def multipliers(w: Floats, units: Ints) -> Floats:
    """What each token's loss is multiplied by: U · w of its unit, so that uniform weights give 1. Returns [N]."""
    return (len(w) * w)[units]


def bootstrap_multipliers(w: Floats, units: Ints, *, seed: int, variant: Literal["count", "mask"]) -> Floats:
    """Multipliers from drawing U units with replacement by their weight.

    Args:
        w: Weights [U].
        units: Unit of each token [N].
        seed: Seed of the draw; the same seed gives the same draw.
        variant: `count`: how often the unit was drawn. `mask`: 1 if it was drawn at all.

    Returns:
        Multiplier of each token [N], float64.
    """
    counts = np.random.default_rng(seed).multinomial(len(w), w / w.sum())
    return (counts if variant == "count" else counts > 0).astype(np.float64)[units]


def weighted_error(w: Floats, errors: Bools) -> float:
    """ε = Σ w_i e_i, for w and errors of shape [U]."""
    return float(np.clip(w[errors].sum(), 0.0, 1.0))


def alpha(error: float, *, prior: Prior = "none", classes: int | None = None, reference: float | None = None) -> float:
    """Vote of an expert: log((1-ε)/ε) + prior.

    The prior is log(ε_ref/(1-ε_ref)), so that an expert as good as the reference gets 0: `none` has ε_ref = 1/2,
    `samme` a uniform guess over the classes, ε_ref = 1 - 1/K, `pretrained` the base model before fine-tuning.

    Args:
        error: Weighted error ε in [0, 1].
        prior: Which reference.
        classes: K, the vocabulary's size, for `samme`.
        reference: ε_ref, for `pretrained`.

    Returns:
        Alpha in nats; not positive means that the expert gets no vote.

    Raises:
        BoostingError: If the error is not a number in [0, 1], or the prior lacks its argument.
    """
    odds = -_log_odds(error, "weighted error")
    if prior == "none":
        return odds
    if prior == "samme":
        if classes is None or classes < 2:
            raise BoostingError(f"prior samme needs a vocabulary of at least 2 tokens, not {classes}")
        return odds + float(np.log(classes - 1))
    if reference is None:
        raise BoostingError("prior pretrained needs the error of the base model before fine-tuning")
    return odds + _log_odds(reference, "reference error")


def _log_odds(error: float, what: str) -> float:
    if not 0.0 <= error <= 1.0:
        raise BoostingError(f"the {what} is {error}, expected a number in [0, 1]: did training diverge?")
    clamped = float(np.clip(error, EPSILON, 1.0 - EPSILON))
    return float(np.log(clamped) - np.log1p(-clamped))


def committee_vote(predictions: NDArray[np.integer], alphas: Sequence[float]) -> Ints:
    """Token that a round's experts choose by alpha-weighted vote.

    Args:
        predictions: Each expert's most likely token, [W, N].
        alphas: Their alphas; experts with alpha ≤ 0 have no vote, unless all have, when all count alike.

    Returns:
        Chosen tokens [N]; a tie goes to the lowest id.
    """
    votes = np.maximum(np.asarray(alphas, dtype=np.float64), 0.0)
    if not votes.any():
        votes = np.ones_like(votes)
    best = np.full(predictions.shape[1], -1.0)
    chosen = np.zeros(predictions.shape[1], dtype=np.int64)
    for candidate in predictions:
        share = (votes[:, None] * (predictions == candidate)).sum(axis=0)
        wins = (share > best) | ((share == best) & (candidate < chosen))
        best = np.where(wins, share, best)
        chosen = np.where(wins, candidate, chosen)
    return chosen


def member_alphas(round_alpha: float, alphas: Sequence[float]) -> list[float]:
    """Final alpha of each expert of a round: α_t · α_{t,k} / Σ_k α_{t,k} over experts with α_{t,k} > 0, else 0."""
    votes = np.maximum(np.asarray(alphas, dtype=np.float64), 0.0)
    total = votes.sum()
    if round_alpha <= 0 or total == 0:
        return [0.0] * len(votes)
    return [float(round_alpha * v / total) for v in votes]


def vote_weights(alphas: Sequence[float]) -> list[float]:
    """Normalised weights a_m = α_m / Σα over members with α > 0; the others get 0.

    Raises:
        BoostingError: If no member has a positive alpha.
    """
    votes = np.maximum(np.asarray(alphas, dtype=np.float64), 0.0)
    if not votes.sum() > 0:
        raise BoostingError("no expert has a positive alpha: there is nothing to vote with")
    return [float(v) for v in votes / votes.sum()]
