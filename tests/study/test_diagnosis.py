import numpy as np
import pyarrow as pa
import pytest

from ensemw2s.pipeline.answers import FORCED_SCHEMA
from ensemw2s.study.diagnosis import diagnose, of_answers, of_table
from ensemw2s.study.row import WrongAnswers

TRUTH = [[1, 2], [3, 4]]


def test_figures_of_two_members_by_hand() -> None:
    """Errors 1 0 0 1 and 1 1 0 0: together wrong at the first token only, and there with the same one."""
    members = [[[9, 2], [9, 7]], [[3, 8], [3, 4]]]  # of each example the tokens of both members
    found = diagnose(TRUTH, members)
    assert found.both_wrong == 0.25
    assert found.same_wrong == 1.0
    assert found.all_same_wrong == 0.25
    assert found.member_token_accuracy == 0.5
    assert found.member_exact_match == 0.25  # of four answers of a member the second one of the second
    assert found.error_correlation == pytest.approx(np.corrcoef([1, 0, 0, 1], [1, 1, 0, 0])[0, 1])


def test_agreement_counts_on_the_same_wrong_token_only() -> None:
    found = diagnose([[1, 2]], [[[5, 6], [5, 7]]])
    assert found.both_wrong == 1.0
    assert found.same_wrong == 0.5
    assert found.error_correlation is None, "who is always wrong has no spread"


def test_members_without_errors_agree_on_none() -> None:
    found = diagnose(TRUTH, [[[1, 2], [1, 2]], [[3, 4], [3, 4]]])
    assert (found.same_wrong, found.error_correlation) == (None, None)
    assert (found.member_exact_match, found.all_same_wrong) == (1.0, 0.0)


def test_correlation_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 5, 300)
    said = [np.where(rng.random(300) < 0.3, truth + 1 + rng.integers(0, 3, 300), truth) for _ in range(4)]
    found = diagnose([truth.tolist()], [[s.tolist() for s in said]])
    table = np.corrcoef([s != truth for s in said])
    assert found.error_correlation == pytest.approx(table[np.triu_indices(4, 1)].mean())


def test_voters_and_splits_of_a_run_are_kept_apart() -> None:
    own = {"split": "id", "voter": "bagging", "id": "a", "answer_ids": [1], "member_ids": [[1], [2]]}
    table = pa.Table.from_pylist([own, own | {"split": "ood", "member_ids": [[1], [1]]}], schema=FORCED_SCHEMA)
    found = of_table(table)
    assert found["bagging", "id"].member_token_accuracy == 0.5
    assert found["bagging", "ood"].member_token_accuracy == 1.0
    assert of_table(FORCED_SCHEMA.empty_table()) == {}


def answers(**given: str) -> pa.Table:
    """Answers of a character each to four prompts whose truths are 1 2 3 4."""
    return pa.Table.from_pylist(
        [
            {"split": "id", "voter": voter.replace("_", ":"), "id": str(i), "answer": f" {answer}", "truth": truth}
            for voter, said in given.items()
            for i, (answer, truth) in enumerate(zip(said, "1234", strict=True))
        ]
    )


def test_agreement_on_wrong_answers_by_hand() -> None:
    """Pairs are wrong together 3, 2 and 2 times, and say the same 2, 2 and 1 times; the first prompt unites all."""
    found = of_answers(answers(expert_a="9xx4", expert_b="9xz4", expert_c="92x4", bagging="9999"))
    assert found == {"id": WrongAnswers(same_wrong_answer=5 / 7, all_same_wrong_answer=1 / 4)}


def test_one_expert_agrees_with_nobody() -> None:
    assert of_answers(answers(expert_a="9234", bagging="9234")) == {}
    assert of_answers(answers(expert_a="1234", expert_b="1234"))["id"].same_wrong_answer is None
