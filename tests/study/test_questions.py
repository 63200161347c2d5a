"""What reviewers asked, answered from the figures of `conftest.rows_of`."""

import pytest

from ensemw2s.evaluation.wording import NBSP
from ensemw2s.study.questions import anchor, answers
from ensemw2s.study.records import StudyFigures, StudyResults
from ensemw2s.study.summary import summarise

from .conftest import frame_of, rows_of

pytestmark = pytest.mark.slow


def told(summary: StudyFigures, not_run: tuple[str, ...] = ()) -> dict[str, list[str]]:
    origin = {"created": "", "versions": {}, "git_commit": None, "cells": 12, "failed": {}}
    study = StudyResults(name="small", seeds=(0, 1, 2), finished=12, **origin, **dict(summary))
    return dict(answers([study], not_run))


@pytest.mark.parametrize(
    ("question", "variant", "what"),
    [
        ("Are the defaults better than the paper's printed rule?", "paper-printed", "the paper's printed rule"),
        (
            "Are the defaults better than the paper's weights in the loss?",
            "paper-loss",
            "the paper's weights, as factors of the loss",
        ),
        (
            "Are the defaults better than the paper's weights in the loss?",
            "paper",
            "the paper's weights, as factors of the loss",
        ),
        ("Averages of probabilities or of log-probabilities?", "log-probability", "averages of log-probabilities"),
        (
            "Averages of probabilities or of log-probabilities?",
            "ensemble.combine=log_probability",
            "averages of log-probabilities",
        ),
    ],
)
def test_a_change_is_held_against_the_defaults(summary, question: str, variant: str, what: str) -> None:
    [entry] = summary.variants
    assert told(summary)[question] == ["Nothing here answers this."]
    [said] = told(summary.model_copy(update={"variants": (entry.model_copy(update={"variant": variant}),)}))[question]
    assert said.startswith(f"small: {what}, minus the defaults: validation +2.0 (+2.0 to +2.0), p = 0.031")
    assert "hard validation" not in said


def test_each_question_is_answered_with_the_studys_figures(summary) -> None:
    said = {question: text[0] for question, text in told(summary, ("pythia",)).items()}
    spread = said["How much do runs spread?"]
    assert spread.startswith("small: 3 seeds, 2 tasks, 12 runs; one expert ID 46.0 (43.5–48.5), OOD 36.0 (33.5–38.5);")
    assert "; the ensemble ID 52.0 (47.0–57.0), OOD 42.0" in spread
    bagging = said["Is it better than a direct ensemble (a deep ensemble, bagging)?"]
    assert bagging.startswith("small: ID +3.0 (+0.5 to +5.5), p = 0.031, OOD +3.0")
    full = said["Is it better than one expert with the training of all rounds?"]
    assert full.startswith("small: ID +5.0")
    assert full.endswith("against one expert, full budget.")
    chosen = said["And when T is chosen without a look at the test?"]
    assert chosen.endswith("the most rounds that there were in 2 of 6 runs.")
    most = tuple(entry.model_copy(update={"rounds": (2, 2, 2)}) for entry in summary.chosen)
    more = told(summary.model_copy(update={"chosen": most}))
    assert more["And when T is chosen without a look at the test?"][0].endswith("so more might be better.")
    assert f"10.0{NBSP}% of the tokens" in said["What when experts agree on a wrong answer?"]
    assert "PGR undefined in 2 of 6 runs" in said["A figure that does not explode like PGR?"]
    assert said["What is configured and was not run?"] == "pythia."
    assert "What is configured and was not run?" not in told(summary)


def test_what_no_study_answers_is_said(summary) -> None:
    said = told(summary)
    assert said["Another data set for the hard part?"] == ["Nothing here answers this."]
    assert not any("not run" in text for text in said["Larger models, other families?"])


@pytest.mark.parametrize(("lower", "told_apart"), [(0.0, True), (0.5, False)])
def test_systems_that_are_hardly_ever_right_are_not_told_apart(frame, lower: float, told_apart: bool) -> None:
    moved = frame.copy()
    hard = (moved["variant"] == "cross") | (moved["variant"] == "better")
    moved.loc[hard, "variant"] = "cross-source"
    moved.loc[hard & (moved["split"] == "ood"), "exact_match"] -= lower
    said = told(summarise(moved, resamples=1000, other_data={"cross-source"}))
    [text] = said["Another data set for the hard part?"]
    assert ("says nothing" not in text) is told_apart


def test_units_are_compared_with_one_prior(frame) -> None:
    cells = [(task, seed) for task in ("a", "b") for seed in range(3)]
    rows = [r for c in cells for name, lift in (("default", 0.0), ("example", -0.02)) for r in rows_of(*c, name, lift)]
    rows += [r for c in cells for r in rows_of(*c, "token", 0.01)]
    question = "Weights of tokens or of examples?"
    [text] = told(summarise(frame_of(rows), resamples=1000))[question]
    assert "minus default (whose prior is none)" in text
    assert text.endswith("example −2.0 (−2.0 to −2.0), −2.0 (−2.0 to −2.0), −2.0 (−2.0 to −2.0).")
    [text] = told(summarise(frame_of(rows), resamples=1000, against={"example": "token"}))[question]
    assert "minus tokens, on" in text
    assert text.endswith("example −3.0 (−3.0 to −3.0), −3.0 (−3.0 to −3.0), −3.0 (−3.0 to −3.0).")


def test_anchors_are_those_of_markdown() -> None:
    assert anchor("tiny: common errors against the vote's gain") == "#tiny-common-errors-against-the-votes-gain"
    assert anchor("tiny: systems: number_sorting") == "#tiny-systems-number_sorting"
