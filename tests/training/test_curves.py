"""What lies in the event files, read back record by record."""

import json
import logging
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboardX.proto.event_pb2 import Event

from ensemw2s.training import loop
from ensemw2s.training.curves import CurveWriter
from ensemw2s.training.spec import Tracking


def points(folder: Path) -> dict[str, dict[int, float]]:
    """Scalars by name and step. A record is its length, a checksum, the event and another checksum."""
    [file] = folder.glob("events.*")
    data, found, at = file.read_bytes(), {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        event = Event.FromString(data[at + 12 : at + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        at += length + 16
    return found


def at(place: Path | str, **options: Any) -> Tracking:
    return Tracking(place=str(place), **{"every": 1, **options})


def test_a_point_stands_for_the_steps_since_the_last(tmp_path):
    curves = CurveWriter(at(tmp_path / "c", every=2))
    for number in range(1, 6):
        if curves.due(number, tokens=10):
            curves.step(number, {"loss": 1.0 / number})
    curves.close()
    found = points(tmp_path / "c")
    assert set(found) == {"loss", "tokens_per_second"}
    assert found["loss"] == pytest.approx({2: 0.5, 4: 0.25})
    assert set(found["tokens_per_second"]) == {2, 4}


def test_what_a_killed_training_wrote_is_replaced(tmp_path):
    for value in (1.0, 2.0):
        curves = CurveWriter(at(tmp_path / "c"))
        curves.point(1, {"alpha": value})
        curves.close()
    assert points(tmp_path / "c") == {"alpha": {1: 2.0}}


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    curves = CurveWriter(None)
    assert not curves.due(1, tokens=1)
    curves.point(1, {"loss": 1.0})
    curves.close()
    assert list(tmp_path.iterdir()) == []


def test_a_training_leaves_its_curves_beside_its_model(workshop, tmp_path):
    spec = workshop.spec("curved", output=str(tmp_path / "out"), recipe={"learning_rate": 3e-3})
    told = []
    spec = spec.model_copy(update={"tracking": at(tmp_path / "curves")})
    loop.train(spec, device=torch.device("cpu"), on_step=lambda *step: told.append(step))
    found = points(tmp_path / "curves")
    assert list(found["loss"]) == list(range(1, 7))
    assert list(found["loss"].values()) == pytest.approx([float(loss) for *_, loss in told])
    assert all(0 < rate <= 3e-3 + 1e-9 for rate in found["learning_rate"].values())
    assert all(norm > 0 for norm in found["gradient_norm"].values())
    assert all(speed > 0 for speed in found["tokens_per_second"].values())
    assert not list((tmp_path / "out").glob("events.*"))


def test_curves_go_on_where_the_checkpoint_was(tmp_path):
    folder = tmp_path / "c"
    for after, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        curves = CurveWriter(at(folder), after=after)
        for step in steps:
            curves.point(step, {"loss": step + after / 10})
        curves.close()
    first, second = sorted(folder.glob("events.*"), key=lambda file: file.stat().st_mtime_ns)
    second.rename(tmp_path / "c" / "second")
    assert points(folder) == {"loss": {1: 1.0, 2: 2.0, 3: 3.0}}
    first.unlink()
    (folder / "second").rename(second)
    assert points(folder)["loss"] == pytest.approx({3: 3.2, 4: 4.2})


def client_of(place: Path) -> Any:
    """A client of MLflow's store, which takes seconds to import."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=str(place))


def runs(place: Path, experiment: str) -> list[Any]:
    """MLflow's runs of an experiment."""
    client = client_of(place)
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def history(place: Path, run: Any, metric: str) -> dict[int, float]:
    return {m.step: m.value for m in client_of(place).get_metric_history(run.info.run_id, metric)}


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """A folder as MLflow's store."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return lambda name, **options: at(tmp_path / "store", kind="mlflow", experiment="study", name=name, **options)


@pytest.mark.slow
def test_a_training_is_a_run_of_mlflow(workshop, tmp_path, mlflow):
    spec = workshop.spec("tracked", output=str(tmp_path / "out"), tracking=mlflow("rounds/1/experts/0", every=2))
    loop.train(spec, device=torch.device("cpu"))
    [run] = runs(tmp_path / "store", "study")
    assert (run.info.run_name, run.info.status) == ("rounds/1/experts/0", "FINISHED")
    assert set(run.data.metrics) == {"loss", "learning_rate", "gradient_norm", "tokens_per_second"}
    found = history(tmp_path / "store", run, "loss")
    assert list(found) == [2, 4, 6]
    assert all(0 < loss < 10 for loss in found.values())


@pytest.mark.slow
def test_mlflow_goes_on_with_a_run_or_begins_it_anew(tmp_path, mlflow):
    for name, after, steps in (("a", 0, (1, 2)), ("b", 0, (7,)), ("a", 2, (3,))):
        curves = CurveWriter(mlflow(name), after=after)
        for step in steps:
            curves.point(step, {"alpha": step / 10})
        curves.close(finished=bool(after))
    a, b = sorted(runs(tmp_path / "store", "study"), key=lambda run: run.info.run_name)
    assert history(tmp_path / "store", a, "alpha") == {1: 0.1, 2: 0.2, 3: 0.3}
    assert (a.info.status, b.info.status) == ("FINISHED", "KILLED")
    curves = CurveWriter(mlflow("b"))
    curves.point(1, {"alpha": 9.0})
    curves.close()
    [_, b] = sorted(runs(tmp_path / "store", "study"), key=lambda run: run.info.run_name)
    assert history(tmp_path / "store", b, "alpha") == {1: 9.0}


@pytest.mark.slow
def test_a_store_that_does_not_work_stops_no_training(workshop, tmp_path, caplog):
    (tmp_path / "store").write_text("no folder")
    tracking = at(tmp_path / "store", kind="mlflow")
    spec = workshop.spec("untracked", output=str(tmp_path / "out"), tracking=tracking)
    with caplog.at_level(logging.WARNING):
        trained = loop.train(spec, device=torch.device("cpu"))
    assert trained.steps == 6
    assert caplog.text.count("no more curves") == 1


def recorded(place: Path) -> dict[str, dict[int, float]]:
    """Alpha by step of each run of wandb in a folder, by its id, as its files have it."""
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    found: dict[str, dict[int, float]] = {}
    for path in sorted(place.glob("wandb/offline-run-*/run-*.wandb")):
        store, of_run = DataStore(), found.setdefault(path.stem.removeprefix("run-"), {})
        store.open_for_scan(str(path))
        while (data := store.scan_data()) is not None:
            record = Record.FromString(data)
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            of_run |= {values["step"]: values["alpha"]} if "alpha" in values else {}
    return found


@pytest.mark.slow
def test_wandb_goes_on_with_a_run_or_begins_it_anew_without_a_network(tmp_path, monkeypatch):
    from wandb.sdk.lib.service import service_process

    started, start = [], service_process.subprocess.Popen
    monkeypatch.setattr(
        service_process.subprocess, "Popen", lambda command, **kw: started.append(command) or start(command, **kw)
    )
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_ERROR_REPORTING"):
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / "wandb"
    for after, steps in ((0, (1, 2)), (2, (3,)), (0, (7,))):
        curves = CurveWriter(at(place, kind="wandb", experiment="study", name="rounds/1"), after=after)
        for step in steps:
            curves.point(step, {"alpha": step / 10})
        curves.close()
    assert sorted(recorded(place).values(), key=len) == [{7: 0.7}, {1: 0.1, 2: 0.2, 3: 0.3}]
    own = [command for command in started if "wandb-core" in command[0]]
    assert own, "wandb has a process of its own, which would report errors over the network"
    assert all("--no-observability" in command for command in own)
