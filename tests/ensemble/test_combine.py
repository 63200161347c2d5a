import numpy as np
import pytest
import torch

from ensemw2s.ensemble.combine import VOTE_FLOOR, agreement, combine, normalised_weights
from ensemw2s.errors import ModelError

WEIGHTS = [0.7, 2.0, 1.1]


@pytest.fixture
def log_probs() -> np.ndarray:
    """[3 members, 4, 5, 11 tokens]"""
    scores = np.random.default_rng(3).normal(size=(3, 4, 5, 11)) * 4
    return scores - log_sum(scores)


def log_sum(scores: np.ndarray) -> np.ndarray:
    return np.log(np.exp(scores).sum(-1, keepdims=True))


def shares() -> np.ndarray:
    return (np.array(WEIGHTS) / np.sum(WEIGHTS)).reshape(3, 1, 1, 1)


def combined(log_probs: np.ndarray, weights: list[float], rule: str) -> np.ndarray:
    result = combine(torch.from_numpy(log_probs).float(), weights, rule)
    assert result.dtype == torch.float32
    return result.numpy()


def test_probability_is_the_weighted_mean_of_probabilities(log_probs):
    expected = np.log((shares() * np.exp(log_probs)).sum(0))
    np.testing.assert_allclose(combined(log_probs, WEIGHTS, "probability"), expected, atol=1e-5)


def test_log_probability_is_the_normalised_weighted_mean_of_logs(log_probs):
    mean = (shares() * log_probs).sum(0)
    expected = mean - log_sum(mean)
    np.testing.assert_allclose(combined(log_probs, WEIGHTS, "log_probability"), expected, atol=1e-5)


def test_vote_is_the_weighted_share_of_the_members_choices(log_probs):
    votes = np.eye(11)[log_probs.argmax(-1)]
    expected = (shares() * votes).sum(0)
    actual = np.exp(combined(log_probs, WEIGHTS, "vote"))
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    np.testing.assert_array_equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("rule", ["probability", "log_probability", "vote"])
def test_the_combination_is_a_distribution(log_probs, rule):
    np.testing.assert_allclose(np.exp(combined(log_probs, WEIGHTS, rule)).sum(-1), 1, atol=1e-5)


def test_tokens_without_a_vote_keep_a_finite_loss():
    certain = torch.tensor([[0.0, -50.0, -50.0, -50.0]])
    result = combine(certain, [1.0], "vote")
    assert torch.isfinite(result).all()
    torch.testing.assert_close(result[1:].exp(), torch.full((3,), VOTE_FLOOR / 4))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.1, 0.1], [1 / 3, 1 / 3]])
def test_a_tied_vote_goes_to_the_lowest_id(weights):
    log_probs = torch.log_softmax(torch.tensor([[0.0, 0.0, 9.0, 0.0], [0.0, 9.0, 0.0, 0.0]]), -1)
    assert combine(log_probs, weights, "vote").argmax() == 1


def test_equal_shares_of_unequal_sums_are_a_tie():
    ids = [4, 4, 1]  # 0.1 + 0.2 against 0.3, which floating point takes for different numbers
    log_probs = torch.log_softmax(torch.eye(6)[ids] * 20, -1)
    assert combine(log_probs, [0.1, 0.2, 0.3], "vote").argmax() == 1


@pytest.mark.parametrize("rule", ["probability", "log_probability", "vote"])
def test_a_member_of_weight_zero_is_ignored_whatever_it_says(log_probs, rule):
    log_probs[1] = np.nan
    np.testing.assert_array_equal(
        combined(log_probs, [1.0, 0.0, 3.0], rule), combined(log_probs[[0, 2]], [1.0, 3.0], rule)
    )


@pytest.mark.parametrize("rule", ["probability", "log_probability"])
def test_one_member_alone_is_left_as_it_is(log_probs, rule):
    np.testing.assert_array_equal(combined(log_probs[:1], [0.3], rule), log_probs[0].astype(np.float32))


def test_impossible_tokens_stay_impossible_and_tiny_ones_do_not_underflow():
    log_probs = torch.tensor([[0.0, -200.0, -torch.inf], [0.0, -210.0, -torch.inf]])
    result = combine(log_probs, [1.0, 1.0], "probability")
    assert result[1].item() == pytest.approx(-200 + np.log(0.5 * (1 + np.exp(-10))), abs=1e-4)
    assert result[2] == -torch.inf
    assert not torch.isnan(combine(log_probs, [1.0, 1.0], "log_probability")).any()


def test_half_precision_is_combined_in_float32():
    log_probs = torch.log_softmax(torch.randn(2, 5, 9), -1).bfloat16()
    assert combine(log_probs, [1.0, 1.0], "probability").dtype == torch.float32


def test_agreement_is_the_weighted_share_of_members_that_chose_the_token():
    choices = torch.tensor([[1, 2, 3], [1, 5, 3], [4, 2, 3]])
    share = agreement(choices, torch.tensor([1, 2, 3]), [1.0, 2.0, 1.0])
    assert share.dtype == torch.float32
    torch.testing.assert_close(share, torch.tensor([0.75, 0.5, 1.0]))


def test_weights_are_divided_by_their_sum():
    assert normalised_weights([1, 3]) == [0.25, 0.75]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0, 0.0], "no member has a positive weight"),
        ([1.0, -0.5], r"not -0\.5"),
        ([1.0, float("nan")], "not nan"),
        ([float("inf"), 1.0], "not inf"),
    ],
)
def test_weights_that_cannot_vote_are_refused(weights, message):
    with pytest.raises(ModelError, match=message):
        normalised_weights(weights)


def test_a_wrong_number_of_weights_or_rule_is_refused(log_probs):
    with pytest.raises(ModelError, match="2 weights for 3 members"):
        combined(log_probs, [1.0, 1.0], "probability")
    with pytest.raises(ModelError, match="rule is 'mean', available: probability, log_probability, vote"):
        combined(log_probs, WEIGHTS, "mean")


@pytest.mark.parametrize("rule", ["probability", "log_probability"])
def test_weights_near_the_ends_of_what_numbers_can_be(rule):
    impossible = torch.tensor([[0.0, -torch.inf], [-0.7, -0.7]])
    equal = combine(impossible, [1e308, 1e308], rule)
    torch.testing.assert_close(equal, combine(impossible, [1.0, 1.0], rule), equal_nan=True)
    assert torch.equal(combine(impossible, [1e-300, 1.0], rule), impossible[1])
