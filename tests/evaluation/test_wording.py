"""How numbers read, and which way round a comparison is told."""

import pytest

from ensemw2s.config import ALL_SYSTEMS
from ensemw2s.evaluation import wording
from ensemw2s.evaluation.records import Comparison, RunResults


def test_every_system_of_the_config_has_a_name_for_tables_and_one_for_sentences():
    for name in ALL_SYSTEMS:
        assert name not in (wording.label(name), wording.in_a_sentence(name))
    assert wording.label("generation_2") == "Students, generation 2", "who make labels and are no system"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "0.5", True, [0.1]])
def test_what_is_no_number_is_a_dash(value):
    for say in (wording.percent, wording.points, wording.plain, wording.amount, wording.count, wording.seconds):
        assert say(value) == "–"
    assert wording.percent_range([value, 0.2]) == wording.points_range(value) == "–"


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.percent(0.8046), "80.5 %"),
        (wording.points(0.1), "+10.0"),
        (wording.points(-0.0251), "−2.5"),
        (wording.points(-0.0001), "0.0"),
        (wording.percent_range([0.758, 0.809]), "75.8–80.9"),
        (wording.points_range((-0.02, 0.034)), "−2.0 to +3.4"),
        (wording.plain(-1.5), "−1.50"),
        (wording.count(1988), "1988"),
        (wording.amount(812), "812"),
        (wording.amount(74_000), "74 k"),
        (wording.amount(2_104_000), "2.1 M"),
        (wording.seconds(4.24), "4.2 s"),
        (wording.seconds(59.6), "1 min 00 s"),
        (wording.seconds(187), "3 min 07 s"),
        (wording.seconds(7530), "2 h 05 min"),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_read_as_in_print(said, expected):
    assert said.replace(wording.NBSP, " ") == expected


def test_a_comparison_stored_the_other_way_round_is_turned():
    entry = {
        "a": "bagging",
        "b": "ensemw2s",
        "split": "id",
        "difference": 0.02,
        "ci95": [0.01, 0.03],
        "verdict": "better",
    }
    got = wording.compared(RunResults(comparisons=(Comparison(**entry),)), "ensemw2s", "bagging", "id")
    assert got is not None
    assert (got.difference, got.ci95, got.verdict) == (-0.02, (-0.03, -0.01), "worse")


def test_a_verdict_that_contradicts_its_interval_is_not_repeated():
    entry = {
        "a": "ensemw2s",
        "b": "bagging",
        "split": "id",
        "difference": 0.02,
        "ci95": [-0.01, 0.05],
        "verdict": "better",
    }
    got = wording.compared(RunResults(comparisons=(Comparison(**entry),)), "ensemw2s", "bagging", "id")
    assert got is not None
    assert got.verdict == "no difference"


def test_a_comparison_without_an_interval_is_none():
    entry = {"a": "ensemw2s", "b": "bagging", "split": "id", "difference": 0.02, "ci95": None}
    assert wording.compared(RunResults(comparisons=(Comparison(**entry),)), "ensemw2s", "bagging", "id") is None
