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
    """Counts the nodes, by their raylets, within a `with`."""

    def __init__(self, head) -> None:
        super().__init__(daemon=True)
        self.head, self.seen, self.over = head, [], threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            self.seen.append(raylets(self.head))

    def __enter__(self) -> "Watcher":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.over.set()
        self.join()


def raylets(head) -> int:
    return len({process.pid for process in head.processes("raylet/raylet")})


def wait_for_nodes(head, count: int, reproach: str) -> None:
    until = time.monotonic() + IDLE_SECONDS
    while raylets(head) != count:
        assert time.monotonic() < until, reproach
        time.sleep(0.5)


@pytest.fixture
def head(start_head):
    return start_head("--num-cpus=1", autoscaling=ROOT / "cluster/local-autoscaling.yaml")


def test_nodes_come_for_a_run_and_go_after_it(head, module_workplace, own_jsonl, undisturbed):
    wait_for_nodes(head, 1, "the head's did not come")
    study = module_workplace.study(
        own_jsonl,
        **{
            "evaluation.systems": ["ensemw2s", "student_ensemw2s"],
            "training.cpus_per_worker": 1,
            "training.lanes": 2,
            "labeling.cpus_per_actor": 1,
            "labeling.max_actors": 2,
            "cluster.autoscales_to": [{"cpus": 2, "nodes": 2}],
        },
    )
    with Watcher(head) as watcher:
        # no upload: it would lie in the folder that these nodes share, and go away with the first of them
        head.done("python", ROOT / "jobs/run.py", "--config", study, upload=False)
        wait_for_nodes(head, 1, "a node stayed")
    assert max(watcher.seen) == 3
    assert module_workplace.files("ensemble/**/*") == undisturbed.files("ensemble/**/*")
