import pandas as pd
import pytest

from ensemw2s.study.records import DiagnosisPoint, OtherData
from ensemw2s.study.rows import CHOSEN
from ensemw2s.study.sheet import find
from ensemw2s.study.summary import associations, summarise

from .conftest import frame_of, rows_of

pytestmark = pytest.mark.slow


def test_a_mean_over_tasks_has_an_interval_over_seeds(summary) -> None:
    """Bagging: 58 and 38 per cent with seed 0, a point more with each seed."""
    found = find(summary.systems, task="all", variant="default", system="bagging", split="id")
    assert found.mean == pytest.approx(0.49)
    assert found.n == 3
    assert found.ci95[1] - 0.49 == pytest.approx(4.3027 * 0.01 / 3**0.5, abs=1e-5)
    assert find(summary.systems, task="b", variant="default", system="bagging", split="id").mean == pytest.approx(0.39)


def test_differences_are_paired_by_task_and_seed(summary) -> None:
    """The ensemble is 2, 3 and 4 points above bagging with the three seeds, in both tasks."""
    found = find(summary.comparisons, task="all", variant="default", a="ensemw2s", b="bagging", split="id")
    assert found.mean == pytest.approx(0.03)
    assert (found.n, found.pairs) == (3, 6)
    assert found.p == pytest.approx(2 / 64)
    assert found.verdict == "better"
    alone = find(summary.comparisons, task="a", variant="default", a="ensemw2s", b="bagging", split="id")
    assert alone.p == pytest.approx(2 / 8)
    assert find(summary.comparisons, a=CHOSEN, b="bagging", task="a", split="id").mean == pytest.approx(0.01)


def test_who_comes_first_makes_the_sign(frame) -> None:
    swapped = frame.replace({"system": {"ensemw2s": "bagging", "bagging": "ensemw2s"}})
    found = find(summarise(swapped, resamples=1000).comparisons, task="all", a="ensemw2s", b="bagging", split="id")
    assert found.mean == pytest.approx(-0.03)
    assert found.verdict == "worse"


def test_a_seed_that_lacks_a_task_is_in_no_mean_over_tasks() -> None:
    rows = [r for task, seed in (("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)) for r in rows_of(task, seed)]
    found = find(summarise(frame_of(rows), resamples=1000).systems, task="all", system="bagging", split="id")
    assert found.n == 2
    assert found.mean == pytest.approx((0.48 + 0.49) / 2)


def test_the_test_of_a_difference_is_of_the_seeds_that_its_mean_is_of() -> None:
    rows = [r for task, seed in (("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)) for r in rows_of(task, seed)]
    summary = summarise(frame_of(rows), resamples=1000)
    found = find(summary.comparisons, task="all", a="ensemw2s", b="bagging", split="id")
    assert (found.n, found.pairs, found.p) == (2, 4, pytest.approx(2 / 16))
    assert find(summary.costs, task="all", system="bagging").gain_id == pytest.approx(0.08)
    alone = find(summary.comparisons, task="a", a="ensemw2s", b="bagging", split="id")
    assert (alone.n, alone.pairs) == (3, 3)


def test_two_seeds_that_agree_hold_nothing() -> None:
    rows = [r for seed in (0, 1) for r in rows_of("a", seed)]
    found = find(summarise(frame_of(rows), resamples=1000).comparisons, a=CHOSEN, b="bagging", split="id")
    assert found.ci95[0] > 0
    assert found.verdict == "unknown"


def test_one_seed_gives_no_verdict() -> None:
    summary = summarise(frame_of(rows_of("a", 0)), resamples=1000)
    found = find(summary.comparisons, a="ensemw2s", b="bagging", split="ood")
    assert (found.ci95, found.verdict, found.p) == (None, "unknown", 1.0)
    assert {entry.task for entry in summary.systems} == {"a"}, "one task needs no mean over tasks"


def test_variants_are_held_against_the_default_and_ordered_by_validation(frame) -> None:
    worse = pd.concat([frame, frame_of(rows_of("a", 0, "worse", -0.01))])
    found = summarise(worse, resamples=1000).variants
    assert [entry.variant for entry in found] == ["better", "worse"]
    assert found[0].of("ensemw2s", "validation").mean == pytest.approx(0.02)
    assert found[0].of("student_ensemw2s", "ood").mean == 0
    assert found[1].of("ensemw2s", "id").pairs == 1


def test_a_variant_can_be_held_against_another_one(frame) -> None:
    third = frame[frame["variant"] == "better"].assign(variant="third")
    third["exact_match"] += 0.01 * third["seed"] * (third["system"] == "ensemw2s")
    found = summarise(pd.concat([frame, third]), resamples=1000, against={"third": "better", "better": "unknown"})
    [entry] = found.pairs
    assert (entry.variant, entry.against) == ("third", "better")
    assert entry.of("ensemw2s", "id").mean == pytest.approx(0.01)
    assert entry.of("ensemw2s", "id").pairs == 6
    assert find(found.variants, variant="third").of("ensemw2s", "id").mean == pytest.approx(0.03)


def test_the_student_of_a_variant_is_that_of_its_last_generation(frame) -> None:
    later = frame[(frame["variant"] == "better") & (frame["system"] == "student_ensemw2s")].copy()
    later["system"] = "student_generations"
    later["exact_match"] += 0.03
    found = summarise(pd.concat([frame, later]), resamples=1000)
    assert found.variants[0].of("student_ensemw2s", "ood").mean == pytest.approx(0.03)
    pair = {"variant": "better", "a": "student_generations", "b": "student_ensemw2s", "split": "ood"}
    assert find(found.comparisons, task="all", **pair).mean == pytest.approx(0.03)


def test_a_variant_with_other_examples_is_held_against_nothing_but_itself(frame) -> None:
    found = summarise(frame, resamples=1000, other_data={"better"})
    assert found.variants == ()
    assert found.other_data == (OtherData(variant="better", tasks=("a", "b")),)
    own = find(found.comparisons, task="all", variant="better", a="ensemw2s", b="bagging", split="id")
    assert own.mean == pytest.approx(0.05)


def test_chosen_rounds_and_their_rivals_are_both_teacher_forced(frame) -> None:
    """Bagging decodes two points more than it has under teacher forcing: other spellings of the same answers."""
    spelled = frame.copy()
    spelled.loc[spelled["system"] == "bagging", "forced_exact_match"] -= 0.02
    found = summarise(spelled, resamples=1000).comparisons
    assert find(found, a=CHOSEN, b="bagging", task="a", split="id").mean == pytest.approx(0.03)
    assert find(found, a="ensemw2s", b="bagging", task="a", split="id").mean == pytest.approx(0.03)
    spelled.loc[spelled["system"] == "sequence_vote", "forced_exact_match"] = None
    assert find(summarise(spelled, resamples=1000).comparisons, a=CHOSEN, b="sequence_vote") is None


def test_pgr_is_over_the_runs_that_have_it_and_the_plain_differences_over_all(frame) -> None:
    own = (frame["system"] == "student_ensemw2s") & (frame["seed"] == 2) & (frame["task"] == "b")
    summary = summarise(frame.assign(pgr=frame["pgr"].mask(own, 7.0)), resamples=1000)
    found = find(summary.pgr, task="all", variant="default", system="student_ensemw2s", split="ood")
    assert (found.median, found.range) == (pytest.approx(0.3), (0.3, 7.0))
    assert (found.runs, found.undefined) == (6, 2)
    assert found.ceiling_minus_weak.mean == pytest.approx((0.35 - 0.01 + 0.35) / 3)


def test_cost_counts_the_supervisors_of_a_student(summary) -> None:
    """Four million tokens for 16 points over the weak bases."""
    student = find(summary.costs, task="a", variant="default", system="student_ensemw2s")
    assert student.gain_id == pytest.approx(0.16)
    assert student.id_per_million_trained == pytest.approx(0.04)
    assert student.id_per_million_decoded == pytest.approx(0.8)
    assert find(summary.costs, task="a", system="bagging").id_per_million_trained == pytest.approx(0.08)
    assert find(summary.costs, system=CHOSEN) is None


def test_curves_are_means_over_seeds_and_chosen_rounds_are_told(summary) -> None:
    curve = find(summary.curves, task="a", variant="default")
    assert curve.rounds == (1, 2)
    assert curve.seeds == (3, 3)
    assert curve.ood == pytest.approx([0.47, 0.52])
    assert find(summary.chosen, task="a", variant="default").rounds == (1, 2, 1)


def test_common_errors_are_held_against_what_the_vote_gains(summary) -> None:
    """Errors that go together more gain less: 4, 3 and 2 points."""
    points = [p for p in summary.diagnosis.points if p.split == "id"]
    assert sorted({round(p.gain, 6) for p in points}) == [0.02, 0.03, 0.04]
    found = find(summary.diagnosis.associations, split="id", figure="error_correlation")
    assert found.rho == pytest.approx(-1.0)
    assert find(summary.diagnosis.associations, figure="same_wrong") is None, "it has no spread here"
    assert len(points) == found.n == 6, "other variants are not pooled with the default"


def test_what_sets_bagging_apart_is_no_association() -> None:
    """Within each system errors that go together more gain more; bagging's go together more and gain less."""
    points = [
        DiagnosisPoint(
            task="a", system=system, split="id", seed=x, gain=gain + x / 100, error_correlation=base + x / 10
        )
        for system, base, gain in (("ensemw2s", 0.1, 0.2), ("bagging", 0.6, 0.0))
        for x in range(4)
    ]
    [found] = associations(points, resamples=1000)
    assert (found.rho, found.n) == (pytest.approx(1.0), 4)


def test_the_votes_gain_is_teacher_forced_as_its_members_are(frame) -> None:
    spelled = frame.copy()
    spelled.loc[spelled["split"] == "id", "exact_match"] += 0.2
    points = [p for p in summarise(spelled, resamples=1000).diagnosis.points if p.split == "id"]
    assert sorted({round(p.gain, 6) for p in points}) == [0.02, 0.03, 0.04]
