import pytest

from ensemw2s.evaluation.records import RunResults
from ensemw2s.study import rows as study_rows
from ensemw2s.study.row import CommonErrors, StudyRow
from ensemw2s.study.rows import CHOSEN, chosen_rounds

METRICS = {"exact_match": 0.5, "forced_exact_match": 0.45, "token_accuracy": 0.8, "nll": 0.4, "option_accuracy": None}
METRICS |= {"ci95": [0.4, 0.6], "n": 10}
COST = {"tokens_trained": 100, "train_seconds": 1.0, "tokens_decoded": 30, "decode_seconds": 0.1}
BOTH = {"id": METRICS, "ood": {**METRICS, "exact_match": 0.25}}


def of_results(results: dict, together: dict, labelled: dict) -> list[StudyRow]:
    return study_rows.of_results(RunResults.model_validate(results), together, labelled)


@pytest.fixture
def results() -> dict:
    systems = {name: {**BOTH, "cost": COST} for name in ("bagging", "ensemw2s", "student_bagging", "student_easy_only")}
    systems["bagging"]["cost"] = {**COST, "tokens_trained": 300}
    difference = {"difference": 0.1, "ci95": [0.0, 0.2]}
    recovered = {"value": None, "reason": "no gap", "student_minus_weak": difference, "ceiling_minus_weak": difference}
    return {
        "systems": systems,
        "validation": dict.fromkeys(("bagging", "ensemw2s"), METRICS),
        "curves": {"rounds": [1, 3], "validation": [0.6, 0.6], "id": [0.4, 0.7], "ood": [0.3, 0.2]},
        "pgr": {"student_bagging": {"id": recovered, "ood": recovered}},
        "labels": {"bagging": {"accuracy": 0.7}},
    }


def find(rows: list[StudyRow], system: str, split: str) -> StudyRow:
    [row] = [row for row in rows if (row.system, row.split) == (system, split)]
    return row


@pytest.fixture
def rows(results) -> list[StudyRow]:
    together = {("bagging", "id"): CommonErrors(error_correlation=0.3)}
    return of_results(results, together, {"bagging": 77})


def test_a_row_for_each_system_and_split_and_validation_of_weak_ones(rows) -> None:
    assert sorted((row.system, row.split) for row in rows) == sorted(
        [(name, split) for name in ("bagging", "ensemw2s", CHOSEN) for split in ("id", "ood", "validation")]
        + [(name, split) for name in ("student_bagging", "student_easy_only") for split in ("id", "ood")]
    )
    assert find(rows, "bagging", "ood").exact_match == 0.25


def test_students_are_on_hard_validation_where_there_is_one(results) -> None:
    results["hard_validation"] = {"ensemw2s": METRICS, "student_bagging": {**METRICS, "exact_match": 0.3}}
    rows = of_results(results, {}, {"bagging": 77})
    assert find(rows, "student_bagging", "hard_validation").exact_match == 0.3
    assert [row.system for row in rows if row.split == "hard_validation"] == ["ensemw2s", "student_bagging"]


def test_the_fewest_rounds_that_are_best_on_validation_are_chosen_whatever_tests_say(rows) -> None:
    """One round and three are equal on validation; three test better on ID, one on OOD."""
    assert (find(rows, CHOSEN, "id").rounds, find(rows, CHOSEN, "id").exact_match) == (1, 0.4)
    assert find(rows, CHOSEN, "ood").exact_match == find(rows, CHOSEN, "ood").forced_exact_match == 0.3
    assert find(rows, "bagging", "ood").forced_exact_match == 0.45, "what it is compared with"
    assert find(rows, CHOSEN, "id").tokens_trained == COST["tokens_trained"], "all rounds were trained for it"
    assert chosen_rounds([0.1, 0.5, 0.4]) == 1


def test_a_student_costs_what_its_supervisors_cost_too(rows) -> None:
    student = find(rows, "student_bagging", "id")
    assert (student.tokens_trained, student.supervision_trained, student.tokens_labelled) == (100, 300, 77)
    assert student.label_accuracy == 0.7
    assert find(rows, "student_easy_only", "id").supervision_trained is None


def test_a_student_that_was_asked_for_its_labels_costs_that_too_and_its_labels_are_the_kept_ones(results) -> None:
    results["choices"] = {
        "student_bagging": {"labels": "agreed", "prompts": 10, "kept": 4, "agreed": 0.4, "accuracy": 0.9}
    }
    before = results["systems"]["student_easy_only"]["cost"]["tokens_trained"]
    labelled = {"bagging": 77, "student_easy_only": 3}
    student = find(of_results(results, {}, labelled), "student_bagging", "id")
    assert (student.supervision_trained, student.tokens_labelled) == (300 + before, 80)
    assert student.label_accuracy == 0.9


def test_the_student_of_the_last_generation_costs_what_all_before_it_cost_too(results) -> None:
    results["systems"]["student_generations"] = {**BOTH, "cost": COST}
    results["generations"] = [
        {"name": f"generation_{n}", "students": 3, "tokens_trained": 1000 * n, "train_seconds": 1.0} for n in (1, 2)
    ]
    results["labels"] |= {f"generation_{n}": {"accuracy": n / 10} for n in (1, 2)}
    labelled = {"bagging": 77, "ensemw2s": 5, "generation_1": 60, "generation_2": 700}
    student = find(of_results(results, {}, labelled), "student_generations", "ood")
    assert (student.tokens_trained, student.supervision_trained) == (100, 100 + 1000 + 2000)
    assert (student.tokens_labelled, student.label_accuracy) == (765, 0.2)


def test_an_undefined_pgr_stays_so_beside_its_differences(rows) -> None:
    found = find(rows, "student_bagging", "ood")
    assert (found.pgr, found.student_minus_weak) == (None, 0.1)


def test_curves_and_common_errors_stand_with_their_system(rows) -> None:
    ours = find(rows, "ensemw2s", "ood")
    assert (ours.rounds, ours.curve_rounds, ours.curve) == (3, (1, 3), (0.3, 0.2))
    assert find(rows, "bagging", "id").error_correlation == 0.3
    assert find(rows, "bagging", "ood").error_correlation is None
