"""Checkpoints on disk, and trainings that were cut off and go on from them."""

import errno
import itertools
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ensemw2s.config import Lora
from ensemw2s.errors import ArtifactError
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Description
from ensemw2s.training import checkpoints, loop
from ensemw2s.training.records import SoFar, TrainRecord
from ensemw2s.training.spec import Start, TrainSpec

CPU = torch.device("cpu")
DESCRIPTION = Description(stage="a", settings={"expert.epochs": 2}, inputs={})


def save(folder: Path, step: int, description: Description = DESCRIPTION, **tensors: torch.Tensor) -> Path:
    return checkpoints.save(folder, description, so_far=SoFar(step=step, losses=(0.5,)), tensors=tensors.items())


def test_the_newest_checkpoint_comes_back_and_the_one_before_it_stays(tmp_path):
    assert checkpoints.newest(tmp_path, DESCRIPTION) is None
    for step in (3, 12, 200):
        save(tmp_path, step, a=torch.full((2, 3), float(step)), b=torch.arange(4))
    found = checkpoints.newest(tmp_path, DESCRIPTION)
    assert found.so_far == SoFar(step=200, losses=(0.5,))
    assert set(found.files) == {"a", "b"}
    torch.testing.assert_close(found.tensor("a"), torch.full((2, 3), 200.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000012", "step-000000200"]


def test_tensors_are_divided_among_files_and_taken_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SHARD", 100)
    alive: list[int] = []

    def tensors():
        for i in range(6):
            alive.append(i)
            yield f"t{i}", torch.full((20,), float(i))

    checkpoints.save(tmp_path, DESCRIPTION, so_far=SoFar(step=1), tensors=tensors())
    found = checkpoints.newest(tmp_path, DESCRIPTION)
    assert len(set(found.files.values())) == 3
    assert [found.tensor(f"t{i}")[0].item() for i in range(6)] == list(range(6))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "half a file": lambda path: truncate(path / "tensors-00000.safetensors"),
    "a flipped bit": lambda path: flip(path / "tensors-00000.safetensors"),
    "a missing file": lambda path: (path / "tensors-00000.safetensors").unlink(),
    "half a manifest": lambda path: truncate(path / checkpoints.MANIFEST),
    "no manifest": lambda path: (path / checkpoints.MANIFEST).unlink(),
    "another manifest": lambda path: (path / checkpoints.MANIFEST).write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog, damage):
    save(tmp_path, 1, a=torch.ones(3))
    damage(save(tmp_path, 2, a=torch.zeros(3)))
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest(tmp_path, DESCRIPTION)
    assert found.step == 1
    assert found.tensor("a").tolist() == [1, 1, 1]
    assert "step-000000002 is damaged and not used" in caplog.text


def test_a_checkpoint_of_another_config_is_refused_with_the_difference(tmp_path):
    save(tmp_path, 1, a=torch.ones(3))
    other = DESCRIPTION.model_copy(update={"settings": {"expert.epochs": 3}})
    for look in (checkpoints.check, checkpoints.newest):
        with pytest.raises(ArtifactError, match=r"expert\.epochs was 2, is 3.*--fresh"):
            look(tmp_path, other)


def test_a_checkpoint_that_cannot_be_written_leaves_the_ones_before(tmp_path, monkeypatch):
    save(tmp_path, 1, a=torch.ones(3))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 2, a=torch.zeros(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


class Cut(Exception):
    """The end of a process, as far as a training can tell."""


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "zero-0": {"zero_stage": 0},
    "zero-2": {"zero_stage": 2},
    "zero-3": {"zero_stage": 3},
    "bf16": {"precision": "bf16"},
    "bf16-zero-3": {"precision": "bf16", "zero_stage": 3},
    "offload": {"zero_stage": 1, "offload": "optimizer"},
    "offload-zero-3": {"zero_stage": 3, "offload": "parameters"},
    "adapters-with-dropout": {"lora": True},
    "best": {"keep": "best", "recipe": {"learning_rate": 0.03, "epochs": 3}},
}


@pytest.fixture
def make(workshop, tmp_path):
    def make(kind: str, name: str, **fields: Any) -> TrainSpec:
        options = {"checkpoint_seconds": 0, **KINDS[kind], **fields}
        if options.pop("lora", False):
            options["start"] = Start(path=str(workshop.base), lora=Lora(rank=4, dropout=0.2))
        if options.get("keep") == "best":
            options["validation"] = str(workshop.validation)
        return workshop.spec(kind, output=str(tmp_path / name), **options)

    return make


def train(spec: TrainSpec, *, cut: int = 0, **options: Any) -> list[int]:
    """The steps that were done; with `cut`, as far as a process gets that ends after this one."""
    steps = []

    def on_step(_: str, done: int, total: int, loss: torch.Tensor) -> None:
        steps.append(done)
        if done == cut:
            raise Cut

    if cut:
        with pytest.raises(Cut):
            loop.train(spec, device=CPU, on_step=on_step, **options)
    else:
        loop.train(spec, device=CPU, on_step=on_step, **options)
    return steps


def weights(spec: TrainSpec) -> dict[str, torch.Tensor]:
    [file] = Path(spec.output).glob("*.safetensors")
    return load_file(file)


def same(spec: TrainSpec, other: TrainSpec) -> bool:
    a, b = weights(spec), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


FACTS = ("steps", "loss", "validation_exact_match", "kept_epoch", "tokens_trained")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_cut_off_ends_with_the_same_weights(make, kind):
    whole, cut = make(kind, "whole", checkpoint_seconds=None), make(kind, "cut")
    steps = train(whole)
    at = len(steps) - 2  # in the last epoch, in which best has a better one behind it
    assert train(cut, cut=at) == steps[:at]
    assert train(cut, cut=at + 1) == [at, at + 1]  # the step that was cut off is done again
    assert train(cut) == [at + 1, at + 2]
    assert same(cut, whole)
    facts, expected = (TrainRecord.read(Path(spec.output)) for spec in (cut, whole))
    for fact in FACTS:
        assert getattr(facts, fact) == pytest.approx(getattr(expected, fact), abs=2e-6), fact
    assert not checkpoints.folder_of(Path(cut.output)).exists()
    assert not train(cut)


@pytest.mark.slow
def test_a_training_goes_on_with_another_way_of_dividing_it(make):
    whole = make("plain", "whole")
    train(whole)
    for before, after in (("zero-0", "zero-3"), ("zero-3", "zero-2"), ("zero-2", "zero-0")):
        name = f"{before}-{after}"
        cut = make(before, name, fingerprint=Description(stage=name))
        train(cut, cut=4)
        train(cut.model_copy(update={"zero_stage": KINDS[after]["zero_stage"]}))
        a, b = weights(cut), weights(whole)
        assert max(float((a[key] - b[key]).abs().max()) for key in b) < 1e-5


@pytest.mark.slow
def test_damaged_checkpoints_cost_steps_and_nothing_else(make):
    whole, cut = make("plain", "whole"), make("plain", "cut")
    train(whole)
    train(cut, cut=5)
    folder = checkpoints.folder_of(Path(cut.output))
    flip(folder / "step-000000004" / "tensors-00000.safetensors")
    (folder / ".working-000000005").mkdir()
    assert train(cut) == [4, 5, 6]
    assert same(cut, whole)


@pytest.mark.slow
def test_a_full_disk_costs_the_checkpoint_and_not_the_training(make, monkeypatch, caplog):
    whole, cut = make("plain", "whole", checkpoint_seconds=None), make("plain", "cut")
    train(whole)
    write, times = checkpoints._write_shard, itertools.count(1)

    def full(file: Path, shard: dict[str, torch.Tensor]) -> None:
        if next(times) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(file, shard)

    monkeypatch.setattr(checkpoints, "_write_shard", full)
    with caplog.at_level(logging.WARNING):
        train(cut, cut=4)
    assert "no checkpoint at step 1: [Errno 28] No space left" in caplog.text
    assert train(cut) == [4, 5, 6]
    assert same(cut, whole)


@pytest.mark.slow
def test_another_config_does_not_go_on_from_a_checkpoint(make):
    cut = make("plain", "cut")
    train(cut, cut=3)
    other = Description(stage="plain", settings={"expert.epochs": 9})
    with pytest.raises(ArtifactError, match=r"expert\.epochs was None, is 9"):
        train(cut.model_copy(update={"fingerprint": other}))


@pytest.mark.slow
def test_checkpoints_are_told_of_and_come_by_the_clock(make, monkeypatch):
    told = []
    train(make("plain", "a"), on_checkpoint=lambda *facts: told.append(facts))
    assert not told, "within the first five seconds"
    monkeypatch.setattr(loop, "LOOK", 0.0)
    spec = make("plain", "c")
    train(spec, on_checkpoint=lambda *facts: told.append(facts))
    assert told == [(checkpoints.folder_of(Path(spec.output)), step) for step in range(1, 6)]
    told.clear()
    train(make("plain", "b", checkpoint_seconds=1000), on_checkpoint=lambda path, step: told.append(step))
    assert not told


def test_a_machine_that_is_about_to_leave_is_answered_with_one_checkpoint(make, monkeypatch):
    monkeypatch.setattr(loop, "LOOK", 0.0)
    answers, told = iter([False, False, True]), []
    train(
        make("plain", "a", checkpoint_seconds=1000),
        leaving=lambda: next(answers),
        on_checkpoint=lambda path, step: told.append(step),
    )
    assert told == [2]


def test_in_object_storage_the_objects_are_the_checkpoints(bucket, tmp_path, monkeypatch):
    folder = remote.local(f"s3://{bucket.name}/runs/small/.checkpoints-0")
    for step in (3, 12, 200):
        save(folder, step, a=torch.full((2, 3), float(step)))
    assert remote.names(folder) == {"step-000000012", "step-000000200"}
    bucket.client.delete_object(
        Bucket=bucket.name, Key=f"runs/small/.checkpoints-0/step-000000200/{checkpoints.MANIFEST}"
    )
    assert checkpoints.newest(folder, DESCRIPTION).step == 12, "what is here alone counts, though others do not see it"
    monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / "other machine"))
    folder = remote.local(f"s3://{bucket.name}/runs/small/.checkpoints-0")
    found = checkpoints.newest(folder, DESCRIPTION)
    torch.testing.assert_close(found.tensor("a"), torch.full((2, 3), 12.0))
    with pytest.raises(ArtifactError, match=rf"s3://{bucket.name}/\S+/step-000000012 is of a training with another"):
        checkpoints.check(folder, DESCRIPTION.model_copy(update={"stage": "b"}))
    checkpoints.discard(folder)
    assert bucket.objects() == {}


def test_a_checkpoint_that_cannot_be_uploaded_is_an_error_of_the_system_and_leaves_the_others(bucket, monkeypatch):
    folder = remote.local(f"s3://{bucket.name}/runs/small/.checkpoints-0")
    save(folder, 3, a=torch.zeros(2))

    def refuse(*_):
        raise OSError("the network is gone")

    with monkeypatch.context() as patch:
        patch.setattr(remote, "_copy", refuse)
        with pytest.raises(OSError, match="the network is gone"):
            save(folder, 12, a=torch.ones(2))
    assert checkpoints.newest(folder, DESCRIPTION).step == 3
