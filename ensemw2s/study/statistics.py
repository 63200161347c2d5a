"""Figures of replications in, what can be said of them out: means with intervals, and permutation tests.

Pure. A value is one seed's (or one task's and seed's), so these intervals speak of other seeds, as those of a run's
report speak of other test examples. The maths is SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy import stats

from ensemw2s.evaluation.metrics import CONFIDENCE
from ensemw2s.study.records import Correlation, Mean, SignFlip


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of n replications, with Student's 95 % interval.

    Args:
        values: One figure for each seed, at least one.
    """
    n, center = len(values), mean(values)
    if n < 2:
        return Mean(mean=center, ci95=None, n=n)
    half = _quantile(n - 1) * float(np.std(np.asarray(values, dtype=np.float64), ddof=1)) / n**0.5
    return Mean(mean=center, ci95=(center - half, center + half), n=n)


def mean(values: Sequence[float]) -> float:
    """Mean of replications, at least one."""
    return float(np.asarray(values, dtype=np.float64).mean())


@cache
def _quantile(degrees: int) -> float:
    """Of Student's t: how many standard errors wide half of an interval is."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, degrees))


def sign_flip_test(differences: Sequence[float], *, resamples: int, seed: int) -> SignFlip:
    """Two-sided permutation test of paired differences: were they as likely to have the other sign?

    Args:
        differences: One for each pair.
        resamples: Sign patterns to draw; all 2^n are gone through where there are no more than that.
        seed: Of the drawn patterns.
    """
    column = np.asarray(differences, dtype=np.float64)
    n = len(column)
    exact = 2**n <= resamples
    smallest = min(1.0, 2.0 ** (1 - n)) if exact else 2 / (resamples + 1)
    if n < 2 or not column.any():
        return SignFlip(p=1.0, smallest_p=smallest, exact=exact)
    found = stats.permutation_test(
        (column,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        alternative="two-sided",
        rng=np.random.default_rng(seed),
    )
    return SignFlip(p=float(min(1.0, found.pvalue)), smallest_p=smallest, exact=exact)


def association(
    x: Sequence[float], y: Sequence[float], groups: Sequence[str], *, resamples: int, seed: int
) -> Correlation | None:
    """Spearman's rank correlation within groups, with a permutation p-value.

    Ranks and permutations stay within a group, so that what sets groups apart (one task is harder and gains more) is no
    association.

    Args:
        x: One figure for each run.
        y: The other.
        groups: Whose run it is. Groups with fewer than three runs, or where either figure has no spread, are left out.
        resamples: Permutations to draw.
        seed: Of the permutations.

    Returns:
        The correlation; None where no group is left.
    """
    rng, names = np.random.default_rng(seed), np.asarray(list(groups))
    found, drawn, runs, used = 0.0, np.zeros(resamples), 0, 0
    for name in dict.fromkeys(groups):
        a, b = (np.asarray(column, dtype=np.float64)[names == name] for column in (x, y))
        if len(a) < 3 or len(set(a)) < 2 or len(set(b)) < 2:
            continue
        left, right = (stats.zscore(stats.rankdata(column)) for column in (a, b))
        found += left @ right
        drawn += rng.permuted(np.tile(left, (resamples, 1)), axis=1) @ right
        runs, used = runs + len(a), used + 1
    if not runs:
        return None
    as_far = np.abs(drawn) >= abs(found) - 1e-9
    return Correlation(rho=float(found / runs), p=float((1 + as_far.sum()) / (1 + resamples)), n=runs, groups=used)
