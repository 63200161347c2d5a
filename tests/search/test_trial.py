import pytest

from ensemw2s.config import parse_config
from ensemw2s.pipeline.build import build_graph
from ensemw2s.search import space, trial

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
