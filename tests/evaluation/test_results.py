"""The figures of a run of four test examples, by hand."""

from typing import Any

import pyarrow as pa
import pytest

from ensemw2s.config import parse_config
from ensemw2s.config.systems import SYSTEMS_BEFORE as SYSTEMS
from ensemw2s.data.examples import example_table
from ensemw2s.evaluation import metrics
from ensemw2s.evaluation.records import Curves, SystemCost, TokenShown, TrainingCost
from ensemw2s.evaluation.records_labels import AgreementBin
from ensemw2s.evaluation.results import Figures, choice_result, label_result
from ensemw2s.labeling.choice import Choice

from ..boosting.conftest import member

MEMBERS = [member(1, 3.0), member(2, 0.0), member(3, 1.5), member(3, 1.0, 1)]
TRUTHS = ["1", "2", "3", "4"]


def rows(answers: str, *, options: list[str | None] | None = None, **columns: Any) -> dict[str, list]:
    """What one voter did: an answer (one character) an example, half of whose tokens are right."""
    n = len(answers)
    return {
        "answer": list(answers),
        "n_tokens": [2] * n,
        "token_correct": [1] * n,
        "nll": [0.5] * n,
        "forced": [answer == truth for answer, truth in zip(answers, TRUTHS, strict=True)],
        "option": options or [None] * n,
        "n_decoded": [3] * n,
        "agreement": [0.5] * n,
        "seconds": [0.25] * n,
        "tokens": [None] * n,
        **columns,
    }


def truths(choices: list[list[str] | None] | None = None) -> dict[str, pa.Table]:
    return {
        split: example_table(
            {"id": f"{split}-{i}", "prompt": f"p{i}", "answer": f" {t} ", "difficulty": 0.0, "choices": c}
            for i, (t, c) in enumerate(zip(TRUTHS, choices or [None] * 4, strict=True))
        )
        for split in ("id", "ood")
    }


VOTERS = {
    "base:a": rows("1xxx", n_tokens=[2] * 4, token_correct=[2, 0, 0, 0], nll=[1.0] * 4),
    "base:b": rows("12xx", n_tokens=[2] * 4, token_correct=[2, 2, 1, 1], nll=[2.0] * 4),
    "expert_single": rows("1xxx"),
    "expert_compute_matched": rows("12xx"),
    "bagging": rows("xxxx"),
    "expert:rounds/1/experts/0": rows("12yy"),
    "expert:rounds/3/experts/0": rows("x2zy"),
    "expert:rounds/3/experts/1": rows("x 3y"),
    "ensemw2s": rows("123x"),
    "student_easy_only": rows("xxxx"),
    "student_single": rows("1xxx"),
    "student_bagging": rows("1xxx"),
    "student_ensemw2s": rows("12xx"),
    "student_generations": rows("123x"),
    "student_ceiling": rows("123x"),
}


def figures(
    *systems: str, ood: dict[str, dict[str, list]] | None = None, tables: dict[str, pa.Table] | None = None, **more: Any
) -> Figures:
    config = parse_config(
        {
            "name": "study",
            "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
            "models": {"weak": [{"base": "tiny-weak", "name": n} for n in "ab"], "strong": {"base": "tiny-strong"}},
            "student": {"generations": 2 if "student_generations" in systems else 1},
            "evaluation": {"systems": list(systems or SYSTEMS), "bootstrap_samples": 100},
        }
    )
    columns = {"id": VOTERS, "ood": ood or VOTERS, **more}
    trained = {"ensemw2s": TrainingCost(tokens_trained=700, train_seconds=1.5)}
    return Figures(config, tables or truths(), columns, MEMBERS, trained)


def test_exact_match_of_every_system_white_space_aside():
    found = {name: facts.ood.exact_match for name, facts in figures().systems().items()}
    assert found == {
        "base_zero_shot": 3 / 8,  # the mean of a quarter and a half
        "expert_single": 1 / 4,
        "expert_compute_matched": 1 / 2,
        "bagging": 0.0,
        "sequence_vote": 1 / 2,
        "ensemw2s": 3 / 4,
        "student_easy_only": 0.0,
        "student_single": 1 / 4,
        "student_bagging": 1 / 4,
        "student_ensemw2s": 1 / 2,
        "student_ceiling": 3 / 4,
    }
    assert list(found) == list(SYSTEMS)


def test_the_ensemble_of_the_bases_has_figures_of_its_own_beside_their_mean():
    together = {**VOTERS, "base_ensemble": rows("123x")}
    made = figures("base_zero_shot", "base_ensemble", "ensemw2s", ood=together, id=together).systems()
    assert made["base_zero_shot"].ood.exact_match == 3 / 8
    assert made["base_ensemble"].ood.exact_match == 3 / 4
    assert made["base_ensemble"].cost.tokens_decoded == 24


def test_the_sequence_vote_counts_whole_answers_by_weight():
    # of weights 3, 1.5 and 1: "1" outweighs two times "x", "2" has 4.5, and nobody outweighs "y"
    assert figures().exact["sequence_vote"]["id"].tolist() == [True, True, False, False]
    facts = figures().systems()["sequence_vote"].id
    assert facts.exact_match == 1 / 2
    assert (facts.token_accuracy, facts.nll, facts.option_accuracy) == (None, None, None)


def test_bases_are_averaged_and_listed():
    made = figures()
    zero_shot = made.systems()["base_zero_shot"].id
    assert zero_shot.token_accuracy == pytest.approx((2 + 6) / 2 / 8)
    assert zero_shot.nll == pytest.approx(1.5 * 4 / 8)
    assert zero_shot.n == 4
    bases = made.bases()
    assert {name: facts.id.exact_match for name, facts in bases.items()} == {"a": 0.25, "b": 0.5}
    assert bases["b"].ood.token_accuracy == 6 / 8


def test_answers_can_be_right_that_are_spelled_otherwise_under_teacher_forcing():
    spelled = VOTERS | {"bagging": rows("123x", forced=[True, False, False, False])}
    systems = figures(ood=spelled).systems()
    assert (systems["bagging"].ood.exact_match, systems["bagging"].ood.forced_exact_match) == (0.75, 0.25)
    assert systems["base_zero_shot"].ood.forced_exact_match == 3 / 8
    assert systems["sequence_vote"].ood.forced_exact_match is None


def test_token_figures_are_a_token_and_intervals_hold_the_mean():
    facts = figures().systems()["ensemw2s"].ood
    assert (facts.token_accuracy, facts.nll) == (4 / 8, 2.0 / 8)
    lo, hi = facts.ci95
    assert 0 <= lo <= 0.75 <= hi <= 1
    assert lo < hi


def test_validation_figures_are_those_of_weak_systems_under_teacher_forcing():
    scored = {name: {k: v for k, v in VOTERS[name].items() if k != "answer"} for name in ("bagging", "ensemw2s")}
    tables = truths() | {"validation": truths()["id"]}
    found = figures(validation=scored, tables=tables).validation()
    assert {name: facts.exact_match for name, facts in found.items()} == {"bagging": 0.0, "ensemw2s": 3 / 4}
    assert found["ensemw2s"].token_accuracy == 4 / 8
    assert figures().validation() == {}


def test_students_are_judged_on_hard_validation_where_there_is_one():
    scored = {
        name: {k: v for k, v in VOTERS[name].items() if k != "answer"} for name in ("ensemw2s", "student_ensemw2s")
    }
    found = figures(hard_validation=scored, tables=truths() | {"hard_validation": truths()["ood"]})
    assert found.validation("hard_validation").keys() == {"ensemw2s", "student_ensemw2s"}
    assert found.validation() == {}


def test_splits_do_not_mix():
    worse = {name: rows("xxxx") for name in VOTERS}
    systems = figures(ood=worse).systems()
    assert {facts.ood.exact_match for facts in systems.values()} == {0.0}
    assert systems["ensemw2s"].id.exact_match == 0.75


def test_costs_are_of_both_splits_and_of_every_voter_behind_a_system():
    systems = figures().systems()
    assert systems["ensemw2s"].cost == SystemCost(
        tokens_trained=700, train_seconds=1.5, tokens_decoded=2 * 4 * 3, decode_seconds=2.0
    )
    assert systems["sequence_vote"].cost.tokens_decoded == 3 * 24  # three experts have a vote
    assert systems["base_zero_shot"].cost.tokens_decoded == 2 * 24
    assert systems["base_zero_shot"].cost.tokens_trained == 0


def test_the_gap_that_students_recover():
    found = figures().pgr()
    assert found.keys() == {"student_single", "student_bagging", "student_ensemw2s"}
    facts = found["student_ensemw2s"].ood
    assert facts.value == pytest.approx((0.5 - 0.25) / (0.75 - 0.25))
    assert facts.student_minus_weak.difference == 0.25
    assert facts.ceiling_minus_weak.difference == 0.5
    assert found["student_single"].id.value == 0.0


def test_a_ceiling_that_is_not_above_the_weak_expert_leaves_no_gap():
    level = {**VOTERS, "student_ceiling": rows("1xxx")}
    found = figures(ood=level).pgr()["student_ensemw2s"]
    assert found.ood.value is None
    assert "the ceiling (0.250) is not above the weak expert (0.250)" in found.ood.reason
    assert found.id.value == pytest.approx(0.5)


@pytest.mark.parametrize("missing", ["expert_single", "student_ceiling"])
def test_without_one_end_of_the_gap_there_is_no_pgr(missing):
    assert figures(*(name for name in SYSTEMS if name != missing)).pgr() == {}


def test_pgr_is_of_the_students_there_are():
    assert figures("expert_single", "student_ceiling", "student_bagging").pgr().keys() == {"student_bagging"}
    assert figures("expert_single", "student_ceiling").pgr() == {}


def test_the_ensemble_is_compared_with_every_baseline_and_its_student_with_the_others(monkeypatch):
    monkeypatch.setattr(metrics, "FEW", 0)
    found = {(c.a, c.b, c.split): c for c in figures().comparisons()}
    assert len(found) == 2 * (5 + 3)
    against = found["ensemw2s", "bagging", "ood"]
    assert (against.difference, against.verdict) == (0.75, "better")
    assert found["ensemw2s", "base_zero_shot", "id"].difference == pytest.approx(3 / 8)
    assert found["student_ensemw2s", "student_single", "id"].difference == 0.25
    assert ("student_ensemw2s", "student_ceiling", "id") not in found


def test_the_student_of_the_last_generation_is_compared_with_that_of_the_first():
    made = figures(*SYSTEMS, "student_generations")
    [entry] = [c for c in made.comparisons() if c.a == "student_generations" and c.split == "ood"]
    assert (entry.b, entry.difference) == ("student_ensemw2s", 0.25)
    assert made.pgr()["student_generations"].ood.value == 1.0


def test_a_missing_system_is_in_no_table():
    made = figures("bagging", "ensemw2s", "student_ensemw2s")
    assert list(made.systems()) == ["bagging", "ensemw2s", "student_ensemw2s"]
    assert {(c.a, c.b) for c in made.comparisons()} == {("ensemw2s", "bagging")}
    assert figures("student_ensemw2s", "student_single").comparisons()[0].b == "student_single"


def test_comparisons_pair_the_examples():
    """Two systems of the same accuracy on other examples differ more widely than on the same."""
    same = {**VOTERS, "ensemw2s": rows("12xx"), "bagging": rows("12xx")}
    other = {**VOTERS, "ensemw2s": rows("12xx"), "bagging": rows("xx34")}
    widths = []
    for columns in (same, other):
        [found] = [c for c in figures("bagging", "ensemw2s", ood=columns).comparisons() if c.split == "ood"]
        assert (found.difference, found.verdict) == (0.0, "too few to tell")
        widths.append(found.ci95[1] - found.ci95[0])
    assert widths[0] == 0.0
    assert widths[1] > 0.5


FEW = [["1", "5"], None, ["3", "5"], None]


def test_option_accuracy_is_of_the_questions_that_have_options():
    options = ["1", None, "5", None]
    columns = {**VOTERS, "ensemw2s": rows("123x", options=options)}
    tables = {split: table.set_column(2, "answer", pa.array(TRUTHS)) for split, table in truths(FEW).items()}
    facts = figures("ensemw2s", ood=columns, tables=tables).systems()["ensemw2s"]
    assert facts.ood.option_accuracy == 0.5
    assert facts.ood.exact_match == 0.75


def test_option_accuracy_of_zero_shot_bases_is_averaged_over_them():
    columns = {
        **VOTERS,
        "base:a": rows("1xxx", options=["1", None, "3", None]),
        "base:b": rows("12xx", options=["5", None, "3", None]),
    }
    tables = {split: table.set_column(2, "answer", pa.array(TRUTHS)) for split, table in truths(FEW).items()}
    made = figures("base_zero_shot", ood=columns, tables=tables)
    assert made.systems()["base_zero_shot"].ood.option_accuracy == 0.75
    assert made.bases()["b"].ood.option_accuracy == 0.5


def test_options_are_judged_by_each_measure_and_of_a_vote_by_its_members():
    def said(*options: str | None) -> dict[str, list]:
        return {"options": [options[0], None, options[1], None], "option_byte": [options[2], None, options[3], None]}

    columns = {
        **VOTERS,
        "expert:rounds/1/experts/0": rows("12yy", **said("1", "5", "5", "3")),  # of weight 3, the others of 1.5 and 1
        "expert:rounds/3/experts/0": rows("x2zy", **said("5", "3", "1", "5")),
        "expert:rounds/3/experts/1": rows("x 3y", **said("5", "3", "1", "5")),
    }
    tables = {split: table.set_column(2, "answer", pa.array(TRUTHS)) for split, table in truths(FEW).items()}
    found = figures("sequence_vote", ood=columns, tables=tables).systems()["sequence_vote"].ood
    assert (found.option_accuracy, found.option_acc, found.option_acc_norm) == (0.5, None, 0.5)


def test_without_options_there_is_no_option_accuracy():
    assert {facts.id.option_accuracy for facts in figures().systems().values()} == {None}


def test_curves_are_in_the_order_of_the_rounds():
    prefixes = {"rounds:10": rows("123x"), "rounds:2": rows("12xx"), "rounds:1": rows("1xxx")}
    split = {**VOTERS, **prefixes}
    made = figures(ood=split, id=split, validation={**prefixes, "rounds:2": rows("xxxx")})
    assert made.curves() == Curves(
        rounds=(1, 2, 10), validation=(0.25, 0.0, 0.75), id=(0.25, 0.5, 0.75), ood=(0.25, 0.5, 0.75)
    )


def test_examples_are_those_of_which_the_tokens_were_kept():
    tokens = [{"text": "1", "agreement": 1.0, "votes": []}]
    columns = {**VOTERS, "ensemw2s": rows("1x3x", tokens=[tokens, tokens, None, None])}
    made = figures(ood=columns)
    found = made.examples(truths()["ood"])
    assert [(e.id, e.truth, e.answer, e.correct) for e in found] == [
        ("ood-0", " 1 ", "1", True),
        ("ood-1", " 2 ", "x", False),
    ]
    assert (found[0].agreement, found[0].prompt) == (0.5, "p0")
    assert found[0].tokens == (TokenShown(text="1", agreement=1.0),)


def test_without_the_ensemble_there_are_no_examples():
    assert (
        figures("bagging", ood={"bagging": rows("xxxx")}, id={"bagging": rows("xxxx")}).examples(truths()["ood"]) == []
    )


def labels(*found: tuple[str, str, float, str]) -> pa.Table:
    names = ("id", "answer", "agreement", "finish_reason")
    return pa.table({name: list(column) for name, column in zip(names, zip(*found, strict=True), strict=True)})


def test_labels_are_right_or_wrong_by_id_where_the_truth_is_known():
    truth = pa.table({"id": ["b", "a", "c"], "answer": ["2", "1", None]})
    facts = label_result(
        labels(("a", "1", 1.0000001, "stop"), ("b", " 2 ", 0.95, "stop"), ("c", "3", 0.1, "length")), truth
    )
    assert (facts.n, facts.accuracy) == (3, 1.0)
    assert facts.finish_reasons == {"stop": 2, "length": 1}
    assert sum(b.n for b in facts.agreement_bins) == 2
    assert facts.agreement_bins[-1] == AgreementBin(lo=0.9, hi=1.0, n=2, accuracy=1.0)


def test_labels_of_prompts_whose_answers_nobody_knows_have_no_accuracy():
    truth = pa.table({"id": ["a"], "answer": pa.array([None], pa.string())})
    facts = label_result(labels(("a", "1", 1.0, "stop")), truth)
    assert (facts.n, facts.accuracy, facts.agreement_bins) == (1, None, ())


def test_of_the_labels_that_a_student_learned_only_the_evaluation_says_how_many_are_right():
    kept = pa.table(
        {
            "id": ["a", "b", "c"],
            "answer": ["1", "2", "9"],
            "weight": [1.0, 0.5, 0.5],
            "agreed": [True, False, False],
        }
    )
    truth = pa.table({"id": ["a", "b", "c", "d"], "answer": ["1", "2", "3", "4"]})
    facts = choice_result(Choice(labels="auto", prompts=4, kept=3, weight=0.5, agreed=1), kept, truth)
    assert (facts.kept, facts.prompts, facts.agreed, facts.weight) == (3, 4, 0.25, 0.5)
    assert (facts.accuracy, facts.agreed_accuracy) == (2 / 3, 1.0)
    assert choice_result(Choice(labels="auto", prompts=4, kept=0, agreed=0, easy_only=True), kept, truth).easy_only
    unknown = choice_result(Choice(labels="all", prompts=4, kept=3), kept, truth.slice(0, 0))
    assert (unknown.accuracy, unknown.agreed, unknown.agreed_accuracy) == (None, None, None)
