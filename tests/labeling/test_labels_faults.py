"""Real kills while labels are made: every prompt ends with one label, and the answers of an undisturbed run."""

import contextlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import ClusterConfig, DataConfig, FilesSource, LabelingConfig, SplitConfig
from ensemw2s.ensemble.artifact import MemberSource, save_ensemble
from ensemw2s.ensemble.voter import Voter, load_voters
from ensemw2s.labeling.intake import write_examples
from ensemw2s.labeling.labeler import Maker
from ensemw2s.labeling.parts import parts, read_labels
from ensemw2s.models import loading

pytestmark = [pytest.mark.ray, pytest.mark.faults]

PROMPTS, CHUNK = 600, 20
LABELING = LabelingConfig(max_new_tokens=24, batch_size=8, chunk_size=CHUNK)
LIMIT = 240.0


@pytest.fixture(scope="module")
def _head(ray_environment) -> Iterator[None]:
    """A Ray with one CPU, which notices within seconds that a node is gone."""
    from ensemw2s.cluster.connect import connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_health_check_period_ms", "1000")
        patch.setenv("RAY_health_check_failure_threshold", "2")
        with connect(ClusterConfig(cpus=1, object_store_mb=100)):
            yield


@pytest.fixture(scope="module")
def ensemble(tmp_path_factory, experts, tokenizer) -> Path:
    root = tmp_path_factory.mktemp("ensemble")
    sources = []
    for i, model in enumerate(experts):
        loading.save_trained(model, tokenizer, root / f"m{i}")
        sources.append(MemberSource(f"m{i}", root / f"m{i}", 1.0, 1.0, i + 1))
    save_ensemble(root / "ensemble", members=sources, rule="probability", tokenizer=tokenizer)
    return root / "ensemble"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> Path:
    """Different prompts of several lengths; of every hundred the last one is too long."""
    file, numbers = tmp_path_factory.mktemp("prompts") / "prompts.jsonl", random.Random(0)
    rows = [[str(numbers.randrange(10)) for _ in range(numbers.randint(3, 9))] for _ in range(PROMPTS)]
    rows = [row * 400 if i % 100 == 99 else row for i, row in enumerate(rows)]
    file.write_text("".join(json.dumps({"prompt": f"sort {' '.join(row)} ="}) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def expected(tmp_path_factory, ensemble, prompts) -> dict[str, list[int]]:
    """The tokens of every label, by id, decoded at once in this process."""
    source, table = FilesSource(paths=[str(prompts)]), tmp_path_factory.mktemp("table") / "table.parquet"
    write_examples(source, table, group=CHUNK, rejected=table.with_name("rejected.parquet"))
    [loaded] = load_voters([Voter(name="all", ensemble=str(ensemble))])
    data = DataConfig(source=source, split=SplitConfig(mode="random"))
    labels, rejected = Maker.of(loaded, LABELING).label(pq.read_table(table), data, LABELING)
    assert len(rejected) == PROMPTS // 100
    return dict(zip(labels["id"].to_pylist(), labels["token_ids"].to_pylist(), strict=True))


class Run:
    """`ensemw2s label` on the cluster, in a process of its own."""

    def __init__(self, ensemble: Path, prompts: Path, output: Path, log: Path) -> None:
        import ray

        self.output, self.log, self.began = output, log, time.monotonic()
        options = [
            "--max-new-tokens", LABELING.max_new_tokens, "--batch-size", LABELING.batch_size, "--chunk-size", CHUNK,
            "--address", ray.get_runtime_context().gcs_address,
        ]  # fmt: skip
        script = Path(sys.executable).with_name("ensemw2s")
        command = [script, "label", "--ensemble", ensemble, "--input", prompts, "--output", output, *options]
        with log.open("wb") as handle:
            self.process = subprocess.Popen([str(part) for part in command], stdout=handle, stderr=handle)

    def wait_for(self, happened: Callable[[], object]) -> None:
        while not happened():
            assert self.process.poll() is None, f"it ended before: {self.log.read_text()}"
            assert time.monotonic() - self.began < LIMIT, self.log.read_text()
            time.sleep(0.005)

    def more_parts(self, count: int) -> None:
        wanted = len(parts(self.output)) + count
        self.wait_for(lambda: len(parts(self.output)) >= wanted)

    def end(self) -> None:
        code = self.process.wait(LIMIT)
        assert code == 0, self.log.read_text()


def actors(of: psutil.Process) -> list[psutil.Process]:
    """Decoding actors among the descendants of a process."""
    found = []
    for process in of.children(recursive=True):
        try:
            if "ray::MapWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def actors_of_the_head(node: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Decoding actors that are not on this node."""
    elsewhere = {process.pid for process in actors(psutil.Process(node.pid))}
    return [process for process in actors(psutil.Process()) if process.pid not in elsewhere]


def disturb(seed: int, nodes, ensemble: Path, prompts: Path, tmp_path: Path) -> Path:
    """Kills an actor, then the driver, and when the same command goes on a node; moments by the seed."""
    chance, output = random.Random(seed), tmp_path / f"labels-{seed}"
    node = nodes.add(cpus=1)  # before the run, which would be half done where a node takes long to start
    first = Run(ensemble, prompts, output, tmp_path / f"first-{seed}.log")
    first.more_parts(chance.randint(1, 6))
    chance.choice(actors(psutil.Process())).kill()
    first.more_parts(chance.randint(1, 6))
    first.process.kill()
    first.process.wait()
    first_is_gone = time.monotonic() + LIMIT
    while actors(psutil.Process()):  # one that still goes would be taken for one of the second
        assert time.monotonic() < first_is_gone, "actors outlived their driver"
        time.sleep(0.05)
    kept = {part: part.stat().st_mtime_ns for part in parts(output)}
    assert 2 <= len(kept) < PROMPTS // CHUNK, "killed too late to be in the middle"
    second = Run(ensemble, prompts, output, tmp_path / f"second-{seed}.log")
    second.wait_for(lambda: actors_of_the_head(node))
    held = actors_of_the_head(node)
    for actor in held:
        actor.suspend()  # else it may have done everything before the node's actor is up
    second.wait_for(lambda: actors(psutil.Process(node.pid)))
    for actor in held:
        with contextlib.suppress(psutil.NoSuchProcess):
            actor.resume()
    second.more_parts(chance.randint(1, 6))
    assert len(parts(output)) < PROMPTS // CHUNK, "killed too late to be in the middle"
    nodes.kill(node)
    second.end()
    assert all(part.stat().st_mtime_ns == moment for part, moment in kept.items()), "prompts were labelled twice"
    return output


def check(output: Path, expected: dict[str, list[int]]) -> None:
    labels = read_labels(output)
    found = dict(zip(labels["id"].to_pylist(), labels["token_ids"].to_pylist(), strict=True))
    assert len(labels) == len(found), "an id came twice"
    assert found == expected
    refused = [row for file in (output / "rejected").iterdir() for row in pq.read_table(file).to_pylist()]
    assert len({row["id"] for row in refused}) == len(refused) == PROMPTS // 100
    assert all("tokens, data.max_prompt_tokens allows 1024" in row["reason"] for row in refused)
    assert json.loads((output / "summary.json").read_text())["labels"] == len(labels)
    assert not list(output.rglob("*.tmp")), os.listdir(output)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("_head")
def test_labels_survive_the_loss_of_an_actor_the_driver_and_a_node(
    seed, nodes, ensemble, prompts, expected, tmp_path
) -> None:
    check(disturb(seed, nodes, ensemble, prompts, tmp_path), expected)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3, 20))
@pytest.mark.usefixtures("_head")
def test_labels_survive_them_at_many_moments(seed, nodes, ensemble, prompts, expected, tmp_path) -> None:
    check(disturb(seed, nodes, ensemble, prompts, tmp_path), expected)
