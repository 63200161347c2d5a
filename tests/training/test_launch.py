"""Lists of training specs on real Ray Train runs: side by side, only once, and what a failure leaves."""

import json
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray

from ensemw2s.cluster.resources import DRIVER, NODE_SHARE
from ensemw2s.config import ClusterConfig, Recipe, TrainingConfig
from ensemw2s.errors import ModelError
from ensemw2s.models import corpus, tiny
from ensemw2s.storage.store import Description
from ensemw2s.training import checkpoints
from ensemw2s.training.spec import Start, Tracking, TrainSpec

pytestmark = pytest.mark.ray

TRAINING = TrainingConfig(cpus_per_worker=0.5, lanes=2, max_failures=2, node_resource=DRIVER)


@pytest.fixture(scope="module")
def _ray_here(ray_environment, faults):
    """A Ray of this process, which notices within seconds that a node is gone; it is gone at the end."""
    from ensemw2s.cluster.connect import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "1000")
        with connect(ClusterConfig(cpus=2, object_store_mb=100)) as resources:
            yield resources


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a table of tokens."""
    folder = tmp_path_factory.mktemp("text")
    documents = [f"{a} {b} -> {max(a, b)} {min(a, b)}" for a in range(10) for b in range(10)]
    tokenizer = tiny.train_tokenizer(documents, 64)
    tokenizer.save_pretrained(folder / "tokenizer")
    pq.write_table(corpus.tokenize_documents(documents, tokenizer, context=64), folder / "documents.parquet")
    return folder


@pytest.fixture
def spec(text, tmp_path):
    def make(name: str, *, epochs: int = 2, base: Path | None = None) -> TrainSpec:
        start = Start(path=str(text / "tokenizer"), tiny="tiny-weak") if base is None else Start(path=str(base))
        return TrainSpec(
            name=name,
            output=str(tmp_path / name),
            fingerprint=Description(stage=name),
            start=start,
            tokens=[str(text / "documents.parquet")],
            recipe=Recipe(epochs=epochs, batch_size=10),
            seed=1,
        )

    return make


@pytest.fixture
def lanes(_ray_here, tmp_path):
    from ensemw2s.training.launch import Lanes

    seen: list[tuple[str, int, int, str]] = []

    def make(keep: bool) -> Lanes:
        return Lanes(TRAINING, 2, tmp_path / "scratch", keep=keep, on_progress=lambda *facts: seen.append(facts))

    make.seen = seen
    return make


@pytest.fixture
def damaged_base(text, tmp_path) -> Path:
    """A base whose weights are cut off."""
    from ensemw2s.models.loading import load_tokenizer, save_trained

    tokenizer = load_tokenizer(text / "tokenizer")
    save_trained(tiny.create_tiny("tiny-weak", tokenizer, 0), tokenizer, tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return tmp_path / "base"


def span(facts: dict) -> tuple[float, float]:
    return facts.finished - facts.seconds, facts.finished


def wait_for(happened: Callable[[], object]) -> None:
    """Waits for something that stays so."""
    until = time.monotonic() + 240
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_lanes_train_side_by_side_and_no_spec_twice(lanes, spec, faults, tmp_path) -> None:
    specs = [spec(f"model-{i}", epochs=12) for i in range(4)]
    gate = faults.gate("both-are-there")
    # the first lane that takes a step waits for the other one, which may take long to start
    faults.plan(f"training/step@1=wait:{gate}; training/step@2=note; training/begin@1=note")

    def let_go() -> None:
        wait_for(lambda: faults.process("training/step", 2))
        gate.touch()

    threading.Thread(target=let_go, daemon=True).start()
    with lanes(keep=True) as open_lanes:
        facts = open_lanes.train(specs)
        assert list(facts) == [s.name for s in specs]
        spans = sorted(span(f) for f in facts.values())
        assert any(later[0] < earlier[1] for earlier, later in pairwise(spans)), spans
        assert {name for name, *_ in lanes.seen} == set(facts)
        assert all(0 < done <= total == 120 and note.startswith("loss ") for _, done, total, note in lanes.seen)
        free = ray.available_resources()[DRIVER]
        assert free == ray.cluster_resources()[DRIVER] - 2 * NODE_SHARE, "workers are not kept on their kind of node"
        again = open_lanes.train([*specs, spec("one-more", epochs=1)])
    assert faults.count("training/begin") == 5, "a spec was trained twice"
    workers = [faults.process("training/begin", count) for count in range(1, 6)]
    assert workers[4] in workers[:4], "the lanes did not stay up"
    assert {name: again[name] for name in facts} == facts
    assert again["one-more"].epochs == 1
    weights = [(tmp_path / s.name / "model.safetensors").read_bytes() for s in specs]
    assert len(set(weights)) == 1, "equal specs gave different weights on different lanes"


@pytest.mark.faults
@pytest.mark.long
def test_a_lane_whose_worker_dies_goes_on_from_its_checkpoint(lanes, spec, faults, tmp_path) -> None:
    curves = tmp_path / "curves"
    options = {"checkpoint_seconds": 0, "tracking": Tracking(place=str(curves), every=1)}
    cut, whole = spec("cut", epochs=25).model_copy(update=options), spec("whole", epochs=25)
    faults.plan("training/checkpoint-written@100=die")
    with lanes(keep=False) as one_lane:
        facts = one_lane.train([cut])["cut"]
        one_lane.train([whole])
    assert not psutil.pid_exists(faults.process("training/checkpoint-written", 100))
    assert facts.steps == 250
    assert starts(curves) == [0, 100], "it did not go on from its checkpoint"
    assert not checkpoints.folder_of(Path(cut.output)).exists()
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cut", "whole")]
    assert weights[0] == weights[1]


def starts(curves: Path) -> list[int]:
    """The steps that a training has gone on from."""
    return sorted(int(file.suffix[1:]) for file in curves.glob("events.*"))


@pytest.mark.faults
@pytest.mark.long
@pytest.mark.usefixtures("_ray_here")
def test_a_lane_grows_onto_a_new_node_and_survives_its_loss(nodes, spec, faults, tmp_path, monkeypatch):
    from ensemw2s.training import launch

    monkeypatch.setattr(launch, "GROW", 3.0)
    curves = tmp_path / "curves"
    options = {"checkpoint_seconds": 0, "tracking": Tracking(place=str(curves), every=1)}
    cut, whole = spec("cut", epochs=60).model_copy(update=options), spec("whole", epochs=60)
    training = TrainingConfig(workers={"min": 1, "max": 2}, cpus_per_worker=2, lanes=1)
    grown, lost = faults.gate("grown"), faults.gate("lost")
    # held at a checkpoint until the node is there, then at another one until it is gone
    faults.plan(f"training/checkpoint-written@50=wait:{grown}; training/checkpoint-written@150=wait:{lost}")

    def disturb() -> None:
        wait_for(lambda: faults.process("training/checkpoint-written", 50))
        node = nodes.add(cpus=2)
        wait_for(lambda: len(starts(curves)) == 2)
        wait_for(lambda: faults.process("training/checkpoint-written", 150))
        nodes.kill(node)
        lost.touch()

    with launch.Lanes(training, 1, tmp_path / "scratch", keep=False) as lanes:
        helper = threading.Thread(target=disturb, daemon=True)
        helper.start()
        facts = lanes.train([cut])["cut"]
        helper.join()
    with launch.Lanes(TRAINING, 1, tmp_path / "scratch", keep=False) as lanes:
        expected = lanes.train([whole])["whole"]
    assert starts(curves) == [0, 50, 150]
    assert facts.loss == pytest.approx(expected.loss, abs=0.02)


def test_a_spec_that_fails_gives_its_reason_at_once_and_the_finished_ones_stay(
    lanes, spec, damaged_base, tmp_path
) -> None:
    good, bad = spec("good"), spec("bad", base=damaged_base)
    with lanes(keep=False) as closed_lanes:
        closed_lanes.train([good])
        trained = (tmp_path / "good" / "train.json").stat().st_mtime_ns
        with pytest.raises(ModelError, match="a safetensors file is damaged"):
            closed_lanes.train([bad, good])
    assert json.loads((tmp_path / "good" / "train.json").read_text())["name"] == "good"
    assert (tmp_path / "good" / "train.json").stat().st_mtime_ns == trained
    assert not (tmp_path / "bad").exists()
