import pytest
from pydantic import ValidationError

from ensemw2s.config.search import Parameter, SearchConfig


def mistakes(**values) -> str:
    with pytest.raises(ValidationError) as error:
        Parameter(**values)
    return str(error.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "needs one of log_uniform, uniform, integer, choice"),
        ({"uniform": [0, 1], "choice": [1]}, "not uniform and choice"),
        ({"uniform": [2, 1]}, "uniform is empty: 2 is more than 1"),
        ({"integer": [5, 4]}, "integer is empty"),
        ({"integer": [1.5, 4]}, "integer"),
        ({"log_uniform": [0, 1]}, "log_uniform begins at 0, which has no logarithm"),
        ({"choice": []}, "choice is empty"),
        ({"choice": ["a", "a"]}, "choice has a value twice"),
        ({"chioce": [1]}, "Extra inputs"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(values, said) -> None:
    assert said in mistakes(**values)


def test_one_and_true_are_different_choices() -> None:
    assert Parameter(choice=[1, True, None, "1"]).extremes == [1, True, None, "1"]


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ({"missing": 1}, "b.when.missing is no key of the space with a choice"),
        ({"range": 1}, "b.when.range is no key of the space with a choice"),
        ({"a": ["x", "z"]}, "b.when.a: 'z' is none of its choices"),
        ({"later": 1}, "b.when.later must stand before b"),
    ],
)
def test_conditions_name_choices_that_stand_before(when, said) -> None:
    space = {
        "a": {"choice": ["x", "y"]},
        "range": {"uniform": [0, 1]},
        "b": {"uniform": [0, 1], "when": when},
        "later": {"choice": [1, 2]},
    }
    with pytest.raises(ValidationError) as error:
        SearchConfig(space=space)
    assert said in str(error.value)


def test_a_condition_takes_one_value_or_several() -> None:
    assert Parameter(uniform=(0, 1), when={"a": "x", "b": [1, 2]}).conditions == {"a": ["x"], "b": [1, 2]}


def test_only_the_likelihood_is_minimised() -> None:
    space = {"expert.epochs": {"integer": [1, 2]}}
    assert [SearchConfig(space=space, metric=m).mode for m in ("exact_match", "token_accuracy", "nll")] == [
        "max",
        "max",
        "min",
    ]
