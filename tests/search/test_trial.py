from types import SimpleNamespace
from typing import Any

import pytest

from ensemw2s.config import parse_config
from ensemw2s.pipeline.build import build_graph
from ensemw2s.search import space, trial

from ..boosting.conftest import round_record
from .test_search import wanted


@pytest.fixture
def made(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": "b", "level": 1}\n')
    space = {
        "boosting.rounds": {"integer": [1, 3]},
        "expert.epochs": {"integer": [1, 9]},
        "boosting.shrinkage": {"uniform": [0.1, 1.0]},
        "ensemble.combine": {"choice": ["probability", "vote"]},
    }
    return wanted(tmp_path, search={"space": space})


def names(graph) -> dict[str, object]:
    return {stage.name: stage.path for stage in graph.stages()}


def test_trials_share_what_they_have_in_common(made, tmp_path) -> None:
    def of(point):
        return build_graph(trial.trial_config(made, point), tmp_path / "stages")

    a = of({"expert.epochs": 2, "boosting.shrinkage": 0.3, "ensemble.combine": "vote"})
    b = of({"expert.epochs": 2, "boosting.shrinkage": 0.3, "ensemble.combine": "probability"})
    c = of({"expert.epochs": 2, "boosting.shrinkage": 0.9, "ensemble.combine": "probability"})
    d = of({"expert.epochs": 3, "boosting.shrinkage": 0.3, "ensemble.combine": "probability"})
    common = {"data", "corpus", "tokens"} | {base.stage.name for base in a.bases}
    assert len(a.rounds) == 3

    def shared(one, other):
        return {name for name, path in names(one).items() if names(other).get(name) == path}

    rounds = {f"rounds/{t}" for t in (1, 2, 3)} | {f"rounds/{t}/experts/0" for t in (1, 2, 3)}
    assert shared(a, b) == common | rounds, "how experts are combined changes none of them"
    assert shared(b, c) == common | {"rounds/1/experts/0"}, "the first expert sees no weights yet"
    assert shared(b, d) == common
    paths = [path for graph in (a, b, c, d) for name, path in names(graph).items()]
    stages = {path for path in paths if "cache" not in path.parts}
    assert all(path.parent == tmp_path / "stages" for path in stages), "and each has a folder of its own"


def test_experts_are_found_by_their_names_in_either_layout(made, tmp_path) -> None:
    point = {"expert.epochs": 2}
    config = trial.trial_config(made, point)
    own, shared = build_graph(config), build_graph(config, tmp_path / "stages")
    for r in own.rounds:
        for expert in (*r.experts, *r.retries):
            assert own.expert_folder(expert.stage.name) == expert.stage.path == own.root / expert.stage.name
    for r in shared.rounds:
        for expert in (*r.experts, *r.retries):
            assert shared.expert_folder(expert.stage.name) == expert.stage.path
    assert [s.fingerprint for s in own.stages()] == [s.fingerprint for s in shared.stages()]


def test_means_are_over_examples_or_tokens() -> None:
    rows = {
        "n_tokens": [1, 3],
        "token_correct": [1, 2],
        "nll": [0.5, 1.5],
        "forced": [True, False],
        "option": [None, None],
    }
    assert trial.metrics_of(rows, ["a", "b"]) == {"exact_match": 0.5, "token_accuracy": 0.75, "nll": 0.5}
    assert trial.metrics_of({**rows, "option": ["a", "c"]}, ["a", "b"])["option_accuracy"] == 0.5


def test_only_what_is_measured_is_in_a_trial(made) -> None:
    config = trial.trial_config(made, {})
    assert config.evaluation.systems == ["ensemw2s"]
    assert config.tracking.kind == "none"
    student = parse_config(
        {**made.model_dump(mode="json"), "search": {**made.model_dump(mode="json")["search"], "objective": "student"}}
    )
    assert trial.trial_config(student, {}).evaluation.systems == ["ensemw2s", "student_ensemw2s"]
    asked = trial.trial_config(space.apply(student, {"student.labels": "agreed"}), {}).evaluation.systems
    assert asked == ["ensemw2s", "student_easy_only", "student_ensemw2s"]


def test_a_trial_makes_passes_only_if_the_space_has_a_key_of_them(made) -> None:
    def passes(keys: dict[str, Any], own: int = 2) -> tuple[tuple[int, int], int]:
        tree = made.model_dump(mode="json") | {"consensus": {"passes": own}}
        config = parse_config({**tree, "search": {"space": {"expert.epochs": {"integer": [1, 2]}, **keys}}})
        return space.passes(config), trial.trial_config(config, {}).consensus.passes

    assert passes({}) == ((0, 0), 0)
    assert passes({"consensus.passes": {"integer": [1, 3]}}) == ((1, 3), 3)
    assert passes({"consensus.fraction": {"uniform": [0.2, 0.8]}}) == ((2, 2), 2)


@pytest.fixture
def run(made, tmp_path, monkeypatch) -> Any:
    """Measures a trial of three rounds and up to three passes, of which some may be refused, from written values."""

    def measured(values: list[float], *, fewest: int = 0, refused: int = 9) -> tuple[list[Any], list[str]]:
        keys = {"consensus.passes": {"integer": [fewest, 3]}, "boosting.rounds": {"integer": [2, 3]}}
        config = parse_config({**made.model_dump(mode="json"), "search": {"space": keys}})
        own = trial.trial_config(config, {})
        done: list[str] = []

        def passes(_: Any) -> Any:
            for number in range(1, min(refused, 3) + 1):
                took = number < refused
                yield SimpleNamespace(number=number, took_place=took), [round_record(t, [1.0]) for t in range(1, 4)]

        found = iter(values)
        monkeypatch.setattr(trial, "each_round", lambda *_: ([round_record(t, [1.0])] * t for t in (1, 2, 3)))
        monkeypatch.setattr(trial, "each_pass", passes)
        monkeypatch.setattr(trial, "ensemble_voter", lambda *_: None)
        monkeypatch.setattr(trial, "measure", lambda *_: {"exact_match": next(found)})
        monkeypatch.setattr(trial, "_once", lambda stage, work: done.append(stage.name))
        context: Any = SimpleNamespace(graph=build_graph(own, tmp_path / "stages"), config=own)
        return list(trial.measured(context, config.search, 2, fewest)), done

    return measured


def test_a_pass_is_an_iteration_after_the_rounds_that_reports_validation(run) -> None:
    found, done = run([0.1, 0.2, 0.3, 0.5, 0.7, 0.6])
    assert [(m.rounds, m.passes, m.for_tune()["iteration"]) for m in found] == [
        (1, 0, 1), (2, 0, 2), (3, 0, 3), (3, 1, 4), (3, 2, 5), (3, 3, 6),
    ]  # fmt: skip
    assert [m.value for m in found] == [0.1, 0.2, 0.3, 0.5, 0.7, 0.6]
    assert [m.objective for m in found] == [0.1, 0.2, 0.3, 0.5, 0.7, 0.7]
    assert (found[-1].best_rounds, found[-1].best_passes) == (3, 2)
    assert [m.final for m in found] == [False] * 5 + [True]
    assert done == ["anchor"], "which consensus.anchor auto asks for, once"


def test_a_round_may_stay_the_best_unless_passes_are_asked_for(run) -> None:
    values = [0.1, 0.9, 0.3, 0.5, 0.7, 0.6]
    assert [(m.best_rounds, m.best_passes, m.objective) for m in run(values)[0]][-1] == (2, 0, 0.9)
    found = run(values, fewest=1)[0]
    assert [(m.best_rounds, m.best_passes, m.objective) for m in found][-1] == (3, 2, 0.7)
    assert [m.objective for m in found[:3]] == [0.1, 0.9, 0.3], "Tune compares what there is"


def test_a_pass_that_does_not_take_place_ends_the_trial_with_the_ensemble_as_it_was(run) -> None:
    found = run([0.1, 0.2, 0.3, 0.5], refused=2)[0]
    assert [(m.passes, m.value, m.final) for m in found[-2:]] == [(1, 0.5, False), (2, 0.5, True)]
    assert found[-1].best_passes == 1, "of equal ones the fewest"
    none = run([0.1, 0.2, 0.3], fewest=2, refused=1)[0]
    assert (none[-1].passes, none[-1].value, none[-1].final) == (2, 0.3, True)
