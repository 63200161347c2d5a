import pytest

from ensemw2s.config import FunctionMatch, RegexMatch
from ensemw2s.data.answers import answer_key
from ensemw2s.errors import ConfigError


def same(match, one, other):
    key = answer_key(match)
    return key(one) == key(other)


def test_exact_compares_the_text_without_white_space_at_its_ends():
    assert same("exact", " 1000\n", "1000")
    assert not same("exact", "1,000", "1000")
    assert not same("exact", "A", "a")


@pytest.mark.parametrize("spelt", ["1,000", "1000", "1000.0", "$1000", "1000 km", "1e3", "+1000."])
def test_numeric_compares_the_number(spelt):
    assert same("numeric", spelt, "1000")


@pytest.mark.parametrize(
    ("one", "other"),
    [("1000", "-1000"), ("1/2", "0.5"), ("3 or 4", "3"), ("x", "y"), ("1,00", "100"), ("10", "1")],
)
def test_numeric_tells_other_answers_apart(one, other):
    assert not same("numeric", one, other)


def test_numeric_knows_the_minus_of_a_typesetter_and_leaves_other_text_alone():
    assert same("numeric", "\u22125", "-5")
    assert same("numeric", " yes ", "yes")


def test_the_last_match_of_a_pattern_counts_as_a_number_if_it_is_one():
    gsm8k = RegexMatch(pattern=r"#### (.*)")
    assert same(gsm8k, "first #### 3\nthen #### 1,000", "#### 1000")
    assert same(gsm8k, "no mark", "no mark")
    assert same(gsm8k, "#### 72", "72")
    assert same(RegexMatch(pattern=r"\\boxed\{([^{}]*)\}"), r"so \boxed{3}, or rather \boxed{x+1}", r"\boxed{x+1}")
    assert same(RegexMatch(pattern="[A-D]"), "The answer is A. No: C", "C")


def test_a_function_says_what_is_compared(tmp_path, monkeypatch):
    (tmp_path / "own_match.py").write_text("def letters(text):\n    return ''.join(sorted(text))\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert same(FunctionMatch(name="own_match.letters"), "abc", "cab")


@pytest.mark.parametrize("name", ["no_such_module_here.f", "json.no_such_function"])
def test_a_function_that_is_not_there_is_an_error(name):
    with pytest.raises(ConfigError, match=f"data.answer_match: {name} cannot be imported"):
        answer_key(FunctionMatch(name=name))
