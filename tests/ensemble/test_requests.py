import numpy as np
import pytest

from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.requests import Request, as_tokens, check_request, member_weights
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.errors import ConfigError, DataError, ModelError


@pytest.fixture(scope="module")
def model(experts) -> EnsembleForCausalLM:
    return EnsembleForCausalLM(experts, [1.0, 2.0, 1.5], names=["first", "second", "third"])


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (Request([], 5), DataError, "row 3 is empty; expected at least one token"),
        (Request([5, -1], 5), DataError, "row 3 has token -1, outside the vocabulary of 64; was it tokenized with"),
        (Request([64, 5], 5), DataError, "row 3 has token 64, outside"),
        (
            Request([5] * 60, 5),
            ModelError,
            "row 3 has 60 tokens, which with 5 new tokens is more than the model's context of 64; shorten it",
        ),
        (Request([5], 0), ConfigError, "max_new_tokens is 0; expected at least 1"),
        (Request([5], 5, seed=-1), ConfigError, "seed is -1; expected a number of at least 0"),
        (Request([5], 5, votes=65), ConfigError, r"votes is 65; expected 0 to 64"),
        (Request([5], 5, distributions=-1), ConfigError, "distributions is -1; expected 0 to 64"),
        (Request([5], 5, stop=("x", "")), ConfigError, "stop has an empty string, which every answer begins with"),
        (
            Request([5], 5, weights={"first": 1.0, "fourth": 2.0}),
            ModelError,
            "weights name 'fourth', which is no expert here; available: first, second, third",
        ),
        (Request([5], 5, weights={"first": -1.0}), ModelError, "expected numbers of at least 0, not -1"),
        (Request([5], 5, weights={"first": float("nan")}), ModelError, "expected numbers of at least 0, not nan"),
        (Request([5], 5, weights={"first": 0.0}), ModelError, "no member has a positive weight"),
        (Request([5], 5, weights={}), ModelError, "no member has a positive weight"),
        (Request([5], 5, weights={"first": "much"}), ModelError, "expected a number for each expert"),
    ],
)
def test_what_cannot_be_decoded_is_refused_with_the_reason(model, request_, error, message):
    with pytest.raises(error, match=message):
        check_request(model, request_, True, "row 3")


def test_stop_strings_are_refused_without_a_tokenizer(model):
    request = Request([5], 5, stop=("x",))
    check_request(model, request, True)
    with pytest.raises(ConfigError, match="stop strings need a tokenizer; give the engine one"):
        check_request(model, request, False)


def test_what_just_fits_is_taken(model):
    check_request(model, Request([0, 63] * 29 + [5], 5, votes=64, distributions=64, seed=0), False)


def test_weights_by_name_are_divided_by_their_sum_and_come_in_the_members_order(model):
    assert member_weights(model, {"third": 3.0, "first": 1.0}) == [0.25, 0.0, 0.75]


def test_a_request_is_greedy_and_ends_at_its_length_unless_it_says_otherwise():
    request = Request([5], 5)
    assert request.sampling == Sampling()
    assert request.sampling.greedy
    assert (request.eos_ids, request.stop, request.weights, request.votes, request.distributions) == (
        (),
        (),
        None,
        0,
        0,
    )


def test_tokens_may_be_lists_or_arrays():
    for row in ([1, 2], (1, 2), np.array([1, 2], np.int32), np.array([[1, 2]])):
        assert (as_tokens(row).tolist(), as_tokens(row).dtype) == ([1, 2], np.int64)


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        (Request("12", 4), DataError, "not token ids"),
        (Request([5.7, 6.2], 4), DataError, "not token ids but float64"),
        (Request([5], 4, eos_ids=2), ConfigError, "eos_ids is 2; expected a tuple of token ids"),
        (Request([5], 4, stop="END"), ConfigError, "stop is 'END'; expected a tuple of strings"),
        (Request([5], 4, seed=1.5), ConfigError, "seed is 1.5; expected a whole number"),
        (Request([5], 4, distributions=1.5), ConfigError, "distributions is 1.5; expected a whole number"),
    ],
)
def test_options_of_another_type_are_refused_before_they_share_a_batch(experts, request_, error, message):
    with pytest.raises(error, match=message):
        check_request(EnsembleForCausalLM(experts[:1], [1.0]), request_, True)
