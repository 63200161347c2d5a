"""What a pilot's paragraph says follows from its figures."""

from ensemw2s.pilot.records import Agreement, PilotResult
from ensemw2s.pilot.words import error, paragraph

AGREEMENT = Agreement(
    experts=2,
    prompts=200,
    share=0.4,
    short=0.6,
    long=0.2,
    tests=100,
    tests_share=0.38,
    right=0.75,
    right_others=0.3,
)
FOUND = PilotResult(
    name="qa",
    easy=200,
    tests=100,
    ensemble_easy=0.9,
    ensemble=0.5,
    easy_only=0.5,
    ceiling=0.9,
    agreement=AGREEMENT,
    seconds=3600.0,
    time="The whole run on this machine: about 1 h.",
)


def said(**changes: object) -> str:
    return paragraph(FOUND.model_copy(update=changes)).replace("\u00a0", " ")


def test_it_names_the_gap_the_agreement_and_where_it_is_and_the_time() -> None:
    text = said()
    assert "There is a gap of 40 points to recover." in text
    assert "the same answer to 40.0 % of the 200 hard prompts without labels, to 60.0 % of the shortest third" in text
    assert "they are right in 75.0 %, the ensemble on the others in 30.0 %" in text
    assert "good to about ± 10 points" in text
    assert text.endswith("about 1 h.")


def test_the_gap_is_counted_from_the_better_of_ensemble_and_easy_data_alone() -> None:
    assert "gap of 20 points" in said(easy_only=0.7)
    assert "gap of 40 points" in said(easy_only=0.1)


def test_a_gap_within_the_error_is_none() -> None:
    assert error(100) / 2 < 5
    assert "There is no gap to recover" in said(ceiling=0.54)
    assert "There is no gap to recover" in said(ceiling=0.3)
    assert "There is a gap of 6 points" in said(ceiling=0.56)


def test_without_true_answers_nothing_is_said_of_the_gap() -> None:
    text = said(ceiling=None)
    assert "Too few true answers to hard prompts are known" in text
    assert "on true answers to hard ones" not in text


def test_what_to_expect_depends_on_who_is_ahead() -> None:
    assert "expect nothing of their labels" in said(ensemble=0.04)
    assert "labels may do harm: use student.labels auto" in said(easy_only=0.65)
    assert "Agreement tells right from wrong here" in said()
    blind = AGREEMENT.model_copy(update={"right": 0.5})
    assert "near the ensemble, and perhaps past it" in said(agreement=blind, easy_only=0.3)
    assert "about as good as one of easy examples alone" in said(agreement=blind)


def test_agreement_that_does_not_depend_on_length_is_said_so_and_so_is_none_at_all() -> None:
    assert "to short and to long ones alike" in said(agreement=AGREEMENT.model_copy(update={"short": 0.25}))
    assert "never agree" in said(agreement=AGREEMENT.model_copy(update={"right": None, "tests_share": 0.0}))
    assert "Fewer than two experts have a vote" in said(agreement=None)
