"""The figures of results.json against values worked out by hand, and the bootstrap against a known distribution."""

import json

import numpy as np
import pytest

from ensemw2s.data.answers import answer_key
from ensemw2s.errors import DataError
from ensemw2s.evaluation.metrics import (
    agreement_bins,
    exact_match,
    interval,
    majority_vote,
    metrics,
    paired_difference,
    pgr,
    verdict,
)
from ensemw2s.evaluation.records import Difference
from ensemw2s.evaluation.records_labels import AgreementBin

DRAW = {"samples": 2000, "seed": 7}


def outcomes(right: int, n: int) -> np.ndarray:
    """`right` hits, then misses."""
    return np.arange(n) < right


class TestExactMatch:
    def test_white_space_at_the_ends_does_not_count_but_inside_it_does(self):
        got = exact_match([" 1 2", "1 2\n", "1  2", "", "a"], ["1 2", "1 2", "1 2", " ", "A"])
        assert got.dtype == np.bool_
        assert got.tolist() == [True, True, False, True, False]

    def test_lists_of_different_lengths_are_refused(self):
        with pytest.raises(DataError, match="2 predictions but 1 true answers"):
            exact_match(["a", "b"], ["a"])


class TestInterval:
    def test_is_the_normal_interval_where_that_is_right(self):
        lo, hi = interval(outcomes(600, 1000), **DRAW)
        half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
        assert lo == pytest.approx(0.6 - half, abs=0.003)
        assert hi == pytest.approx(0.6 + half, abs=0.003)

    def test_is_the_same_for_the_same_seed_and_moves_with_another(self):
        values = np.random.default_rng(0).normal(size=300)
        assert interval(values, samples=500, seed=1) == interval(values, samples=500, seed=1)
        assert interval(values, samples=500, seed=1) != interval(values, samples=500, seed=2)

    def test_does_not_depend_on_the_order_of_the_examples(self):
        values = np.random.default_rng(0).integers(0, 5, size=300)
        assert interval(values, **DRAW) == interval(values[::-1], **DRAW)

    def test_has_no_width_when_all_values_are_equal(self):
        assert interval([True] * 40, **DRAW) == (1.0, 1.0)
        assert interval([0.25], **DRAW) == (0.25, 0.25)

    def test_chunked_resamples_are_the_unchunked_ones(self, monkeypatch):
        values = np.random.default_rng(0).normal(size=100)
        whole = interval(values, **DRAW)
        monkeypatch.setattr("ensemw2s.evaluation.metrics._CELLS_AT_ONCE", 700)
        assert interval(values, **DRAW) == whole

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["bernoulli", "normal"])
    def test_covers_the_true_mean_in_about_95_of_100_draws(self, kind):
        rng = np.random.default_rng(11)
        covered = 0
        for draw in range(400):
            values = rng.random(200) < 0.3 if kind == "bernoulli" else rng.normal(0.3, 1.0, size=200)
            lo, hi = interval(values, samples=400, seed=draw)
            covered += lo <= 0.3 <= hi
        # Four standard errors of 400 draws about 95 %.
        assert covered / 400 == pytest.approx(0.95, abs=0.044)

    def test_agrees_with_scipy(self):
        stats = pytest.importorskip("scipy.stats")
        values = np.random.default_rng(3).gamma(2.0, size=200)
        theirs = stats.bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
        assert interval(values, samples=5000, seed=0) == pytest.approx((theirs.low, theirs.high), abs=0.015)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ([], r"shape \(0,\), expected"),
            ([[1.0]], r"shape \(1, 1\)"),
            ([1.0, np.nan], "1 values that are not finite"),
        ],
    )
    def test_refuses_what_has_no_mean(self, values, message):
        with pytest.raises(DataError, match=message):
            interval(values, **DRAW)


class TestPairedDifference:
    def test_a_gain_on_the_same_examples_is_better(self):
        a, b = outcomes(700, 1000), outcomes(600, 1000)
        got = paired_difference(a, b, **DRAW)
        assert got.difference == pytest.approx(0.1)
        assert verdict(*got.ci95) == "better"
        # Only the 100 examples that differ vary: sd² = 0.1 − 0.1².
        half = 1.96 * np.sqrt(0.09 / 1000)
        assert got.ci95 == pytest.approx([0.1 - half, 0.1 + half], abs=0.003)

    def test_swapping_the_systems_swaps_the_verdict(self):
        got = paired_difference(outcomes(600, 1000), outcomes(700, 1000), **DRAW)
        assert got.difference == pytest.approx(-0.1)
        assert verdict(*got.ci95) == "worse"

    def test_as_many_won_as_lost_is_no_difference(self):
        a = np.array([True, False] * 50)
        got = paired_difference(a, ~a, **DRAW)
        assert got.difference == 0
        assert got.ci95[0] < 0 < got.ci95[1]
        assert verdict(*got.ci95) == "no difference"

    def test_a_system_is_not_different_from_itself(self):
        a = outcomes(3, 10)
        assert paired_difference(a, a, **DRAW) == Difference(difference=0.0, ci95=(0.0, 0.0))

    def test_rounding_of_averaged_outcomes_decides_nothing(self):
        # A mean over three bases against itself in another order of summation differs by some 1e-17 an example.
        a = np.full(50, 0.1 + 0.2)
        got = paired_difference(a, np.full(50, 0.3), **DRAW)
        assert got.ci95 == (0.0, 0.0)
        assert verdict(*got.ci95) == "no difference"

    def test_the_same_accuracies_can_be_decided_paired_and_undecided_unpaired(self):
        a, b = outcomes(520, 1000), outcomes(500, 1000)
        assert verdict(*paired_difference(a, b, **DRAW).ci95) == "better"
        assert verdict(*paired_difference(a, np.roll(b, 500), **DRAW).ci95) == "no difference"

    def test_systems_on_different_examples_are_refused(self):
        with pytest.raises(DataError, match="a 3, b 2"):
            paired_difference([1, 0, 1], [1, 0], **DRAW)

    @pytest.mark.parametrize(
        ("lo", "hi", "said"),
        [(0.01, 0.2, "better"), (0.0, 0.2, "no difference"), (-0.2, 0.0, "no difference"), (-0.2, -0.01, "worse")],
    )
    def test_an_interval_that_touches_zero_decides_nothing(self, lo, hi, said):
        assert verdict(lo, hi) == said


class TestMetrics:
    def test_are_the_hand_computed_ones(self):
        got = metrics(
            [True, False, True, True],
            token_correct=[2, 1, 3, 4],
            n_tokens=[2, 3, 3, 4],
            nll_sum=[0.5, 4.0, 0.5, 1.0],
            forced=[True, False, False, True],
            options={"option_accuracy": [True, False]},
            **DRAW,
        )
        assert got.exact_match == 0.75
        assert got.token_accuracy == pytest.approx(10 / 12)
        assert got.nll == pytest.approx(0.5)
        assert got.forced_exact_match == 0.5
        assert got.option_accuracy == 0.5
        assert got.n == 4
        assert got.ci95 == interval([1, 0, 1, 1], **DRAW)

    def test_figures_that_a_system_does_not_have_are_null(self):
        got = metrics([True, False], options={"option_accuracy": []}, **DRAW)
        lacking = ("forced_exact_match", "token_accuracy", "nll", "option_accuracy")
        assert [getattr(got, key) for key in lacking] == [None] * 4

    def test_an_infinite_nll_is_null_so_that_the_results_stay_json(self):
        got = metrics([True, True], n_tokens=[1, 1], nll_sum=[0.1, np.inf], **DRAW)
        assert got.nll is None
        json.dumps(got.model_dump(mode="json"), allow_nan=False)

    def test_an_empty_split_is_refused(self):
        with pytest.raises(DataError, match="at least one example"):
            metrics([], **DRAW)

    def test_arrays_of_other_examples_are_refused(self):
        with pytest.raises(DataError, match=r"token_correct has shape \(3,\), expected one value for each of the 2"):
            metrics([True, True], token_correct=[1, 1, 1], n_tokens=[1, 1], **DRAW)


class TestPgr:
    def test_is_the_share_of_the_gap_with_both_differences(self):
        got = pgr(outcomes(200, 1000), outcomes(500, 1000), outcomes(800, 1000), **DRAW)
        assert got.value == pytest.approx(0.5)
        assert got.reason is None
        assert got.ci95[0] < 0.5 < got.ci95[1]
        assert got.student_minus_weak.difference == pytest.approx(0.3)
        assert got.ceiling_minus_weak.difference == pytest.approx(0.6)
        half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
        assert got.student_minus_weak.ci95 == pytest.approx([0.3 - half, 0.3 + half], abs=0.004)
        json.dumps(got.model_dump(mode="json"), allow_nan=False)

    @pytest.mark.parametrize("ceiling", [400, 300])
    def test_is_null_with_the_reason_where_the_ceiling_is_not_above_the_weak(self, ceiling):
        got = pgr(outcomes(400, 1000), outcomes(500, 1000), outcomes(ceiling, 1000), **DRAW)
        assert got.value is None
        assert got.ci95 is None
        assert got.reason == (
            f"the ceiling ({ceiling / 1000:.3f}) is not above the weak expert (0.400), so there is no gap to recover"
        )
        assert got.student_minus_weak.difference == pytest.approx(0.1)
        assert got.ceiling_minus_weak.difference == pytest.approx((ceiling - 400) / 1000)

    def test_has_no_interval_where_the_gap_may_as_well_be_none(self):
        weak = np.array([True, False] * 50)
        ceiling = ~weak
        ceiling[0] = True
        got = pgr(weak, weak, ceiling, **DRAW)
        assert got.value == 0
        assert got.ci95 is None
        assert got.ceiling_minus_weak.ci95[0] < 0

    def test_is_negative_for_a_student_below_its_teacher(self):
        got = pgr(outcomes(400, 1000), outcomes(300, 1000), outcomes(600, 1000), **DRAW)
        assert got.value == pytest.approx(-0.5)


class TestAgreementBins:
    def test_hold_their_lower_edge_and_the_last_one_its_upper(self):
        got = agreement_bins([0.0, 0.49, 0.5, 0.99, 1.0], [False, True, True, False, True], bins=2)
        assert got == (
            AgreementBin(lo=0.0, hi=0.5, n=2, accuracy=0.5),
            AgreementBin(lo=0.5, hi=1.0, n=3, accuracy=2 / 3),
        )

    def test_empty_bins_stay_with_no_accuracy(self):
        got = agreement_bins([1.0], [True])
        assert len(got) == 10
        assert [b.n for b in got] == [0] * 9 + [1]
        assert got[0].accuracy is None

    def test_a_vote_that_rounds_to_a_little_more_than_all_is_unanimous(self):
        assert agreement_bins([0.1 + 0.2 + 0.7 + 1e-9, 0.1 * 3], [True, True])[9].n == 1
        assert agreement_bins([0.7 - 1e-12], [True])[7].n == 1

    def test_no_labels_give_empty_bins(self):
        assert sum(b.n for b in agreement_bins([], [])) == 0

    def test_agreement_outside_0_to_1_is_refused(self):
        with pytest.raises(DataError, match=r"in \[0, 1\], found -0.2 to 0.5"):
            agreement_bins([-0.2, 0.5], [True, True])


class TestMajorityVote:
    def test_counts_weights_not_heads(self):
        got = majority_vote([["a", "x"], ["b", " x"], ["b", "y"]], [3.0, 1.0, 1.0])
        assert got == [("a", pytest.approx(0.6)), ("x", pytest.approx(0.8))]

    def test_a_tie_goes_to_the_answer_of_the_heaviest_member(self):
        assert majority_vote([["a"], ["b"], ["a"]], [1.0, 2.0, 1.0]) == [("b", 0.5)]

    def test_a_tie_of_equal_members_goes_to_the_first(self):
        assert majority_vote([["a"], ["b"]], [1.0, 1.0]) == [("a", 0.5)]

    def test_sums_that_differ_by_rounding_are_tied(self):
        # 0.1 + 0.2 > 0.3 in floating point; the heaviest member is the one with 0.3.
        assert majority_vote([["a"], ["a"], ["b"]], [0.1, 0.2, 0.3])[0][0] == "b"

    def test_an_empty_answer_is_an_answer(self):
        assert majority_vote([[""], [" "], ["a"]], [1.0, 1.0, 1.5]) == [("", pytest.approx(2 / 3.5))]

    @pytest.mark.parametrize(
        ("answers", "weights", "message"),
        [
            ([["a"]], [1.0, 2.0], "1 members answered but 2 weights"),
            ([["a"], ["b"]], [0.0, 0.0], "one must be positive"),
            ([["a"], ["b"]], [2.0, -1.0], "must not be negative"),
            ([["a"], ["b", "c"]], [1.0, 1.0], r"different numbers of prompts: \[1, 2\]"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, answers, weights, message):
        with pytest.raises(DataError, match=message):
            majority_vote(answers, weights)


def test_a_verdict_from_few_examples_is_none():
    assert verdict(0.1, 0.3, n=49) == verdict(-0.3, -0.1, n=49) == "too few to tell"
    assert verdict(0.1, 0.3, n=50) == "better"


@pytest.mark.parametrize(
    ("figures", "said"),
    [([(0.9, 1.0), (0.9, 0.99)], "saturated"), ([(0.0, 0.0)] * 2, "saturated"), ([(0.1, 0.9)] * 2, "no difference")],
)
def test_no_difference_at_an_end_of_the_scale_is_saturation(figures, said):
    assert verdict(-0.1, 0.1, n=100, figures=figures) == said
    assert verdict(0.1, 0.2, n=100, figures=figures) == "better"


def test_answers_are_compared_by_their_key():
    key = answer_key("numeric")
    assert exact_match(["1,000", "7"], ["1000.0", "8"], key).tolist() == [True, False]
    [(answer, share)] = majority_vote([["8"], ["1,000"], ["1000"]], [3.0, 2.0, 2.0], key)
    assert (answer, share) == ("1,000", pytest.approx(4 / 7))
