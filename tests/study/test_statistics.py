import math

import numpy as np
import pytest

from ensemw2s.study.records import Correlation, Mean
from ensemw2s.study.statistics import association, mean_interval, sign_flip_test


def test_an_interval_is_students() -> None:
    """1 … 5: mean 3, standard error sqrt(2.5 / 5), and t(0.975, 4) = 2.7764 from any table."""
    found = mean_interval([1, 2, 3, 4, 5])
    half = 2.7764 * math.sqrt(0.5)
    assert found.mean == 3
    assert found.ci95 == pytest.approx([3 - half, 3 + half], abs=1e-3)
    assert found.n == 5


def test_one_seed_says_nothing_of_others() -> None:
    assert mean_interval([0.5]) == Mean(mean=0.5, ci95=None, n=1)


def test_equal_values_have_an_interval_of_no_width() -> None:
    assert mean_interval([0.25] * 4).ci95 == (0.25, 0.25)


@pytest.mark.slow
def test_the_interval_holds_the_truth_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    held = [lo <= 1.0 <= hi for lo, hi in (mean_interval(rng.normal(1.0, 2.0, 5)).ci95 for _ in range(2000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5], 2 / 32),  # only it and its mirror image are as extreme
        ([1, 2, 3, 4, -1], 2 * 3 / 32),  # sums of at least 9 out of 1 + 2 + 3 + 4 + 1: 11, and 9 in two ways
        ([0.1, 0.1], 2 / 4),
        ([1, -1], 1.0),
        ([0, 0, 0], 1.0),
        ([3], 1.0),
    ],
)
def test_all_sign_flips_are_gone_through_where_they_are_few(differences, p) -> None:
    found = sign_flip_test(differences, resamples=1000, seed=0)
    assert found.p == pytest.approx(p)
    assert found.exact
    assert found.smallest_p == min(1.0, 2.0 ** (1 - len(differences)))


def test_many_pairs_are_drawn_and_come_near_the_exact_value() -> None:
    differences = np.random.default_rng(3).normal(0.4, 1.0, 12)
    exact = sign_flip_test(differences, resamples=2**12, seed=0)
    drawn = sign_flip_test(differences, resamples=4000, seed=0)
    assert (exact.exact, drawn.exact) == (True, False)
    assert drawn.p == pytest.approx(exact.p, abs=0.02)
    assert drawn == sign_flip_test(differences, resamples=4000, seed=0)
    assert drawn.smallest_p == 2 / 4001


def test_ranks_go_together_or_not() -> None:
    def told(x: list, y: list, groups: str = "") -> Correlation | None:
        return association(x, y, groups or "a" * len(x), resamples=4000, seed=0)

    found = told([1, 2, 3, 4], [10, 20, 30, 40])
    assert (found.rho, found.p) == (pytest.approx(1.0), pytest.approx(2 / 24, abs=0.02))
    assert (found.n, found.groups) == (4, 1)
    assert told([1, 2, 3, 4], [4, 3, 2, 1]).rho == pytest.approx(-1.0)
    assert told([1, 2], [1, 2]) is None
    assert told([1, 1, 1], [1, 2, 3]) is None


def test_what_sets_groups_apart_is_no_association() -> None:
    """Within each task the two have nothing to do with each other; one task has more of both."""
    x, y = [1, 2, 3, 4, 5], [3, 5, 1, 2, 4]
    level = [[*x, *(v + 10 for v in x)], [*y, *(v + 10 for v in y)]]
    assert association(*level, "a" * 10, resamples=2000, seed=0).p < 0.05
    within = association(*level, "aaaaabbbbb", resamples=2000, seed=0)
    assert (within.n, within.groups) == (10, 2)
    assert abs(within.rho) < 0.2
    assert within.p > 0.5


def test_a_group_that_can_say_nothing_is_left_out() -> None:
    alone = association([1, 2, 3, 4], [1, 2, 4, 3], "aaaa", resamples=1000, seed=0)
    more = association([1, 2, 3, 4, 1, 2, 7, 7, 7], [1, 2, 4, 3, 2, 1, 1, 2, 3], "aaaabbccc", resamples=1000, seed=0)
    assert more == alone
