"""The boosting maths against hand-computed cases and scikit-learn's SAMME."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.boosting import samme
from ensemw2s.errors import BoostingError


def mask(*bits: int) -> np.ndarray:
    return np.array(bits, dtype=bool)


def test_first_round_weights_are_uniform():
    assert samme.weights([], [], n=4).tolist() == [0.25] * 4


def test_a_wrong_token_weighs_exp_alpha_times_a_right_one():
    w = samme.weights([mask(1, 0, 0)], [math.log(4)], n=3)
    np.testing.assert_allclose(w, [4 / 6, 1 / 6, 1 / 6])


def test_weights_of_two_rounds_multiply():
    w = samme.weights([mask(1, 1, 0, 0), mask(1, 0, 1, 0)], [math.log(2), math.log(3)], n=4)
    np.testing.assert_allclose(w, np.array([6, 2, 3, 1]) / 12)


def test_shrinkage_damps_the_exponent():
    w = samme.weights([mask(1, 0)], [math.log(16)], n=2, shrinkage=0.5)
    np.testing.assert_allclose(w, [4 / 5, 1 / 5])


def test_huge_alphas_do_not_overflow():
    w = samme.weights([mask(1, 0)] * 500, [13.8] * 500, n=2)
    np.testing.assert_allclose(w, [1.0, 0.0], atol=1e-300)


def test_clip_caps_a_weight_and_spreads_the_rest_in_proportion():
    w = samme.weights([mask(1, 0, 0, 0)], [math.log(97)], n=4, clip=2.0)  # unclipped: 97, 1, 1, 1 of 100
    np.testing.assert_allclose(w, [0.5, 1 / 6, 1 / 6, 1 / 6])


@given(
    st.lists(st.lists(st.booleans(), min_size=12, max_size=12), max_size=5),
    st.floats(0.1, 9.0),
    st.floats(1.05, 12.0),
)
def test_weights_sum_to_one_and_stay_under_the_clip(masks, alpha, clip):
    w = samme.weights([np.array(m) for m in masks], [alpha] * len(masks), n=12, clip=clip)
    assert w.sum() == pytest.approx(1.0)
    assert (w >= 0).all()
    assert w.max() <= clip / 12 * (1 + 1e-9)


def test_weights_refuse_a_mask_of_another_length():
    with pytest.raises(BoostingError, match=r"round 1 has shape \(2,\), expected \(3,\)"):
        samme.weights([mask(1, 0)], [1.0], n=3)


def test_weights_refuse_an_alpha_that_is_not_finite():
    with pytest.raises(BoostingError, match="alpha of round 2 is nan"):
        samme.weights([mask(1, 0)] * 2, [1.0, math.nan], n=2)


def test_alpha_is_zero_for_a_coin_flip():
    assert samme.alpha(0.5) == 0.0


def test_alpha_of_a_perfect_and_of_a_hopeless_expert_is_finite_and_opposite():
    assert samme.alpha(0.0) == pytest.approx(math.log((1 - 1e-6) / 1e-6))
    assert samme.alpha(1.0) == pytest.approx(-samme.alpha(0.0))


def test_samme_prior_gives_a_uniform_guesser_nothing():
    assert samme.alpha(1 - 1 / 50, prior="samme", classes=50) == pytest.approx(0.0, abs=1e-12)


def test_pretrained_prior_gives_an_expert_as_good_as_its_base_nothing():
    assert samme.alpha(0.3, prior="pretrained", reference=0.3) == pytest.approx(0.0, abs=1e-12)


def test_pretrained_prior_makes_an_expert_worse_than_its_base_negative():
    assert samme.alpha(0.4, prior="pretrained", reference=0.3) < 0


@pytest.mark.parametrize("error", [math.nan, -0.1, 1.1, math.inf])
def test_alpha_refuses_what_is_no_error_rate(error):
    with pytest.raises(BoostingError, match="expected a number in"):
        samme.alpha(error)


def test_priors_ask_for_what_they_need():
    with pytest.raises(BoostingError, match="vocabulary"):
        samme.alpha(0.1, prior="samme")
    with pytest.raises(BoostingError, match="base model"):
        samme.alpha(0.1, prior="pretrained")


def test_units_of_windows_never_cross_examples():
    assert samme.unit_ids([5, 2], "window", 2).tolist() == [0, 0, 1, 1, 2, 3, 3]


def test_units_of_examples_skip_empty_answers_without_gaps():
    assert samme.unit_ids([2, 0, 1], "example").tolist() == [0, 0, 1]


def test_units_of_windows_skip_empty_answers_without_gaps():
    assert samme.unit_ids([3, 0, 1], "window", 2).tolist() == [0, 0, 1, 2]


def test_a_unit_is_wrong_if_any_token_in_it_is():
    assert samme.unit_errors(mask(0, 1, 0, 0), np.array([0, 0, 1, 2])).tolist() == [True, False, False]


def test_uniform_weights_multiply_every_token_by_one():
    units = samme.unit_ids([3, 2], "example")
    np.testing.assert_allclose(samme.multipliers(samme.weights([], [], n=2), units), np.ones(5))


def test_bootstrap_draws_in_proportion_and_repeats_with_its_seed():
    w, units = np.array([0.7, 0.2, 0.1, 0.0]), np.arange(4)
    draws = np.mean([samme.bootstrap_multipliers(w, units, seed=s, variant="count") for s in range(4000)], axis=0)
    np.testing.assert_allclose(draws, 4 * w, atol=0.05)
    again = [samme.bootstrap_multipliers(w, units, seed=7, variant="count") for _ in range(2)]
    np.testing.assert_array_equal(*again)
    assert again[0].sum() == 4


def test_bootstrap_mask_is_one_where_drawn_at_all():
    w = np.full(50, 1 / 50)
    counts = samme.bootstrap_multipliers(w, np.arange(50), seed=1, variant="count")
    np.testing.assert_array_equal(
        samme.bootstrap_multipliers(w, np.arange(50), seed=1, variant="mask"), (counts > 0).astype(float)
    )
    assert counts.max() > 1


def test_committee_follows_the_weighted_majority_and_ties_go_to_the_lowest_id():
    predictions = np.array([[3, 9, 5], [7, 9, 2], [7, 1, 9]])
    assert samme.committee_vote(predictions, [3.0, 1.0, 1.5]).tolist() == [3, 9, 5]
    assert samme.committee_vote(predictions, [1.0, 1.0, 1.0]).tolist() == [7, 9, 2]


def test_committee_of_one_is_that_expert_even_without_a_vote():
    assert samme.committee_vote(np.array([[4, 2]]), [-1.0]).tolist() == [4, 2]


def test_committee_ignores_members_with_no_vote():
    assert samme.committee_vote(np.array([[1], [2], [2]]), [0.5, -4.0, -4.0]).tolist() == [1]


def test_member_alphas_share_the_rounds_alpha():
    np.testing.assert_allclose(samme.member_alphas(2.0, [1.0, 3.0, -1.0]), [0.5, 1.5, 0.0])
    assert samme.member_alphas(-0.5, [1.0, 2.0]) == [0.0, 0.0]
    assert samme.member_alphas(1.7, [0.4]) == pytest.approx([1.7])


def test_vote_weights_drop_members_without_a_positive_alpha():
    np.testing.assert_allclose(samme.vote_weights([3.0, -1.0, 1.0, 0.0]), [0.75, 0.0, 0.25, 0.0])
    with pytest.raises(BoostingError, match="no expert has a positive alpha"):
        samme.vote_weights([-1.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize("shrinkage", [1.0, 0.3])
def test_errors_alphas_and_weights_are_those_of_scikit_learn(shrinkage):
    """sklearn's learning rate damps alpha itself, as our shrinkage damps alpha in the weights."""
    from sklearn.datasets import make_classification
    from sklearn.ensemble import AdaBoostClassifier
    from sklearn.tree import DecisionTreeClassifier

    x, y = make_classification(600, n_features=8, n_informative=5, n_classes=4, random_state=0)
    classes = 4
    theirs = AdaBoostClassifier(
        DecisionTreeClassifier(max_depth=2), n_estimators=6, learning_rate=shrinkage, random_state=0
    ).fit(x, y)
    assert len(theirs.estimators_) == 6
    masks: list[np.ndarray] = []
    alphas: list[float] = []
    for t, expert in enumerate(theirs.estimators_):
        w = samme.weights(masks, alphas, n=len(y), shrinkage=shrinkage)
        wrong = expert.predict(x) != y
        error = samme.weighted_error(w, wrong)
        alpha = samme.alpha(error, prior="samme", classes=classes)
        assert error == pytest.approx(theirs.estimator_errors_[t])
        assert shrinkage * alpha == pytest.approx(theirs.estimator_weights_[t])
        masks.append(wrong)
        alphas.append(alpha)
