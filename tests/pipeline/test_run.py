"""A whole run from the command line: what it leaves, that it is not done twice, and what a changed setting redoes."""

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ensemw2s.config import SYSTEMS
from ensemw2s.ensemble.artifact import Ensemble
from ensemw2s.evaluation.wording import label
from ensemw2s.pipeline.clean import clean

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

METRICS = {"exact_match", "forced_exact_match", "token_accuracy", "nll", "n", "ci95", "option_accuracy"}
LABELS_CONTRACT = [
    "id", "prompt", "answer", "token_ids", "logprob", "agreement", "vote_entropy", "n_tokens", "finish_reason",
    "token_agreement", "token_entropy",
]  # fmt: skip


@pytest.fixture
def taken_over(undisturbed, workplace):
    """A copy of the finished run in another place."""
    workplace.take_storage(undisturbed)
    return workplace


def test_results_have_every_system_and_part(undisturbed) -> None:
    results = undisturbed.json("results.json")
    assert list(results["systems"]) == list(SYSTEMS)
    for name, figures in results["systems"].items():
        assert set(figures) == {"id", "ood", "cost"}
        for split in ("id", "ood"):
            assert set(figures[split]) == METRICS
            assert figures[split]["n"] == 40
            low, high = figures[split]["ci95"]
            assert 0 <= low <= figures[split]["exact_match"] <= high <= 1
            assert (figures[split]["nll"] is None) == (name == "sequence_vote")
        assert figures["cost"]["tokens_decoded"] > 0
        assert (figures["cost"]["tokens_trained"] > 0) == (name not in ("base_zero_shot", "base_ensemble"))
    assert set(results["pgr"]) == {
        "student_single",
        "student_base_ensemble",
        "student_deep_ensemble",
        "student_ensemw2s",
    }
    for found in results["pgr"].values():
        assert (found["ood"]["value"] is None) == (found["ood"]["reason"] is not None)
    assert {(c["a"], c["b"], c["split"]) for c in results["comparisons"]} >= {
        ("ensemw2s", rival, "ood") for rival in ("base_ensemble", "deep_ensemble")
    }
    assert set(results["bases"]) == {"weak-0", "weak-1"}
    assert set(results["labels"]) == {"ensemw2s", "expert_single", "base_ensemble", "deep_ensemble"}
    assert all(facts["n"] == 60 for facts in results["labels"].values())
    assert len(results["examples"]) == 3
    assert all(len(token["votes"]) == 2 for example in results["examples"] for token in example["tokens"])
    assert {stage["name"] for stage in results["stages"]} >= {"data", "models", "rounds/1", "labels", "evaluation"}
    assert {stage["status"] for stage in results["stages"]} == {"ran"}


def test_every_round_is_in_the_results_as_it_was_left(undisturbed) -> None:
    results = undisturbed.json("results.json")
    assert results["rounds"] == [undisturbed.json(f"rounds/{t}/round.json") for t in (1, 2)]
    assert [r["round"] for r in results["rounds"]] == results["curves"]["rounds"] == [1, 2]
    assert [r["experts"][0]["base"] for r in results["rounds"]] == ["weak-0", "weak-1"]
    assert all(r["alpha"] > 0 and r["accepted"] for r in results["rounds"])
    assert results["rounds"][0]["weights"]["effective_fraction"] == pytest.approx(1)
    assert results["rounds"][1]["weights"]["max"] > 1 > results["rounds"][1]["weights"]["min"]


def test_training_learns(undisturbed) -> None:
    systems = undisturbed.json("results.json")["systems"]
    assert systems["expert_single"]["id"]["exact_match"] > systems["base_zero_shot"]["id"]["exact_match"]
    assert systems["ensemw2s"]["id"]["token_accuracy"] > 0.5


def test_every_hard_prompt_has_exactly_one_label(undisturbed) -> None:
    hard = pq.read_table(undisturbed.run_folder / "data" / "hard_unlabelled.parquet")
    parts = sorted((undisturbed.run_folder / "labels").glob("*.parquet"))
    assert [part.name for part in parts] == [f"part-{start:010d}.parquet" for start in (0, 25, 50)]
    tables = [pq.read_table(part) for part in parts]
    assert tables[0].column_names == LABELS_CONTRACT
    rows = [row for table in tables for row in table.to_pylist()]
    assert [row["id"] for row in rows] == hard["id"].to_pylist()
    assert [row["prompt"] for row in rows] == hard["prompt"].to_pylist()
    for row in rows:
        assert row["n_tokens"] == len(row["token_ids"]) == len(row["token_agreement"])
        assert row["finish_reason"] in ("stop", "length")
        assert row["logprob"] <= 0 < row["agreement"] <= 1 + 1e-6
    assert any(row["answer"] for row in rows)


def test_the_artifact_alone_gives_the_labels(undisturbed, tmp_path) -> None:
    moved = shutil.copytree(undisturbed.run_folder / "ensemble", tmp_path / "elsewhere")
    ensemble = Ensemble.from_pretrained(moved)
    eos = ensemble.tokenizer.eos_token_id
    for row in pq.read_table(undisturbed.run_folder / "labels" / "part-0000000000.parquet").slice(0, 10).to_pylist():
        text = ensemble.tokenizer.bos_token + row["prompt"]
        prompt = ensemble.tokenizer(text, return_tensors="pt", add_special_tokens=False)
        tokens = ensemble.model.generate(**prompt, do_sample=False, max_new_tokens=12, eos_token_id=eos)
        assert tokens[0, prompt["input_ids"].shape[1] :].tolist() == row["token_ids"]
        answer = ensemble.tokenizer.decode(row["token_ids"], skip_special_tokens=True)
        assert answer.strip() == row["answer"]


def test_the_report_is_one_page_that_names_every_system(undisturbed) -> None:
    page = (undisturbed.run_folder / "report.html").read_text(encoding="utf-8")
    assert [name for name in map(label, SYSTEMS) if name not in page] == []
    assert list((undisturbed.run_folder / "plots").glob("*.png"))


def test_the_manifest_says_what_made_the_run(undisturbed) -> None:
    manifest = undisturbed.json("manifest.json")
    assert (manifest["name"], manifest["seed"]) == ("small", 1)
    assert {"ensemw2s", "ray", "torch", "transformers", "deepspeed"} <= manifest["versions"].keys()
    assert "git_commit" in manifest
    assert {"data", "rounds/2", "ensemble", "labels", "students/student_ensemw2s"} <= manifest["fingerprints"].keys()
    stages = {stage["name"]: stage for stage in manifest["stages"]}
    assert all(stage["seconds"] >= 0 and stage["finished"] >= stage["started"] for stage in stages.values())
    assert stages["baselines"]["started"] < stages["rounds/1"]["finished"], "baselines waited for the rounds"
    assert stages["rounds/1"]["started"] < stages["baselines"]["finished"], "the rounds waited for baselines"
    assert manifest["fingerprints"]["evaluation"] == undisturbed.json("results.json")["config_fingerprint"]
    assert not (undisturbed.run_folder / ".ray").exists()


def test_the_same_command_again_does_no_work_and_says_so_for_a_cleaned_run_too(taken_over, own_jsonl) -> None:
    assert {part.name for part in clean(taken_over.run_folder)} == {"rounds", "baselines"}
    before = taken_over.files("**/*")
    finished = taken_over.done("run", taken_over.study(own_jsonl))
    assert "nothing to do" in finished.text
    assert "report.html" in finished.text
    assert taken_over.sessions() == [], "a Ray was started"
    after = taken_over.files("**/*")
    assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= {"config.yaml"}


def test_a_changed_setting_is_refused_and_changes_nothing(taken_over, own_jsonl) -> None:
    before = taken_over.files("**/*")
    finished = taken_over.run("run", taken_over.study(own_jsonl), "--set", "student.learning_rate=0.004")
    assert finished.code == 1
    assert "student.learning_rate was 0.005, is 0.004" in finished.text
    assert "--fresh" in finished.text
    assert taken_over.sessions() == [], "a Ray was started"
    assert taken_over.files("**/*") == before


@pytest.mark.parametrize(
    ("key", "value", "stages", "folders"),
    [
        ("evaluation.bootstrap_samples", 300, {"evaluation"}, ("evaluation",)),
        pytest.param(
            "student.learning_rate", 0.004, {"baselines", "students", "evaluation"}, ("evaluation", "students/"),
            marks=pytest.mark.long,
        ),
    ],
)  # fmt: skip
def test_fresh_redoes_only_what_depends_on_the_changed_setting(
    key, value, stages, folders, taken_over, own_jsonl
) -> None:
    before = stamps(taken_over.run_folder)
    taken_over.done("run", taken_over.study(own_jsonl, **{key: value}), "--fresh")
    after = stamps(taken_over.run_folder)
    assert before.keys() == after.keys()
    redone = {name for name in before if before[name] != after[name]}
    assert redone == {name for name in before if name.startswith(folders)}
    ran = {stage["name"] for stage in taken_over.json("results.json")["stages"] if stage["status"] == "ran"}
    assert ran == stages


def stamps(run_folder: Path) -> dict[str, int]:
    """Stage → when it was finished."""
    found = run_folder.rglob(".complete.json")
    return {path.parent.relative_to(run_folder).as_posix(): path.stat().st_mtime_ns for path in found}


@pytest.mark.long
def test_a_damaged_base_ends_the_run_with_the_reason_and_loses_nothing(undisturbed, workplace, own_jsonl) -> None:
    workplace.take_storage(undisturbed, only_cache=True)
    for weights in workplace.storage.glob("cache/models-*/model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1000])
    finished = workplace.run("run", workplace.study(own_jsonl))
    assert finished.code == 1
    assert "safetensors file is damaged" in finished.text
    assert (workplace.run_folder / "data" / ".complete.json").exists()


def test_every_training_and_the_rounds_have_their_curves(undisturbed) -> None:
    curves = undisturbed.run_folder / "tensorboard"
    trained = [path.parent for path in undisturbed.run_folder.rglob("train.json")]
    assert trained
    for folder in (*(path.relative_to(undisturbed.run_folder) for path in trained), "boosting"):
        [events] = (curves / folder).glob("events.*")
        assert events.stat().st_size > 100
