"""Votes that are fitted instead of following from alphas: log-probabilities of true tokens in, weights or a temperature
out.

Pure numpy in float64, apart from what runs the models, because the fit is a convex problem with one answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TEMPERATURES: Floats = np.exp(np.linspace(-np.log(4.0), np.log(4.0), 33))
"""Temperatures that are tried: from 1/4 to 4, each 9 % above the one before; the one in the middle is 1."""

LEAST_WEIGHT = 1e-4
"""A member whose fitted weight is smaller has no vote."""


def mixture_weights(logprobs: NDArray[np.floating], *, gain: float = 1e-6, most: int = 1000) -> Floats:
    """Weights of the mixture under which the tokens are likeliest: max over the simplex of Σ_n log Σ_m a_m p_m(y_n).

    By expectation maximisation from equal weights, a_m ← mean over n of a_m p_m(y_n) / Σ_k a_k p_k(y_n) (Dempster,
    Laird and Rubin 1977). The objective is concave, so that where it ends does not depend on where it begins.

    Args:
        logprobs: `[members, tokens]`, natural logarithms; -inf is allowed. A token that all members find impossible
            says nothing about them and is left out.
        gain: Ends when the objective grows by less than this share of itself.
        most: Most iterations.

    Returns:
        `[members]`, float64, of sum 1; weights below `LEAST_WEIGHT` are 0.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    values = values[:, np.isfinite(values).any(axis=0)]
    weights = np.full(len(values), 1.0 / len(values))
    if len(values) == 1 or values.shape[1] == 0:
        return weights
    highest = values.max(axis=0)
    p = np.exp(values - highest)
    before = -np.inf
    for _ in range(most):
        mixed = weights @ p
        now = float(np.mean(np.log(mixed) + highest))
        if now - before <= gain * abs(now):
            break
        before = now
        weights = weights * (p / mixed).mean(axis=1)
        weights /= weights.sum()
    weights[weights < LEAST_WEIGHT] = 0.0
    return weights / weights.sum()


def best_temperature(nll: NDArray[np.floating]) -> float:
    """The temperature at which a member's tokens are likeliest (temperature scaling, Guo et al. 2017).

    The loss is convex in 1/T. Its minimum is read off the parabola, over log T, through the best temperature that was
    tried and its neighbours; of equal ones the nearest to 1 counts.

    Args:
        nll: `[temperatures]`, the member's loss at each of `TEMPERATURES`.

    Returns:
        A temperature between the least and the largest; 1 where the loss is infinite at every one.
    """
    values = np.asarray(nll, dtype=np.float64)
    if not np.isfinite(values).any():
        return 1.0
    logs, lowest = np.log(TEMPERATURES), float(np.nanmin(values))
    equal = np.flatnonzero(values <= lowest + 1e-12 * max(1.0, abs(lowest)))
    best = int(equal[np.argmin(np.abs(logs[equal]))])
    if best in (0, len(values) - 1):
        return float(TEMPERATURES[best])
    left, middle, right = values[best - 1 : best + 2]
    bend = left - 2 * middle + right
    if not np.isfinite(bend) or bend <= 0:
        return float(TEMPERATURES[best])
    return float(np.exp(logs[best] + 0.5 * (left - right) / bend * (logs[1] - logs[0])))


def mixture_nll(logprobs: NDArray[np.floating], weights: Floats) -> Floats:
    """Loss of every token under the mixture, in nats.

    Args:
        logprobs: `[members, tokens]`.
        weights: `[members]`, of sum 1.

    Returns:
        `[tokens]`, float64.
    """
    voting = weights > 0
    return -np.logaddexp.reduce(np.asarray(logprobs, np.float64)[voting] + np.log(weights[voting])[:, None], axis=0)
