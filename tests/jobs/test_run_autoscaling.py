"""A run on a head that has no room for it: the autoscaler's nodes come for experts and actors, and go when idle."""

import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.cluster, pytest.mark.long]

IDLE_SECONDS = 90
"""Within which a node that nobody uses is gone; cluster/local-autoscaling.yaml gives it 12 seconds."""


class Watcher(threading.Thread):
    """Counts the nodes, by their raylets, as long as it is not told to stop."""

    def __init__(self, head) -> None:
        super().__init__(daemon=True)
        self.head, self.seen, self.over = head, [], threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.seen.append(raylets(self.head))


def raylets(head) -> int:
    return len({process.pid for process in head.processes("raylet/raylet")})


@pytest.fixture
def head(start_head):
    return start_head("--num-cpus=1", autoscaling=ROOT / "cluster/local-autoscaling.yaml")


def test_nodes_come_for_a_run_and_go_after_it(head, module_workplace, own_jsonl, undisturbed):
    assert raylets(head) == 1
    watcher = Watcher(head)
    watcher.start()
    study = module_workplace.study(
        own_jsonl,
        **{
            "evaluation.systems": ["ensemw2s", "student_ensemw2s"],
            "training.cpus_per_worker": 1,
            "labeling.cpus_per_actor": 1,
            "cluster.autoscales_to": [{"cpus": 2, "nodes": 2}],
        },
    )
    head.done("python", "jobs/run.py", "--config", study)
    until = time.monotonic() + IDLE_SECONDS
    while raylets(head) > 1:
        assert time.monotonic() < until, "a node stayed"
        time.sleep(0.5)
    watcher.over.set()
    assert max(watcher.seen) == 3
    assert module_workplace.files("ensemble/**/*") == undisturbed.files("ensemble/**/*")
