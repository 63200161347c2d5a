"""Files that trainings leave: those of an older run are read, and what is written comes back."""

import json
from pathlib import Path

import pytest

from ensemw2s.errors import ArtifactError
from ensemw2s.storage.store import Description
from ensemw2s.training.records import CheckpointRecord, SoFar, TrainRecord

OLDER = Path(__file__).parents[1] / "older_run/rounds/1/experts/0"

OLDER_CHECKPOINT = {
    "description": {"stage": "a", "settings": {"expert.epochs": 2, "expert.lora": None}, "inputs": {"tokens": "abc"}},
    "step": 9,
    "facts": {"step": 9, "losses": [0.5], "validation": [], "kept_epoch": 0, "loss": 1.25, "seconds": 3.5},
    "files": {"tensors-00000.safetensors": "0f"},
}


def test_the_training_of_an_older_run_is_read_and_written_as_it_was(tmp_path):
    record = TrainRecord.read(OLDER)
    assert (record.name, record.epochs, len(record.loss)) == ("rounds/1/experts/0", 6, 6)
    record.write(tmp_path)
    assert (tmp_path / "train.json").read_text() == (OLDER / "train.json").read_text()


def test_a_record_that_lacks_a_field_is_named(tmp_path):
    facts = json.loads((OLDER / "train.json").read_text())
    del facts["loss"]
    (tmp_path / "train.json").write_text(json.dumps(facts))
    with pytest.raises(ArtifactError, match=r"train\.json is damaged \(loss: Field required\): delete its folder"):
        TrainRecord.read(tmp_path)


def test_keys_of_a_later_version_are_skipped(tmp_path):
    facts = json.loads((OLDER / "train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(facts | {"colour": "red"}))
    assert TrainRecord.read(tmp_path) == TrainRecord.read(OLDER)


def test_a_checkpoint_of_an_older_run_is_read_and_written_as_it_was():
    record = CheckpointRecord.model_validate(OLDER_CHECKPOINT)
    assert record.description == Description(
        stage="a", settings={"expert.epochs": 2, "expert.lora": None}, inputs={"tokens": "abc"}
    )
    assert record.facts == SoFar(step=9, losses=(0.5,), loss=1.25, seconds=3.5)
    assert record.model_dump(mode="json") == OLDER_CHECKPOINT
