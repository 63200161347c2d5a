"""Real kills while labels are made: every prompt ends with one label, and the answers of an undisturbed run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
def _head(ray_environment, faults) -> Iterator[None]:
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

        self.log, self.began = log, time.monotonic()
        options = [
            "--max-new-tokens", LABELING.max_new_tokens, "--batch-size", LABELING.batch_size, "--chunk-size", CHUNK,
            "--address", ray.get_runtime_context().gcs_address,
        ]  # fmt: skip
        script = Path(sys.executable).with_name("ensemw2s")
        command = [script, "label", "--ensemble", ensemble, "--input", prompts, "--output", output, *options]
        with log.open("wb") as handle:
            self.process = subprocess.Popen([str(part) for part in command], stdout=handle, stderr=handle)

    def wait_for(self, happened: Callable[[], Any]) -> Any:
        """Waits for something that stays so."""
        while not (found := happened()):
            assert self.process.poll() is None, f"it ended before: {self.log.read_text()}"
            assert time.monotonic() - self.began < LIMIT, self.log.read_text()
            time.sleep(0.02)
        return found

    def end(self) -> int:
        return self.process.wait(LIMIT)


def disturb(seed: int, faults, nodes, ensemble: Path, prompts: Path, tmp_path: Path) -> Path:
    """An actor dies, then the driver, and when the same command goes on a node; how far they are is by the seed."""
    chance, output = random.Random(seed), tmp_path / f"labels-{seed}"
    node = nodes.add(cpus=1)  # before the run, which would be half done where a node takes long to start
    actor, driver = chance.randint(1, 6), chance.randint(7, 12)
    gate = faults.gate(f"go-on-{seed}")
    # however slow the driver is, actors do not do everything before it dies; the dead one has begun two at most
    faults.plan(f"labeling/chunk@{actor}=die; labeling/row@{driver}=die; labeling/chunk@{driver + 8}+=wait:{gate}")
    first = Run(ensemble, prompts, output, tmp_path / f"first-{seed}.log")
    assert first.end() == -signal.SIGKILL, first.log.read_text()
    assert faults.process("labeling/chunk", actor) != faults.process("labeling/row", driver) == first.process.pid
    wait_until_gone(faults)
    kept = {part: part.stat().st_mtime_ns for part in parts(output)}
    assert driver <= len(kept) < PROMPTS // CHUNK

    begun = chance.randint(1, 3)
    faults.plan(f"labeling/chunk@{begun}+=wait:{gate}")  # all wait, so that one of the node's is sure to be among them
    second = Run(ensemble, prompts, output, tmp_path / f"second-{seed}.log")
    second.wait_for(lambda: held(faults, begun) & {p.pid for p in psutil.Process(node.pid).children(recursive=True)})
    nodes.kill(node)
    gate.touch()
    assert second.end() == 0, second.log.read_text()
    assert all(part.stat().st_mtime_ns == moment for part, moment in kept.items()), "prompts were labelled twice"
    return output


def held(faults, first: int) -> set[int]:
    """Processes that began a chunk, from this one on."""
    return {faults.process("labeling/chunk", n) for n in range(first, faults.count("labeling/chunk") + 1)}


def wait_until_gone(faults) -> None:
    """Actors outlive their driver for a moment, and what they still write would count as the second run's."""
    actors, until = held(faults, 1), time.monotonic() + LIMIT
    while any(map(psutil.pid_exists, actors)):
        assert time.monotonic() < until, "actors outlived their driver"
        time.sleep(0.05)


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


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 20))])
@pytest.mark.usefixtures("_head")
def test_labels_survive_the_loss_of_an_actor_the_driver_and_a_node(
    seed, faults, nodes, ensemble, prompts, expected, tmp_path
) -> None:
    check(disturb(seed, faults, nodes, ensemble, prompts, tmp_path), expected)
