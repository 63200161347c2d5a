"""Each sentence of a report follows from a figure; above all, the ensemble is not said to win where it does not."""

from ensemw2s.evaluation import summary as summaries
from ensemw2s.evaluation.records import RunResults
from ensemw2s.evaluation.wording import NBSP


def summarise(results):
    return summaries.summarise(RunResults.model_validate(results))


def bout(b, split, difference, lo, hi, a="ensemw2s"):
    return {"a": a, "b": b, "split": split, "difference": difference, "ci95": [lo, hi], "verdict": "?"}


def systems(*names):
    figures = {"exact_match": 0.5, "token_accuracy": 0.9, "nll": 0.1, "n": 100, "ci95": [0.4, 0.6]}
    return {name: {"id": figures, "ood": figures} for name in names}


def ensemble(**results):
    return summarise({"systems": systems("ensemw2s", "bagging", "expert_single")} | results).contests[0]


def test_an_interval_that_includes_zero_is_no_win():
    contest = ensemble(comparisons=[bout("bagging", "id", 0.016, -0.022, 0.049)])
    assert contest.wins == []
    assert contest.not_wins == [
        "It does not win against bagging of as many experts: no difference on ID (+1.6 points, −2.2 to +4.9)."
    ]
    assert contest.record == "Of 1 comparison, the ensemble wins 0, is no different in 1 and loses 0."


def test_a_loss_is_said_to_be_one():
    contest = ensemble(comparisons=[bout("bagging", "ood", -0.1, -0.2, -0.05), bout("bagging", "id", 0.1, 0.05, 0.2)])
    assert contest.not_wins == [
        "It does not win against bagging of as many experts: worse on OOD (−10.0 points, −20.0 to −5.0)."
    ]
    assert contest.wins == ["It wins against bagging of as many experts on ID (+10.0 points, +5.0 to +20.0)."]
    assert "wins 1, is no different in 0 and loses 1" in contest.record


def test_a_clean_sweep_is_said_to_be_one():
    contest = ensemble(comparisons=[bout("bagging", "id", 0.1, 0.05, 0.2), bout("expert_single", "id", 0.1, 0.05, 0.2)])
    assert contest.record == "The ensemble wins all 2 comparisons made."
    assert contest.not_wins == []


def test_rivals_that_were_not_run_are_named():
    contest = ensemble(comparisons=[bout("bagging", "id", 0.1, 0.05, 0.2)])
    assert contest.untested == (
        "Not compared with the token-level ensemble of the untuned bases, one expert, one expert with the whole "
        "ensemble’s training budget, a deep ensemble of as many experts and a sequence-level vote."
    )


def test_without_comparisons_nothing_is_claimed():
    contest = ensemble()
    assert contest.record == (
        "The ensemble was not compared with its rivals on the same examples, so nothing is claimed for it."
    )
    assert (contest.wins, contest.not_wins) == ([], [])


def test_a_run_without_the_ensemble_has_no_contest_for_it():
    summary = summarise({"systems": systems("expert_single")})
    assert summary.contests == []
    assert summary.reached == ["This run evaluated neither the ensemble nor its student."]


def test_undefined_pgr_is_given_with_its_reason_and_the_plain_points():
    part = {"difference": 0.05, "ci95": [0.01, 0.09]}
    entry = {"value": None, "reason": "the ceiling is low", "student_minus_weak": part, "ceiling_minus_weak": part}
    results = {"systems": systems("student_ensemw2s"), "pgr": {"student_ensemw2s": {"ood": entry}}}
    text = " ".join(summarise(results).reached)
    assert "On OOD the recovered performance gap (PGR) is undefined: the ceiling is low; in plain points +5.0" in text


def test_refused_rounds_the_best_round_and_the_cost_are_told(full):
    cost = {"tokens_trained": 5000, "tokens_decoded": 2000, "train_seconds": 1, "decode_seconds": 1}
    both = systems("ensemw2s", "expert_single")
    both["ensemw2s"]["cost"] = cost
    both["expert_single"]["cost"] = cost | {"tokens_trained": 1000}
    results = {
        "systems": both,
        "rounds": [full["rounds"][0], full["rounds"][1] | {"accepted": False}],
        "curves": {"rounds": [1, 2, 3], "validation": [0.5, 0.7, 0.6]},
    }
    text = summarise(results).reached[0].replace(NBSP, " ")
    assert "5.0 times the tokens trained on (5 k against 1 k) and 1.0 times the tokens decoded" in text
    assert "Round 2 of 2 had an alpha that is not positive and got no vote." in text
    assert "first round alone answers 50.0 %, all 3 together 60.0 %; the most is 70.0 %, with 2 rounds." in text


def test_the_fewest_of_equally_good_rounds_is_named():
    results = {"systems": systems("ensemw2s"), "curves": {"rounds": [1, 2, 3], "validation": [0.7, 0.5, 0.7]}}
    assert summarise(results).reached[0].endswith("with 1 round.")


def test_labels_are_told_by_agreement():
    bins = [
        {"lo": 0.7, "hi": 0.8, "n": 10, "accuracy": 0.1},
        {"lo": 0.8, "hi": 0.9, "n": 30, "accuracy": 0.3},
        {"lo": 0.9, "hi": 1.0, "n": 60, "accuracy": 0.9},
    ]
    made = {"n": 100, "accuracy": 0.64, "agreement_bins": bins}
    text = summarise({"systems": systems("ensemw2s"), "labels": {"ensemw2s": made}}).reached[-1].replace(NBSP, " ")
    assert text == (
        "Of the ensemble’s 100 pseudo-labels 64.0 % are right; where the experts’ agreement is 0.9 or more (n = 60) "
        "it is 90.0 %, elsewhere 25.0 %."
    )


def test_what_a_student_learned_is_told_where_it_did_not_learn_every_label():
    choice = {"labels": "auto", "prompts": 100, "kept": 80, "weight": 0.4, "agreed": 0.4, "accuracy": 0.75}
    results = {"systems": systems("student_ensemw2s"), "choices": {"student_ensemw2s": choice}}
    text = summarise(results).reached[-1].replace(NBSP, " ")
    assert text.endswith(
        "The student learned 80 labels (student.labels auto), of which 75.0 % are right. The ensemble and a student of "
        "the easy data alone give the same answer to 40.0 % of the prompts; a label on which they differ counts 0.40."
    )
    results["choices"] = {"student_ensemw2s": {**choice, "labels": "all"}}
    assert "learned" not in summarise(results).reached[-1]


def test_a_student_that_is_the_one_of_easy_data_alone_is_said_to_be_it():
    choice = {"labels": "auto", "prompts": 100, "kept": 0, "weight": 0.0, "agreed": 0.09, "easy_only": True}
    results = {"systems": systems("student_ensemw2s"), "choices": {"student_ensemw2s": choice}}
    text = summarise(results).reached[-1].replace(NBSP, " ")
    assert text.endswith(
        "The ensemble and a student of the easy data alone give the same answer to only 9.0 % of the prompts, so the "
        "student of the ensemble’s labels is that student, with the same weights (student.labels auto)."
    )


def test_a_whole_run_warns_of_seeds_and_of_many_comparisons(full):
    text = " ".join(summarise(full).caveats)
    assert "this is one run, with seed 7" in text
    assert "Of 16 comparisons at 95 %, about 0.8 would look decided by chance" in text


def test_a_ceiling_below_the_ensemble_is_explained_with_both_figures():
    def figures(value):
        return {"exact_match": value, "n": 100, "ci95": [value - 0.1, value + 0.1]}

    found = {"ensemw2s": {"id": figures(0.9), "ood": figures(0.6)}, "student_ceiling": {"id": figures(0.8)}}
    said = " ".join(summarise({"systems": found}).caveats)
    assert f"below the weak ensemble on ID (80.0{NBSP}% against 90.0{NBSP}%). That can be: " in said
    found["student_ceiling"] = {"id": figures(0.95), "ood": figures(0.6)}
    assert "below the weak ensemble" not in " ".join(summarise({"systems": found}).caveats)
