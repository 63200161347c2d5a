"""The choice of an anchor: the largest sum of accuracy and agreement, and 1 where the bases know nothing."""

import pytest

from ensemw2s.boosting.anchors import ANCHORS, choose
from ensemw2s.boosting.records import AnchorPoint


def curve(accuracy: dict[float, float], agreement: dict[float, float]) -> list[AnchorPoint]:
    """Values at some λ; those between are of the next λ below."""

    def at(values: dict[float, float], anchor: float) -> float:
        return values[max(key for key in values if key <= anchor)]

    return [AnchorPoint(anchor=a, accuracy=at(accuracy, a), agreement=at(agreement, a)) for a in ANCHORS]


def chosen(accuracy: dict[float, float], agreement: dict[float, float]) -> float:
    return choose(curve(accuracy, agreement), easy=300, hard=500).anchor


def test_the_largest_sum_of_accuracy_and_agreement_is_chosen() -> None:
    assert chosen({0: 0.8, 0.5: 0.9, 1: 0.94}, {0: 0.95, 0.5: 0.9, 0.75: 0.8, 1: 0.7}) == 0.5 + 0.125
    assert chosen({0: 0.8, 1: 0.94}, {0: 0.6, 1: 0.7}) == 1


def test_of_equals_the_one_nearest_to_training_is_chosen() -> None:
    assert chosen({0: 0.9}, {0: 0.9}) == 1


def test_the_bases_themselves_are_never_chosen() -> None:
    assert chosen({0: 0.99, 0.125: 0.98}, {0: 1.0, 0.125: 0.9}) == 1


@pytest.mark.parametrize("known", [0.0, 0.05])
def test_where_the_bases_know_nothing_the_members_stay_as_they_were_trained(known: float) -> None:
    found = choose(curve({0: known, 0.125: 0.93, 1: 0.94}, {0: 1.0, 1: 0.7}), easy=300, hard=500)
    assert found.anchor == 1
    assert not found.bases_know


def test_no_agreement_makes_up_for_a_loss_of_a_twentieth_of_the_accuracy() -> None:
    # members of one base: the nearer to it, the more they agree
    assert chosen({0: 0.6, 0.75: 0.85, 0.875: 0.92, 1: 0.94}, {0: 1.0, 0.875: 0.8, 1: 0.6}) == 0.875


def test_where_nothing_is_right_the_anchor_is_1() -> None:
    assert chosen({0: 0.0}, {0: 1.0, 1: 0.2}) == 1
