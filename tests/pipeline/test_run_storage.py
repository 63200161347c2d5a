"""Runs with their storage on an S3 server: killed half way, and gone on with on a machine that has nothing of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.labeling.parts import read_labels
from ensemw2s.storage import remote

pytestmark = [pytest.mark.ray, pytest.mark.faults]

SYSTEMS = ["ensemw2s", "student_ensemw2s"]  # the baselines are not needed to come to labels and a student
SAME = ("rounds/*errors.parquet", "rounds/*.safetensors", "ensemble/*", "labels/*.parquet", "students/*.safetensors")
STEPS = 64
"""Of the training of an expert, with a checkpoint before each but the first."""

OWN = ("*/.complete.json", "*/.contents.json")
"""Files that say more than what a stage holds."""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], None]]:
    """Moves to another machine: commands, and this process, get an empty scratch folder."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setenv("ENSEMW2S_SCRATCH", str(tmp_path_factory.mktemp("scratch")))


@pytest.fixture(scope="module")
def bucket(make_bucket: Callable[[], Any], machine: Callable[[], None]) -> Iterator[Any]:
    """A bucket that commands of this module, and this process, get at."""
    made = make_bucket()
    machine()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in made.environment.items():
            patch.setenv(key, value)
        yield made


def run_objects(bucket: Any) -> dict[str, bytes]:
    """What lies in the run's folder of the bucket, by names from there on."""
    return {key.removeprefix("runs/small/"): body for key, body in bucket.objects().items() if "/small/" in key}


def same(names: Any) -> set[str]:
    return {name for name in names if any(fnmatch(name, p) for p in SAME) and not any(fnmatch(name, p) for p in OWN)}


@pytest.fixture(scope="module")
def study(module_workplace: Any, undisturbed: Any, own_jsonl: Path, bucket: Any) -> Path:
    """A config with storage in the bucket, where the pre-trained bases lie already, copied there by other means."""
    cache = undisturbed.storage / "cache"
    for file in cache.rglob("*"):
        if file.is_file():
            key = f"runs/cache/{file.relative_to(cache).as_posix()}"
            bucket.client.upload_file(str(file), bucket.name, key)
    own = {"evaluation.systems": SYSTEMS, "training.checkpoint_seconds": 0}
    return module_workplace.study(own_jsonl, storage=f"s3://{bucket.name}/runs", **own)


@pytest.mark.long
def test_a_run_that_died_inside_a_round_is_gone_on_with_on_another_machine(
    module_workplace: Any, undisturbed: Any, study: Path, bucket: Any, machine: Callable[[], None]
) -> None:
    count = STEPS - 1 + 2  # there is none before the first step
    module_workplace.faults.plan(f"training/checkpoint-written@{count}=hang")
    running = module_workplace.start("run", study)
    running.wait_until_reached(module_workplace.faults, "training/checkpoint-written", count)
    running.kill()
    before = run_objects(bucket)
    assert "rounds/1/.complete.json" in before
    assert "rounds/2/experts/0/.complete.json" not in before

    machine()
    finished = module_workplace.done("run", study, "--set", "training.checkpoint_seconds=300")
    assert f"s3://{bucket.name}/runs/small: 1 node" in finished.text
    after = run_objects(bucket)
    assert after["rounds/1/experts/0/.contents.json"] == before["rounds/1/experts/0/.contents.json"], "made again"
    events = {Path(name).suffix for name in after if name.startswith("tensorboard/rounds/2/experts/0/")}
    assert ".2" in events, "round 2 did not go on from its checkpoint"
    expected = undisturbed.files(*(pattern.replace("/*", "/**/*") for pattern in SAME))
    found = {name: hashlib.sha256(body).hexdigest() for name, body in after.items()}
    wanted = {name for name in same(expected) if not name.startswith("students/") or SYSTEMS[1] in name}
    assert len(wanted) > 10
    assert {name: found.get(name) for name in wanted} == {name: expected[name] for name in wanted}
    results, others = json.loads(after["results.json"]), undisturbed.json("results.json")
    for name in SYSTEMS:
        assert results["systems"][name]["ood"] == others["systems"][name]["ood"]
    assert {"config.yaml", "manifest.json", "report.html"} <= after.keys()
    assert any(name.startswith("plots/") for name in after)
    left = (".ray", ".checkpoints-", ".partial-", ".working-", ".tmp", ".lock", ".started")
    assert [name for name in after if any(part in name for part in left)] == []

    machine()
    assert "is complete: nothing to do" in module_workplace.done("run", study).text
    assert "Everything is done" in module_workplace.done("plan", study).text
    assert (
        f"report: s3://{bucket.name}/runs/small/report.html"
        in module_workplace.done("report", f"s3://{bucket.name}/runs/small").text
    )


@pytest.mark.long
def test_saved_models_in_object_storage_label_and_are_evaluated(
    module_workplace: Any, study: Path, own_jsonl: Path, bucket: Any, machine: Callable[[], None]
) -> None:
    store = f"s3://{bucket.name}"
    module_workplace.done("run", study)
    bucket.client.upload_file(str(own_jsonl), bucket.name, "prompts/own.jsonl")
    given = ("--input", f"{store}/prompts", "--prompt-column", "question", "--cpus", "2", "--cpus-per-actor", "0.5")
    label = ("label", "--ensemble", f"{store}/runs/small/ensemble", *given, "--output", f"{store}/labels")
    more = ("--chunk-size", "10", "--min-agreement", "0.5")

    machine()
    module_workplace.faults.plan("labeling/row@1=die; labeling/chunk@20+=hang")
    module_workplace.start(*label, *more).killed()
    module_workplace.faults.plan("")
    before = {key: body for key, body in bucket.objects().items() if key.startswith("labels/part-")}

    machine()
    text = module_workplace.done(*label, *more).text
    rows = sum(1 for _ in own_jsonl.open())
    assert f"{rows} labels in {store}/labels" in text
    assert f"settings: those of {store}/runs/small/config.yaml" in text
    after = bucket.objects()
    assert before.items() <= after.items()
    assert 0 < len(before) < 20
    assert not any(key.startswith("labels/.prompts") for key in after)
    machine()
    assert len(read_labels(remote.local(f"{store}/labels"))) == rows
    assert "nothing to do" in module_workplace.done(*label, *more).text
    assert any(key.startswith("labels/kept/") for key in after)

    model = f"{store}/runs/small/students/student_ensemw2s"
    evaluate = ("evaluate", "--model", model, *given, "--answer-column", "reply", "--json", f"{store}/figures.json")
    module_workplace.done(*evaluate)
    assert json.loads(bucket.objects()["figures.json"])["metrics"]["n"] == rows


@pytest.mark.long
def test_a_search_in_object_storage_goes_on_on_another_machine(
    module_workplace: Any, own_jsonl: Path, bucket: Any, machine: Callable[[], None]
) -> None:
    search = {"trials": 2, "searcher": "random", "space": {"expert.learning_rate": {"log_uniform": [0.002, 0.01]}}}
    storage = f"s3://{bucket.name}/runs"
    config = module_workplace.study(own_jsonl, name="searched", storage=storage, search=search)
    module_workplace.faults.plan("boosting/scored@2=hang")
    running = module_workplace.start("tune", config)
    running.wait_until_reached(module_workplace.faults, "boosting/scored", 2)
    running.kill()
    machine()
    text = module_workplace.done("tune", config, "--resume").text
    assert f"ensemw2s run {storage}/searched/search/best.yaml" in text
    left = remote.names(remote.local(f"{storage}/searched/search"))
    assert {"best.yaml", "search.json", "trials.parquet", "plots", "stages", "tune"} <= left
    assert "is complete: nothing to do" in module_workplace.done("tune", config).text
    assert "searched-best, seed 1" in module_workplace.done("plan", f"{storage}/searched/search/best.yaml").text
