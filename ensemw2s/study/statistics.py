"""Figures of replications in, what can be said of them out: means with intervals, and permutation tests.

Pure. A value is one seed's (or one task's and seed's), so these intervals speak of other seeds, as those of a run's
report speak of other test examples. The maths is SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from ensemw2s.evaluation.metrics import CONFIDENCE

Facts = dict[str, Any]


def mean_interval(values: Sequence[float]) -> Facts:
    """Mean of n replications, with Student's 95 % interval.

    Args:
        values: One figure a seed, at least one.

    Returns:
        `mean`, `ci95` [lo, hi] (null with fewer than two values: nothing is known of their spread), `n`.
    """
    column = np.asarray(values, dtype=np.float64)
    n, mean = len(column), float(column.mean())
    if n < 2:
        return {"mean": mean, "ci95": None, "n": n}
    half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * stats.sem(column)
    return {"mean": mean, "ci95": [float(mean - half), float(mean + half)], "n": n}


def sign_flip_test(differences: Sequence[float], *, resamples: int, seed: int) -> Facts:
    """Two-sided permutation test of paired differences: were they as likely to have the other sign?

    Args:
        differences: One a pair.
        resamples: Sign patterns to draw; all 2^n are gone through where there are no more than that.
        seed: Of the drawn patterns.

    Returns:
        `p`; `smallest_p`, the least that so many pairs can give; `exact`, whether all patterns were gone through.
    """
    column = np.asarray(differences, dtype=np.float64)
    n = len(column)
    exact = 2**n <= resamples
    smallest = min(1.0, 2.0 ** (1 - n)) if exact else 2 / (resamples + 1)
    if n < 2 or not column.any():
        return {"p": 1.0, "smallest_p": smallest, "exact": exact}
    found = stats.permutation_test(
        (column,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return {"p": float(min(1.0, found.pvalue)), "smallest_p": smallest, "exact": exact}


def association(x: Sequence[float], y: Sequence[float], *, resamples: int, seed: int) -> Facts | None:
    """Spearman's rank correlation with a permutation p-value; None with fewer than three pairs or no spread."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    # the ranks of a shuffled sample are its shuffled ranks, so that Pearson's of ranks is one product a shuffle
    left, right = (stats.zscore(stats.rankdata(column)) for column in (a, b))

    def rho(shuffled: Any, axis: int) -> Any:
        return np.mean(shuffled * right, axis=axis)

    found = stats.permutation_test(
        (left,),
        rho,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return {"rho": float(found.statistic), "p": float(min(1.0, found.pvalue)), "n": len(a)}
