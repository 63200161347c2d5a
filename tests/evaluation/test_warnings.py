import pytest

from ensemw2s.evaluation import warnings
from ensemw2s.evaluation.records_labels import LabelResult


@pytest.mark.parametrize(("cut", "said"), [(5, False), (6, True), (100, True)])
def test_labels_of_which_more_than_a_twentieth_are_cut_are_warned_of(cut, said):
    found = warnings.of_labels("ensemw2s", {"stop": 100 - cut, "length": cut}, 16)
    assert [f"{cut}% of the labels of ensemw2s were cut at labeling.max_new_tokens (16)" in text for text in found] == (
        [True] if said else []
    )


def test_test_answers_that_are_cut_are_warned_of_with_the_worst_system():
    columns = {
        "id": {"a": {"cut": [False] * 20}, "b": {"cut": [True] + [False] * 9}},
        "ood": {"a": {"cut": [True, False]}, "b": {"cut": [False]}},
        "validation": {"a": {"n_tokens": [1]}},
    }
    [found] = warnings.of_run({"a": LabelResult(finish_reasons={"stop": 3})}, columns, [], 8)
    assert found.startswith("50% of the test answers of a (OOD) and 1 more were cut at labeling.max_new_tokens (8)")


def test_a_first_round_without_errors_says_that_the_easy_set_is_solved(older_rounds):
    first, second = older_rounds[:2]
    assert warnings.of_rounds(older_rounds) == []
    solved = first.model_copy(update={"weighted_error": 0.002})
    [found] = warnings.of_rounds([solved, second])
    assert found.startswith("The easy training set is solved: the first round's weighted error is 0.20%")
