"""The gate and the choice of answers: what easy validation allows, and no more than asked for."""

import numpy as np
import pytest

from ensemw2s.boosting.consensus import ALONE, PassRecord, gate, keep, knows
from ensemw2s.errors import ArtifactError

SURE = [1.0] * 10 + [0.5] * 10


def test_the_threshold_is_the_lowest_agreement_at_which_enough_answers_are_right() -> None:
    agreement = [1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.5, 0.5]
    right = [True, True, True, True, True, False, False, False]
    found = gate(agreement * 10, right * 10, 0.95)
    assert (found.best, found.needed, found.threshold, found.precision) == (1.0, 0.95, 0.9, 1.0)
    assert gate(agreement * 30, right * 30, 0.8).threshold == 0.8  # 5 of 6


def test_a_dip_between_does_not_hide_a_lower_threshold() -> None:
    agreement = [1.0] * 10 + [0.9] * 2 + [0.8] * 28
    right = [True] * 10 + [False] * 2 + [True] * 28
    found = gate(agreement, right, 0.95)
    assert (found.threshold, found.precision) == (0.8, 0.95)


def test_precision_is_held_against_what_the_most_agreed_answers_reach() -> None:
    # 90 % of the surest are right: 95 % can never be reached, and agreement tells right from wrong all the same
    right = [True] * 9 + [False] + [False] * 10
    found = gate(SURE * 10, right * 10, 0.95)
    assert found.best == 0.9
    assert found.needed == pytest.approx(0.855)
    assert found.threshold == 1.0


def test_where_even_the_most_agreed_answers_are_often_wrong_nothing_passes() -> None:
    right = [True] * 7 + [False] * 3 + [False] * 10
    found = gate(SURE, right, 0.5)
    assert (found.best, found.needed, found.threshold) == (0.7, 0.75, None)
    assert gate([], [], 0.9).threshold is None


def test_a_few_answers_that_are_all_right_are_no_proof() -> None:
    assert gate([1.0] * 8, [True] * 8, 0.95).threshold is None
    assert gate([1.0] * 9, [True] * 9, 0.95).threshold == 1.0
    assert gate([1.0] * 15, [True] * 15, 0.95, ALONE).threshold is None
    assert gate([1.0] * 25, [True] * 25, 0.95, ALONE).threshold == 1.0


def test_without_a_precision_everything_passes() -> None:
    assert gate([0.5] * 4, [False] * 4, 0.0).threshold == 0.0
    assert gate([], [], 0.0).threshold == 0.0


def test_bases_know_something_from_a_tenth_of_the_members_accuracy() -> None:
    assert knows(0.1, 0.9)
    assert not knows(0.05, 0.9)
    assert not knows(0.0, 0.0)


def test_of_what_passes_the_best_fraction_of_all_prompts_is_kept() -> None:
    agreement = [0.9, 1.0, 0.2, 0.95, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9]
    chosen = keep(agreement, [True] * 10, 0.9, 0.3)
    assert chosen.passing == 9
    assert chosen.places.tolist() == [1, 3, 4]
    assert keep(agreement, [True] * 10, 0.9, 0.4).places.tolist() == [0, 1, 3, 4]  # of equals the earlier one
    assert keep(agreement, [True] * 10, 0.95, 1.0).places.tolist() == [1, 3, 4]


def test_answers_that_cannot_be_used_do_not_count() -> None:
    usable = [False, True, True, False] + [True] * 6
    assert keep([1.0] * 10, usable, 0.9, 0.2).places.tolist() == [1, 2]


def test_fewer_than_a_tenth_of_the_prompts_is_no_pass() -> None:
    agreement = np.where(np.arange(40) < 4, 1.0, 0.1).tolist()
    assert len(keep(agreement, [True] * 40, 0.9, 0.5).places) == 4
    few = keep(agreement, [False, *[True] * 39], 0.9, 0.5)
    assert (few.passing, len(few.places)) == (3, 0)
    assert len(keep([1.0] * 10, [True] * 10, None, 0.5).places) == 0


def test_a_record_is_read_back_and_damage_is_named(tmp_path) -> None:
    record = PassRecord(
        number=1, anchor=0.5, agreement="token", validation=300, accuracy=0.9, best=0.98, needed=0.93, threshold=None,
        precision=None, prompts=2000, passing=100, kept=0,
    )  # fmt: skip
    record.write(tmp_path)
    assert PassRecord.read(tmp_path) == record
    assert not record.took_place
    (tmp_path / "pass.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"pass\.json is damaged"):
        PassRecord.read(tmp_path)
