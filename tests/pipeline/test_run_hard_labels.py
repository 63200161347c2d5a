"""True answers to hard prompts are read by the ceiling and the evaluation alone: wrong ones change nothing else.

The run with wrong ones is killed at random besides, which must change nothing either.
"""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from .test_run_faults import kill_at_random

pytestmark = [pytest.mark.ray, pytest.mark.e2e, pytest.mark.faults]

MADE = (
    "data/easy_*.parquet",
    "data/id_test.parquet",
    "data/hard_unlabelled.parquet",
    "rounds/**/*.safetensors",
    "rounds/*/errors.parquet",
    "baselines/**/*.safetensors",
    "baselines/**/*.parquet",
    "ensemble/**/*.safetensors",
    "labels/*.parquet",
    "tokens/**/*.parquet",
    "students/**/*.safetensors",
)


@pytest.fixture
def corrupted(own_jsonl, tmp_path) -> Path:
    """The same file with the answers of all hard rows turned round, and one of their tokens changed."""
    rows = [json.loads(line) for line in own_jsonl.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        if row["level"] == 4:
            row["reply"] = " ".join([*row["reply"].split()[::-1][:3], "7"])
    path = tmp_path / "corrupted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_wrong_hard_answers_and_a_kill_change_the_ceiling_and_nothing_else(undisturbed, workplace, corrupted) -> None:
    study = workplace.study(corrupted, **{"training.checkpoint_seconds": 0.3})
    kill_at_random(workplace, study, seed=1, kills=1)
    assert not (workplace.run_folder / "results.json").exists()
    workplace.done("run", study)
    truths, lies = (pq.read_table(p.run_folder / "data" / "hard_labels.parquet") for p in (undisturbed, workplace))
    assert truths["id"] == lies["id"]
    assert sum(a != b for a, b in zip(truths["answer"], lies["answer"], strict=True)) > 50

    before, after = undisturbed.files(*MADE), workplace.files(*MADE)
    assert before.keys() == after.keys()
    assert sum(name.startswith("students/") for name in before) == 6
    assert sum(name.startswith("baselines/") and name.endswith(".safetensors") for name in before) == 5
    assert {name for name in before if before[name] != after[name]} == {
        "tokens/students/student_ceiling/train.parquet",
        "students/student_ceiling/model.safetensors",
    }
