"""A whole study on a real Ray: cells share what they can, a kill loses nothing, a cell that fails ends no other."""

import json

import pyarrow.parquet as pq
import pytest
import yaml

from ensemw2s.study.rows import CHOSEN, SCHEMA

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

WEAK = {
    "base_zero_shot", "base_ensemble", "expert_single", "expert_compute_matched", "deep_ensemble", "ensemw2s", CHOSEN,
}  # fmt: skip
"""Of every cell, whatever its config asks for."""

SYSTEMS = ["base_zero_shot", "sequence_vote", "student_ensemw2s", "student_ceiling"]


@pytest.fixture
def write(workplace, own_jsonl):
    """Writes a study on the small config: as many cells at a time as lanes."""

    def to_file(systems=("ensemw2s",), lanes=2, **values):
        base = yaml.safe_load(workplace.study(own_jsonl, **{"training.lanes": lanes}).read_text(encoding="utf-8"))
        base["evaluation"]["systems"] = list(systems)
        path = workplace.folder / "study.yaml"
        tree = {"name": "small", "storage": str(workplace.storage), "base": base, **values}
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    return to_file


def made(folder) -> dict:
    """Marker → when it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/.complete.json")}


# experts of one epoch are wrong more often than not, so that none has a vote
DULL = {"expert.epochs": 1}


# a second lane, and a failing cell that comes first, cost more starts of processes
@pytest.mark.parametrize(
    ("lanes", "tasks"), [(1, ("own", "dull")), pytest.param(2, ("dull", "own"), marks=pytest.mark.long)]
)
def test_a_cell_that_fails_ends_no_other_and_is_reported(lanes, tasks, workplace, write, undisturbed) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    folder = workplace.storage / "small"
    changes = {"dull": DULL, "own": {}}
    finished = workplace.run("study", write(lanes=lanes, seeds=[1], tasks={name: changes[name] for name in tasks}))
    assert finished.code == 1, finished.output
    assert "1 of 2 cells failed" in finished.text
    assert "(dull, default, seed 1): no round gave an expert with a positive alpha" in finished.text
    assert "Traceback" not in finished.output
    rows = pq.read_table(folder / "study.parquet").to_pylist()
    assert {row["system"] for row in rows} == WEAK
    assert {row["task"] for row in rows} == {"own"}
    assert "dull, default, seed 1" in (folder / "study.html").read_text(encoding="utf-8")
    again = workplace.done("study", write(lanes=lanes, seeds=[1], tasks={"own": {}}))
    assert "nothing to do" in again.text


@pytest.mark.long
@pytest.mark.faults
def test_a_study_shares_stages_and_goes_on_after_a_kill(workplace, write, undisturbed) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    study = write(SYSTEMS, seeds=[1], variants={"vote": {"ensemble.combine": "vote"}})
    folder = workplace.storage / "small"
    workplace.faults.plan("boosting/scored@2=die")
    workplace.start("study", study).killed()
    before = made(folder)
    assert any("rounds-1-" in str(path) for path in before)
    workplace.done("study", study)
    after = made(folder)
    assert {path: after[path] for path in before} == before, "a finished stage was made again"
    experts = [json.loads(p.read_text()) for p in folder.glob("stages/rounds-*-experts-*/train.json")]
    assert [e["epochs"] for e in experts] == [8, 8], "equal rounds are made once"
    rows = pq.read_table(folder / "study.parquet")
    assert rows.schema == SCHEMA
    check_rows(rows.to_pylist())
    assert "nothing to do" in workplace.done("study", study).text
    assert made(folder) == after


def check_rows(rows: list[dict]) -> None:
    """Both cells that finished have every system that a gain counts against, with costs and common errors."""
    students = {"student_easy_only", "student_single", "student_base_ensemble", "student_deep_ensemble"}
    systems = WEAK | {*SYSTEMS} | students
    for variant in ("default", "vote"):
        own = {(row["system"], row["split"]): row for row in rows if row["variant"] == variant}
        assert {system for system, split in own if split == "ood"} == systems
        ours = own["ensemw2s", "id"]
        assert ours["curve"][-1] == ours["exact_match"], (
            "an answer is right under teacher forcing if greedy decoding gives it"
        )
        assert (ours["n"], ours["rounds"], len(ours["curve"])) == (40, 2, 2)
        assert 0 < ours["member_token_accuracy"] < 1
        assert -1 <= ours["error_correlation"] <= 1
        validation = own["ensemw2s", "validation"]["curve"]
        chosen = own[CHOSEN, "id"]
        assert chosen["rounds"] == 1 + validation.index(max(validation))
        assert chosen["exact_match"] == ours["curve"][chosen["rounds"] - 1]
        student = own["student_ensemw2s", "ood"]
        assert student["supervision_trained"] == ours["tokens_trained"]
        assert student["tokens_labelled"] > 0
        assert own["expert_compute_matched", "id"]["tokens_trained"] == ours["tokens_trained"]
