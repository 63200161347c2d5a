"""Whole searches on a real Ray: every size is measured, a kill loses nothing, and the tests' examples stay unread."""

import json
import shutil

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
        "expert.epochs": {"choice": [2, 6]},
        "ensemble.combine": {"choice": ["probability", "log_probability"]},
    },
}
FACTS = ["trial", "rounds", "value", "exact_match", "token_accuracy", "nll", "best_rounds"]


def rows(place) -> pd.DataFrame:
    found = pd.read_parquet(place.run_folder / "search" / "trials.parquet")
    assert (found["state"] == "finished").all()
    return found[[*FACTS, "expert.epochs", "ensemble.combine"]].sort_values(["trial", "rounds"]).reset_index(drop=True)


def test_a_search_that_was_killed_goes_on_and_finds_the_same(workplace, undisturbed, own_jsonl) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    study = workplace.study(own_jsonl, search=SEARCH)
    folder = workplace.run_folder / "search"
    running = workplace.start("tune", study)
    running.wait_for("two rounds", lambda: len(list(folder.glob("stages/rounds-*/round.json"))) >= 2)
    running.kill()
    refused = workplace.run("tune", study)
    assert refused.code == 2
    assert "holds a search that was stopped: --resume goes on, --fresh begins anew" in refused.text
    # no test example is read after the splits are made
    for path in folder.glob("stages/data-*/*_test.parquet"):
        path.write_bytes(b"nobody reads this")
    for path in folder.glob("stages/data-*/hard_*.parquet"):
        path.write_bytes(b"nor this")
    made = {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/.complete.json")}
    finished = workplace.done("tune", study, "--resume")
    assert {path: path.stat().st_mtime_ns for path in made} == made, "a finished stage was made again"
    found = rows(workplace)
    assert found["rounds"].tolist() == [1, 2] * 4, "every size of every trial"
    distinct = found.groupby("expert.epochs").ngroups
    assert len(list(folder.glob("stages/rounds-1-experts-0-*/train.json"))) == distinct, "equal rounds are made once"
    summary = json.loads((folder / "search.json").read_text())
    best = found.sort_values(["value", "rounds", "trial"], ascending=[False, True, True]).iloc[0]
    assert (summary["best"]["trial"], summary["best"]["rounds"]) == (best["trial"], best["rounds"])
    assert f"best: trial {best['trial']} with {best['rounds']} rounds" in finished.text
    assert {path.name for path in (folder / "plots").iterdir()} >= {"sizes.png", "parallel.png"}
    chosen = yaml.safe_load((folder / "best.yaml").read_text())
    assert chosen["boosting"]["rounds"] == best["rounds"]
    assert chosen["expert"]["epochs"] == best["expert.epochs"]
    assert "nothing to do" in workplace.done("tune", study).text
    # the same search, with nobody disturbing it, comes to the same figures
    stages = folder / "stages"
    shutil.rmtree(stages)
    workplace.done("tune", study, "--fresh")
    pd.testing.assert_frame_equal(rows(workplace), found)
    # and what it chose is a config like another
    assert "easy_train" in workplace.done("plan", folder / "best.yaml").text


@pytest.mark.long
def test_a_students_search_trains_students_on_the_best_ensembles_labels(workplace, undisturbed, own_jsonl) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    space = {**SEARCH["space"], "student.learning_rate": {"log_uniform": [0.001, 0.01]}}
    search = {**SEARCH, "space": space, "objective": "student", "trials": 2, "validation": "hard"}
    values = {"search": search, "data.sizes.hard_validation": 20, "data.sizes.hard_unlabelled": 40}
    workplace.done("tune", workplace.study(own_jsonl, **values))
    found = pd.read_parquet(workplace.run_folder / "search" / "trials.parquet")
    assert found["final"].tolist() == [False, False, True] * 2
    best = json.loads((workplace.run_folder / "search" / "search.json").read_text())["best"]
    final = found[found["final"]]
    assert best["value"] == final["value"].max()
    assert set(best["point"]) == {"expert.epochs", "ensemble.combine", "student.learning_rate"}
