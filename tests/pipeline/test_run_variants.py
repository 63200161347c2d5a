"""Whole runs of the method's other choices. Each run takes several, so that all of them meet the real engines once."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from ensemw2s.boosting.masks import read_mask
from ensemw2s.ensemble.artifact import Ensemble
from ensemw2s.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS

pytestmark = [pytest.mark.ray, pytest.mark.e2e]

SYSTEMS = ["ensemw2s", "student_ensemw2s"]
IDLE = 1e-9
"""A learning rate with which nothing is learned."""

TEMPLATED = {
    "kind": "reasoning_gym",
    "dataset": "number_sorting",
    "easy": {"min_numbers": 3, "max_numbers": 3, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 9},
    "hard": {"min_numbers": 4, "max_numbers": 4, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 9},
    "columns": {
        "prompt": "{{ metadata.direction }} {{ metadata.original_numbers | join(' ') | replace('.0', '') }} =",
        "answer": "{{ metadata.sorted_numbers | join(' ') | replace('.0', '') }}",
    },
}


@pytest.mark.long
def test_committees_of_experts_on_windows_with_a_round_that_fails_and_is_tried_again(workplace, own_jsonl) -> None:
    """Generated data, split at random; width 2 with members, windows, bootstrap, the ensemble's errors, retry."""
    study = workplace.study(
        own_jsonl,
        **{
            "data.source": TEMPLATED,
            "data.split": {"mode": "random"},
            "models.pretraining.corpus.weak_task_fraction": 0.0,
            "expert.epochs": 16,
            "boosting": {
                "rounds": 3,
                "width": 2,
                "unit": "window",
                "window": 2,
                "shrinkage": 1.0,
                "weighting": "bootstrap",
                "error_from": "ensemble",
                "on_failure": "retry",
                "members": [
                    {"model": "weak-1"},
                    {"model": "weak-0", "learning_rate": 0.004, "epochs": 20},
                    {"learning_rate": IDLE, "epochs": 1},
                    {"learning_rate": IDLE, "epochs": 1},
                ],
            },
            "ensemble.combine": "vote",
            "student.keep_fraction": 0.5,
            "student.mix_easy": False,
            "student.objective": "xent",
            "evaluation.systems": SYSTEMS,
        },
    )
    finished = workplace.done("run", study)
    first, second = workplace.json("results.json")["rounds"]
    assert "tried again with uniform weights" in finished.text

    assert first["accepted"]
    assert [e["base"] for e in first["experts"]] == ["weak-1", "weak-0"]
    assert sum(e["weight"] for e in first["experts"]) == pytest.approx(first["alpha"])
    epochs = [workplace.json(f"rounds/1/experts/{k}/train.json")["epochs"] for k in (0, 1)]
    assert epochs == [16, 20]
    errors = {column: mask(workplace, 1, column) for column in ("round", "expert_0", "expert_1")}
    assert errors["expert_0"].mean() == pytest.approx(first["experts"][0]["error"])
    assert not (errors["round"] & ~(errors["expert_0"] | errors["expert_1"])).any(), "a vote made an error of its own"

    assert (second["accepted"], second["reset"]) == (False, True)
    assert [e["name"] for e in second["experts"]] == ["rounds/2/experts/0-retry", "rounds/2/experts/1-retry"]
    assert second["weights"]["min"] == second["weights"]["max"] == pytest.approx(1)
    assert not (workplace.run_folder / "rounds" / "3").exists(), "boosting went on after a round without a vote"

    ensemble = Ensemble.from_pretrained(workplace.run_folder / "ensemble")
    assert [m.name for m in ensemble.members] == ["round-1-expert-0", "round-1-expert-1"]
    assert ensemble.manifest.combine == "vote"
    labels = workplace.json("results.json")["labels"]["ensemw2s"]
    usable = labels["finish_reasons"].get("stop", 0)
    learned = pq.read_table(workplace.run_folder / "tokens" / "students" / "student_ensemw2s" / "train.parquet")
    assert 0 < len(learned) <= round(0.5 * usable)


@pytest.mark.long
def test_adapters_on_a_local_model_that_warm_start_and_soft_labels(undisturbed, workplace, own_jsonl) -> None:
    """LoRA, two workers with ZeRO 2, prior pretrained, warm start, a skipped round, fitted votes, soft labels."""
    pretrained = undisturbed.json("manifest.json")["fingerprints"]["models/weak-0"][:16]
    base = undisturbed.storage / "cache" / f"models-{pretrained}"
    study = workplace.study(
        own_jsonl,
        **{
            "data.source.columns": {"prompt": "question", "answer": "reply"},
            "data.split": {
                "mode": "difficulty",
                "difficulty_from": "reference_loss",
                "reference": {"folds": 2, "epochs": 2, "learning_rate": 0.005},
            },
            "models.weak": [{"base": str(base), "lora": {"rank": 4}}],
            "models.strong": {"base": str(base)},
            "training": {"workers": 2, "cpus_per_worker": 0.5, "lanes": 1, "zero_stage": 2},
            "boosting": {
                "rounds": 3,
                "prior": "pretrained",
                "warm_start": "previous",
                "on_failure": "skip",
                "members": [{"learning_rate": IDLE, "epochs": 1}, {}, {}],
            },
            "ensemble": {"weights": "stacked", "calibration": "temperature"},
            "labeling.soft_top_k": 4,
            "student.objective": "soft",
            "evaluation.systems": SYSTEMS,
        },
    )
    finished = workplace.done("run", study)
    rounds = workplace.json("results.json")["rounds"]
    assert [r["accepted"] for r in rounds] == [False, True, True]
    assert rounds[0]["alpha"] == 0, "what learned nothing must be exactly as good as its base"
    assert rounds[0]["weighted_error"] == rounds[0]["reference_error"]
    assert all(r["weighted_error"] < r["reference_error"] for r in rounds[1:])
    assert rounds[2]["experts"][0]["train_loss"] < rounds[1]["experts"][0]["train_loss"], "the warm start was cold"

    for t in (1, 2, 3):
        folder = workplace.run_folder / "rounds" / str(t) / "experts" / "0"
        assert (folder / ADAPTER_CONFIG).exists()
        assert not (folder / "model.safetensors").exists()
        with safe_open(folder / ADAPTER_WEIGHTS, "np") as adapter:
            assert all("lora_" in name for name in adapter.keys())  # noqa: SIM118
        facts = workplace.json(f"rounds/{t}/experts/0/train.json")
        assert (facts["workers"], facts["zero_stage"]) == (2, 2)
        assert facts["trained_parameters"] < facts["parameters"] / 2

    ensemble = Ensemble.from_pretrained(workplace.run_folder / "ensemble")
    members, results = ensemble.manifest.members, workplace.json("results.json")
    assert [m.name for m in members] == ["round-1-expert-0", "round-2-expert-0", "round-3-expert-0"]
    assert members[0].weight == 0
    assert sum(m.weight for m in members) == pytest.approx(1)
    assert all(0.25 <= m.temperature <= 4 and m.temperature != 1 for m in members[1:])
    experts = [expert for entry in results["rounds"] for expert in entry["experts"]]
    assert [(e["weight"], e["temperature"]) for e in experts] == [(m.weight, m.temperature) for m in members]
    assert results["fit"] == workplace.json("ensemble/fit.json")
    assert results["fit"]["nll"]["after"]["fitted"] < results["fit"]["nll"]["before"]["fitted"]
    assert results["fit"]["examples"] == {"fitted": 20, "held_out": 20}
    assert results["validation"]["ensemw2s"]["n"] == 20, "the half that votes were fitted on judges nobody"
    assert results["validation"]["ensemw2s"]["nll"] == pytest.approx(
        results["fit"]["nll"]["after"]["held_out"], rel=1e-3
    )
    assert "  votes: " in finished.output

    labels = pq.read_table(sorted((workplace.run_folder / "labels").glob("part-*.parquet"))).to_pylist()
    for row in labels:
        assert len(row["top_tokens"]) == len(row["top_logprobs"]) == row["n_tokens"]
        assert all(len(tokens) == 4 for tokens in row["top_tokens"])
        assert [tokens[0] for tokens in row["top_tokens"]] == row["token_ids"], "greedy is not the most likely token"

    data = workplace.run_folder / "data"
    easy, hard = (pq.read_table(data / f"{name}.parquet")["difficulty"].to_numpy() for name in ("id_test", "ood_test"))
    assert np.isfinite([*easy, *hard]).all()
    assert easy.max() < hard.min()
    assert not (workplace.run_folder / ".reference").exists()


@pytest.mark.long
def test_students_label_for_a_next_generation_and_a_run_goes_on_from_any_of_their_stages(workplace, own_jsonl) -> None:
    """Two generations of two students, adapters on the strong base, soft labels; the rivals on request."""
    systems = [
        "base_ensemble", "expert_single", "deep_ensemble", "ensemw2s",
        "student_deep_ensemble", "student_ensemw2s", "student_generations", "student_ceiling",
    ]  # fmt: skip
    study = workplace.study(
        own_jsonl,
        **{
            "models.strong": {"base": "tiny-strong", "lora": {"rank": 4}},
            "labeling.soft_top_k": 4,
            "student.objective": "soft",
            "student.generations": 3,
            "student.generation_width": 2,
            "evaluation.systems": systems,
        },
    )
    workplace.done("run", study)
    results = workplace.json("results.json")
    assert list(results["systems"]) == systems
    assert results["labels"].keys() == {"ensemw2s", "deep_ensemble", "generation_1", "generation_2"}
    assert results["pgr"].keys() == {"student_deep_ensemble", "student_ensemw2s", "student_generations"}
    assert results["systems"]["base_ensemble"]["cost"]["tokens_trained"] == 0
    assert results["systems"]["deep_ensemble"]["cost"]["tokens_trained"] > 0
    assert {s["name"] for s in results["stages"]} >= {"students", "generations/1", "generations/2"}
    for number, facts in enumerate(results["generations"], 1):
        folder = workplace.run_folder / "generations" / str(number)
        ensemble = Ensemble.from_pretrained(folder / "ensemble")
        assert [(m.name, m.weight) for m in ensemble.members] == [("student-0", 1.0), ("student-1", 1.0)]
        weights = {(folder / "students" / k / ADAPTER_WEIGHTS).read_bytes() for k in "01"}
        assert len(weights) == 2, "students of different seeds are the same"
        trained = [workplace.json(f"generations/{number}/students/{k}/train.json")["tokens_trained"] for k in (0, 1)]
        assert (facts["students"], facts["tokens_trained"]) == (2, sum(trained))
        labels = pq.read_table(sorted((folder / "labels").glob("part-*.parquet")))
        assert (len(labels), set(map(len, labels["top_tokens"][0].as_py()))) == (60, {4})

    made = ("generations/**/*.safetensors", "generations/**/part-*.parquet", "students/**/*.safetensors")
    before = workplace.files(*made)
    for lost in ("generations/1/labels", "generations/2/students/1", "generations/2/ensemble", "evaluation"):
        shutil.rmtree(workplace.run_folder / lost)
    workplace.done("run", study)
    assert workplace.files(*made) == before
    again = workplace.json("results.json")
    assert [again["systems"][name]["ood"] for name in systems] == [results["systems"][name]["ood"] for name in systems]
    ran = {stage["name"] for stage in again["stages"] if stage["status"] == "ran"}
    assert ran == {"generations/1", "generations/2", "evaluation"}


def mask(workplace, number: int, column: str) -> np.ndarray:
    return read_mask(workplace.run_folder / "rounds" / str(number) / "errors.parquet", column)
