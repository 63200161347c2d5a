"""Folders in object storage: an S3 server on loopback, and scratch folders that stand for machines."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from ensemw2s.errors import ArtifactError, ConfigError, ResourceError
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Description

DESCRIPTION = Description(stage="data", settings={"seed": 1}, inputs={})


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Moves to another machine, which has nothing of what was here."""
    return lambda name: monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / name))


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are transferred."""
    found: list[str] = []
    copy = remote._copy

    def spied(source: Any, origin: str, target: Any, destination: str) -> None:
        found.append(Path(origin).name)
        copy(source, origin, target, destination)

    monkeypatch.setattr(remote, "_copy", spied)
    return found


def folder(bucket: Any, name: str = "runs/small/data") -> Path:
    return remote.local(f"s3://{bucket.name}/{name}")


def write(path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)


def publish(path: Path, files: dict[str, str], description: Description = DESCRIPTION) -> None:
    with store.publish(path, description) as working:
        write(working, files)


def keys(bucket: Any, below: str = "runs/small/data/") -> set[str]:
    return {key.removeprefix(below) for key in bucket.objects() if key.startswith(below)}


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    upload = remote._upload

    def failing(place: Any, file: Path, key: str) -> None:
        if file.name == name:
            raise OSError("the network is gone")
        upload(place, file, key)

    monkeypatch.setattr(remote, "_upload", failing)


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    assert remote.local(tmp_path) == tmp_path
    assert remote.local("~/runs") == Path.home() / "runs"
    assert remote.uri(tmp_path) is None
    assert remote.shown(tmp_path) == str(tmp_path)
    assert remote.pull(tmp_path / "nothing") == tmp_path / "nothing"
    remote.check(tmp_path)


def test_a_mirror_says_what_it_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path))
    path = remote.local("s3://bucket/runs/")
    assert path.is_relative_to(tmp_path)
    assert remote.uri(path / "small") == "s3://bucket/runs/small"
    assert path / "small" == remote.local("s3://bucket/runs/small")
    assert remote.uri(remote.local("gs://bucket")) == "gs://bucket"
    assert remote.uri(path / ".partial-data-12345678" / "a.json") is None


@pytest.mark.parametrize(
    "uri", ["ftp://host/a", "s3://", "s3://bucket//a", "s3://bucket/../a", "s3://key:secret@bucket/a", "s3://b/a?c=d"]
)
def test_a_uri_of_another_form_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="credentials and endpoint belong into the environment"):
        remote.local(uri)


def test_a_stage_that_one_machine_published_is_there_for_another(
    bucket: Any, move: Callable[[str], None], copies: list[str]
) -> None:
    publish(folder(bucket), {"a.txt": "1", "deep/b.txt": "2"})
    assert keys(bucket) == {"a.txt", "deep/b.txt", remote.MARKER, remote.CONTENTS}
    move("other")
    assert store.is_done(folder(bucket), DESCRIPTION)
    assert (remote.pull(folder(bucket)) / "deep/b.txt").read_text() == "2"
    assert store.read_json(folder(bucket) / "a.txt") == 1
    copies.clear()
    remote.pull(folder(bucket))
    remote.pull(folder(bucket) / "a.txt")
    assert copies == [], "what is here already came again"


def test_a_folder_that_changed_comes_again_and_leaves_nothing_of_the_old_one(
    bucket: Any, move: Callable[[str], None]
) -> None:
    publish(folder(bucket), {"a.txt": "1", "b.txt": "2", "deep/c.txt": "3"})
    move("other")
    remote.pull(folder(bucket))
    move("scratch")
    remote.remove(folder(bucket) / remote.MARKER)
    publish(folder(bucket), {"a.txt": "7", "deep/d.txt": "4"})
    assert keys(bucket) == {"a.txt", "deep/d.txt", remote.MARKER, remote.CONTENTS}
    move("other")
    remote.pull(folder(bucket))
    found = {path.name: path.read_text() for path in folder(bucket).rglob("*.txt")}
    assert found == {"a.txt": "7", "d.txt": "4"}


def test_a_folder_inside_that_is_another_stage_s_stays(bucket: Any, move: Callable[[str], None]) -> None:
    outer = folder(bucket, "runs/small/rounds/1")
    publish(outer / "experts/0", {"weights": "w"})
    publish(outer, {"round.json": "{}"})
    assert keys(bucket, "runs/small/rounds/1/experts/0/") == {"weights", remote.MARKER, remote.CONTENTS}
    move("other")
    outer = remote.pull(folder(bucket, "runs/small/rounds/1"))
    assert not (outer / "experts").exists(), "the weights came with the facts of the round"
    remote.pull(outer / "experts/0")
    remote.pull(outer)
    assert (outer / "experts/0/weights").read_text() == "w"


@pytest.mark.parametrize("lost", [remote.CONTENTS, "b.txt", remote.MARKER])
def test_a_push_that_breaks_off_leaves_no_marker(
    bucket: Any, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    publish(folder(bucket), {"a.txt": "1", "b.txt": "1"})
    remote.remove(folder(bucket) / remote.MARKER)
    publish(folder(bucket), {"a.txt": "1", "b.txt": "1"})
    with monkeypatch.context() as patch:
        fail_at(patch, lost)
        working = folder(bucket).with_name(".partial-data-12345678")
        write(working, {"a.txt": "2", "b.txt": "2", remote.MARKER: DESCRIPTION.model_dump_json()})
        with pytest.raises(ResourceError, match=rf"s3://{bucket.name}/runs/small/data cannot be used: the network is"):
            remote.push(working, folder(bucket))
    assert remote.MARKER not in keys(bucket)
    move("other")
    assert not store.is_done(folder(bucket), DESCRIPTION)
    with pytest.raises(ArtifactError, match="is not finished"):
        remote.pull(folder(bucket))
    publish(folder(bucket), {"a.txt": "3"})
    assert remote.pull(folder(bucket) / "a.txt").read_text() == "3"
    assert "b.txt" not in keys(bucket)


def test_an_object_that_is_missing_is_named(bucket: Any, move: Callable[[str], None]) -> None:
    publish(folder(bucket), {"a.txt": "1", "b.txt": "2"})
    bucket.client.delete_object(Bucket=bucket.name, Key="runs/small/data/b.txt")
    move("other")
    with pytest.raises(ArtifactError, match=r"b\.txt is missing"):
        remote.pull(folder(bucket))


def test_what_another_machine_finished_in_the_meantime_stays(bucket: Any, move: Callable[[str], None]) -> None:
    with store.publish(folder(bucket), DESCRIPTION) as working:
        write(working, {"a.txt": "slow"})
        move("other")
        publish(folder(bucket), {"a.txt": "fast"})
        move("scratch")
    assert remote.pull(folder(bucket) / "a.txt").read_text() == "fast"


def test_files_of_a_folder_without_a_marker_come_and_go_with_their_objects(
    bucket: Any, move: Callable[[str], None]
) -> None:
    path = folder(bucket, "models/mine")
    write(path, {"config.json": "{}", "one.safetensors": "w"})
    remote.push(path)
    move("other")
    path = folder(bucket, "models/mine")
    assert {file.name for file in remote.pull(path).iterdir()} == {"config.json", "one.safetensors"}
    bucket.client.put_object(Bucket=bucket.name, Key="models/mine/two.safetensors", Body=b"v")
    remote.remove(path / "one.safetensors")
    assert {file.name for file in remote.pull(path).iterdir()} == {"config.json", "two.safetensors"}
    assert remote.names(path) == {"config.json", "two.safetensors"}
    remote.remove(path)
    assert not remote.exists(path)
    assert not remote.pull(path).exists()
    assert remote.names(path) == set()


def test_a_folder_of_parts_is_gone_on_with_elsewhere_and_finished_whole(
    bucket: Any, move: Callable[[str], None]
) -> None:
    path = folder(bucket, "labels")
    store.resume(path, DESCRIPTION)
    write(path, {"part-0": "a"})
    remote.push(path / "part-0")
    move("other")
    path = folder(bucket, "labels")
    store.resume(path, DESCRIPTION)
    write(path, {"part-1": "b"})
    remote.push(path / "part-1")
    assert remote.names(path) >= {"part-0", "part-1"}
    store.finish(path, DESCRIPTION)
    assert keys(bucket, "labels/") == {"part-0", "part-1", remote.MARKER, remote.CONTENTS}
    move("third")
    path = folder(bucket, "labels")
    assert {file.name for file in remote.pull(path).glob("part-*")} == {"part-0", "part-1"}
    store.resume(path, DESCRIPTION.model_copy(update={"stage": "other"}))
    assert keys(bucket, "labels/") == {".started.json"}


def test_parts_go_on_after_their_end_broke_off(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(bucket, "labels")
    store.resume(path, DESCRIPTION)
    write(path, {"part-0": "a"})
    remote.push(path / "part-0")
    with monkeypatch.context() as patch:
        fail_at(patch, remote.MARKER)
        with pytest.raises(ResourceError):
            store.finish(path, DESCRIPTION)
    assert not store.is_done(path, DESCRIPTION)
    store.resume(path, DESCRIPTION)
    assert (remote.pull(path) / "part-0").read_text() == "a"
    store.finish(path, DESCRIPTION)
    assert store.is_done(path, DESCRIPTION)


def test_a_stage_of_another_config_is_refused_by_its_uri(bucket: Any) -> None:
    publish(folder(bucket), {"a.txt": "1"})
    with pytest.raises(ArtifactError, match=rf"s3://{bucket.name}/runs/small/data was made with another config: seed"):
        store.is_done(folder(bucket), DESCRIPTION.model_copy(update={"settings": {"seed": 2}}))


def test_a_bucket_that_is_not_there_is_named(bucket: Any) -> None:
    remote.check(folder(bucket))
    with pytest.raises(ResourceError, match="there is no bucket nobodys-bucket, or it may not be seen"):
        remote.check(remote.local("s3://nobodys-bucket/runs"))


@pytest.mark.slow
def test_storage_that_cannot_be_reached_says_where_access_comes_from(
    bucket: Any, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    with pytest.raises(ResourceError, match=r"s3://far/runs cannot be used: .*connect.*AWS_ACCESS_KEY_ID"):
        remote.check(remote.local("s3://far/runs"))
    assert time.monotonic() - began < 60


def test_credentials_that_are_refused_are_told_apart_from_a_missing_bucket(bucket: Any) -> None:
    endpoint = bucket.environment["AWS_ENDPOINT_URL"]
    requests.post(f"{endpoint}/moto-api/reset-auth", data=b"0", timeout=10)
    try:
        with pytest.raises(ResourceError, match=r"runs/small/data cannot be used: .*ACCESS_DENIED.*AWS_ACCESS_KEY_ID"):
            remote.check(folder(bucket))
    finally:
        requests.post(f"{endpoint}/moto-api/reset-auth", data=b"inf", timeout=10)
    remote.check(folder(bucket))


def test_ray_is_told_of_places_in_its_own_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.for_ray(tmp_path) == str(tmp_path)
    assert remote.for_ray(remote.local("s3://bucket/runs")) == "s3://bucket/runs"
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(ResourceError, match="needs AZURE_STORAGE_ACCOUNT_NAME"):
        remote.for_ray(remote.local("az://container/runs"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "somebody")
    assert remote.for_ray(remote.local("az://container/runs")) == "abfs://somebody@container/runs"
