"""Which labels a student learns from: agreement of two judges decides, and no true answer."""

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest

from ensemw2s.config import StudentConfig
from ensemw2s.data.answers import answer_key
from ensemw2s.labeling.choice import LEAST_AGREED, Choice, choose, weight_of_others

Labels = Literal["all", "agreed", "unanimous", "own", "auto"]


def judged(*answers: str, **columns: list[Any]) -> pa.Table:
    n = len(answers)
    usual: dict[str, list[Any]] = {
        "id": [f"p{i}" for i in range(n)],
        "answer": list(answers),
        "finish_reason": ["stop"] * n,
        "agreement": [1.0] * n,
        "token_agreement": [[1.0, 1.0]] * n,
    }
    return pa.table(usual | columns)


def chosen(labels: Labels, made: pa.Table, own: pa.Table | None, **more: Any) -> dict[str, tuple[str, float]]:
    """Id → answer and weight of the labels that are kept."""
    found = choose(made, own, StudentConfig(labels=labels, **more))
    rows = found.for_results().to_pylist()
    assert len(rows) == found.choice.kept
    return {row["id"]: (row["answer"], row["weight"]) for row in rows}


def test_all_labels_count_the_same_and_nobody_is_asked() -> None:
    made = judged("1", "2")
    assert chosen("all", made, None) == {"p0": ("1", 1.0), "p1": ("2", 1.0)}
    assert choose(made, None, StudentConfig()).choice == Choice(labels="all", prompts=2, kept=2)


def test_agreed_labels_are_those_that_both_give_by_id_whatever_their_order() -> None:
    made, own = judged("1", "2", "3"), judged("9", "2", "1", id=["p2", "p1", "p0"])
    assert chosen("agreed", made, own) == {"p0": ("1", 1.0), "p1": ("2", 1.0)}
    assert choose(made, own, StudentConfig(labels="agreed")).choice.agreed == 2


def test_judges_agree_on_answers_that_count_as_the_same() -> None:
    made, own = judged("1,000", "2"), judged("1000.0", "3")
    wanted = StudentConfig(labels="agreed")
    assert choose(made, own, wanted).choice.agreed == 0
    found = choose(made, own, wanted, answer_key("numeric"))
    assert found.labels["answer"].to_pylist() == ["1,000"]


@pytest.mark.parametrize(("answer", "reason"), [("", "stop"), ("1", "length")])
def test_answers_without_an_end_and_empty_ones_agree_with_nothing(answer: str, reason: str) -> None:
    odd, usual = judged(answer, finish_reason=[reason]), judged("1")
    for made, own in ((odd, usual), (usual, odd), (odd, odd)):
        assert chosen("agreed", made, own) == {}


def test_a_prompt_that_the_other_judge_could_not_answer_is_not_agreed() -> None:
    assert chosen("agreed", judged("1", "2"), judged("1")) == {"p0": ("1", 1.0)}


def test_unanimous_labels_have_all_votes_for_every_token_but_for_rounding() -> None:
    made = judged("1", "2", "3", token_agreement=[[1.0, 0.99], [np.float32(0.9999999), 1.0], [1.0, 1.0]])
    assert list(chosen("unanimous", made, None)) == ["p1", "p2"]


def test_own_labels_are_the_strong_models_answers() -> None:
    made, own = judged("1", "2"), judged("1", "5")
    assert chosen("own", made, own) == {"p0": ("1", 1.0), "p1": ("5", 1.0)}


def test_auto_lets_the_others_count_as_often_as_both_agree() -> None:
    made, own = judged("1", "2", "3", "4"), judged("1", "2", "x", "y")
    assert chosen("auto", made, own) == {"p0": ("1", 1.0), "p1": ("2", 1.0), "p2": ("3", 0.5), "p3": ("4", 0.5)}


def test_auto_keeps_no_label_where_both_seldom_agree() -> None:
    made, own = judged(*"123456"), judged(*"1yyyyy")
    assert chosen("auto", made, own) == {}
    assert choose(made, own, StudentConfig(labels="auto")).choice.easy_only
    assert not choose(made, own, StudentConfig(labels="agreed")).choice.easy_only
    assert weight_of_others(LEAST_AGREED) == LEAST_AGREED
    assert weight_of_others(LEAST_AGREED - 0.01) == 0


def test_auto_keeps_no_label_of_a_maker_that_is_the_other_judge() -> None:
    made = judged("1", "2")
    assert not choose(made, made, StudentConfig(labels="auto")).choice.easy_only
    found = choose(made, made, StudentConfig(labels="auto"), easy_only=True)
    assert (len(found.labels), found.choice.easy_only, found.choice.agreed) == (0, True, 2)


def test_what_is_chosen_must_pass_the_filter_besides() -> None:
    made, own = judged("1", "2", "3", agreement=[0.5, 0.9, 0.9]), judged("1", "2", "x")
    assert list(chosen("agreed", made, own, min_agreement=0.8)) == ["p1"]
    assert list(chosen("agreed", made, own, keep_fraction=0.5)) == ["p1"], "half of the agreed ones"


def test_no_prompt_at_all_is_no_label() -> None:
    none = judged()
    assert chosen("auto", none, none) == {}


def test_a_choice_is_read_back(tmp_path) -> None:
    choice = Choice(labels="auto", prompts=5, kept=4, weight=0.5, agreed=2)
    choice.write(tmp_path)
    assert Choice.read(tmp_path) == choice
