"""Whole searches on a real Ray: every size is measured, a kill loses nothing, and the tests' examples stay unread."""

import json
import shutil
import time

import pandas as pd
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SEARCH = {
    "trials": 4,
    "searcher": "random",
    "scheduler": "none",
    "metric": "token_accuracy",
    "space": {
        "boosting.rounds": {"integer": [1, 2]},
        # two epochs give no expert that is right more often than not
        "expert.epochs": {"choice": [2, 6]},
        "ensemble.combine": {"choice": ["probability", "log_probability"]},
    },
}
TWO = {"training.lanes": 2}
"""Two trials at a time."""

FACTS = ["trial", "state", "rounds", "experts", "value", "exact_match", "token_accuracy", "nll", "best_rounds"]


def read(folder) -> tuple[pd.DataFrame, dict]:
    found = pd.read_parquet(folder / "trials.parquet")
    found = found[[*FACTS, "expert.epochs", "ensemble.combine"]].sort_values(["trial", "rounds"])
    return found.reset_index(drop=True), json.loads((folder / "search.json").read_text())


def check(folder) -> None:
    """Every trial has every size, or the reason why it has none; the best one is the best, and is a config."""
    found, summary = read(folder)
    failed = {trial["trial"]: trial["reason"] for trial in summary["failed"]}
    assert 0 < len(failed) < 4, "one of the two numbers of epochs was never drawn: take another seed"
    for number, rows in found.groupby("trial"):
        if number in failed:
            assert rows[["state", "rounds", "experts", "value"]].values.tolist() == [["failed", 1, 0, 0.0]]
            assert "no round gave an expert with a positive alpha" in failed[number]
        else:
            assert rows[["state", "rounds", "experts"]].values.tolist() == [["finished", 1, 1], ["finished", 2, 2]]
    best = found.sort_values(["value", "rounds", "trial"], ascending=[False, True, True]).iloc[0]
    assert (summary["best"]["trial"], summary["best"]["rounds"]) == (best["trial"], best["rounds"])
    made = folder.glob("stages/rounds-1-experts-0-*/train.json")
    assert len(list(made)) == found.groupby("expert.epochs").ngroups, "equal rounds are made once"
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    assert chosen["boosting"]["rounds"] == best["rounds"]
    assert chosen["expert"]["epochs"] == best["expert.epochs"]
    assert {path.name for path in (folder / "plots").iterdir()} >= {"sizes.png", "parallel.png"}


def nobody_reads(folder) -> None:
    """Makes garbage of what no search may read: tests, and hard prompts and answers."""
    spoilt = [*folder.glob("stages/data-*/*_test.parquet"), *folder.glob("stages/data-*/hard_*.parquet")]
    assert len(spoilt) == 5
    for path in spoilt:
        path.write_bytes(b"nobody reads this")


@pytest.fixture
def _ray_here(workplace, ray_environment):
    from ensemw2s.cluster.connect import connect
    from ensemw2s.config import ClusterConfig

    with connect(ClusterConfig(cpus=2, object_store_mb=100)):
        yield


@pytest.mark.usefixtures("_ray_here")
def test_trials_that_are_stopped_free_all_that_they_had(workplace, undisturbed, own_jsonl, capsys, monkeypatch) -> None:
    """ASHA stops trials after their first round; no test example is there to be read."""
    import ray
    from ray.util import placement_group_table

    from ensemw2s.config import load_config
    from ensemw2s.pipeline.build import build_graph
    from ensemw2s.search import search
    from ensemw2s.search.trial import trial_config

    workplace.take_storage(undisturbed, only_cache=True)
    space = {
        "boosting.rounds": {"integer": [1, 2]},
        "expert.learning_rate": {"choice": [0.005, 0.0045, 0.004, 0.0035]},
    }
    values = {
        **TWO,
        "search": {**SEARCH, "trials": 3, "scheduler": "asha", "seed": 1, "space": space},
        "storage": "runs",
    }
    monkeypatch.chdir(workplace.folder)
    config = load_config(workplace.study(own_jsonl, **values))
    data = build_graph(trial_config(config, {}), search.search_directory(config) / "stages").data
    shutil.copytree(undisturbed.run_folder / "data", data.path)
    nobody_reads(search.search_directory(config))
    found = search.run(config)
    states = [trial.state for trial in found.trials]
    assert len(states) == 3
    assert "stopped" in states
    assert "finished" in states
    until = time.monotonic() + 30
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < until:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"] == 2
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    shown = capsys.readouterr().out
    assert "best: trial" in shown
    assert "Traceback" not in shown


@pytest.mark.long
@pytest.mark.faults
def test_a_search_that_was_killed_goes_on_and_finds_the_same(workplace, undisturbed, own_jsonl) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    study = workplace.study(own_jsonl, **TWO, search=SEARCH)
    folder = workplace.run_folder / "search"
    workplace.faults.plan("boosting/scored@3=hang")
    running = workplace.start("tune", study)
    running.wait_until_reached(workplace.faults, "boosting/scored", 3)
    running.kill()
    refused = workplace.run("tune", study)
    assert refused.code == 2
    assert "holds a search that was stopped: --resume goes on, --fresh begins anew" in refused.text
    nobody_reads(folder)
    made = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/.complete.json")}
    finished = workplace.done("tune", study, "--resume")
    assert "Traceback" not in finished.output
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished stage was made again"
    check(folder)
    assert "nothing to do" in workplace.done("tune", study).text
    # the same search, with nobody disturbing it, comes to the same figures
    found, summary = read(folder)
    shutil.rmtree(folder / "stages")
    workplace.done("tune", study, "--fresh")
    check(folder)
    pd.testing.assert_frame_equal(read(folder)[0], found)
    assert read(folder)[1]["best"] == summary["best"]
    # and what it chose is a config like another
    assert "120 to train" in workplace.done("plan", folder / "best.yaml").text


@pytest.mark.long
def test_a_students_search_trains_students_on_the_best_ensembles_labels(workplace, undisturbed, own_jsonl) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    space = {
        "boosting.rounds": {"integer": [1, 2]},
        "expert.epochs": {"choice": [6, 7]},
        "student.learning_rate": {"log_uniform": [0.001, 0.01]},
    }
    search = {**SEARCH, "space": space, "objective": "student", "trials": 2, "validation": "hard"}
    values = {"search": search, "data.sizes.hard_validation": 20, "data.sizes.hard_unlabelled": 40}
    workplace.done("tune", workplace.study(own_jsonl, **values))
    folder = workplace.run_folder / "search"
    found = pd.read_parquet(folder / "trials.parquet")
    assert found["final"].tolist() == [False, False, True] * 2
    best = json.loads((folder / "search.json").read_text())["best"]
    assert best["value"] == found[found["final"]]["value"].max()
    assert set(best["point"]) == {"expert.epochs", "student.learning_rate"}
