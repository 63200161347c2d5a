"""Chunks on real Ray Data actors and pooled processes: every result arrives, and errors of ours arrive as they are."""

import time

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.cluster.resources import DRIVER, NODE_SHARE
from ensemw2s.config import ClusterConfig, LabelingConfig
from ensemw2s.errors import DataError, ResourceError

pytestmark = pytest.mark.ray

POOL = LabelingConfig(cpus_per_actor=0.5)
REUSE = pytest.mark.parametrize("reuse", [False, True], ids=["actors", "pooled processes"])


@pytest.fixture(scope="module")
def _ray_here(ray_environment):
    """A Ray of this process; it is gone at the end."""
    from ensemw2s.cluster.connect import connect

    with connect(ClusterConfig(cpus=2, object_store_mb=100)):
        yield


@pytest.fixture
def work(tmp_path) -> list[dict]:
    from ensemw2s.cluster.pool import chunks

    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": list(range(50))}), path)
    return chunks(path, 8)


@pytest.fixture(scope="module")
def worker() -> type:
    class Worker:  # not of the module: the processes of Ray cannot import that
        """Sums up chunks; some it cannot do."""

        def __init__(self, bad: int | None, kind: str = "", built: bool = True) -> None:
            if not built:
                raise DataError("the model is of another kind")
            self.bad, self.kind = bad, kind

        def __call__(self, chunk: dict) -> dict:
            import os

            from ensemw2s import errors
            from ensemw2s.cluster.pool import read_chunk

            if chunk["start"] == self.bad:
                if self.kind == "death":
                    os._exit(1)
                raise getattr(errors, self.kind)("there is a reason")
            return {"start": chunk["start"], "sum": sum(read_chunk(chunk)["n"].to_pylist())}

    return Worker


def streamed(work: list[dict], worker: type, reuse: bool, **arguments) -> list[dict]:
    from ensemw2s.cluster.pool import stream

    rows = list(stream(work, worker, arguments, labeling=POOL, actors=2, reuse=reuse))
    assert all(("actor" in row) != reuse for row in rows)
    return [{key: value for key, value in row.items() if key != "actor"} for row in rows]


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_every_chunk_gives_its_result_once(work, worker, reuse) -> None:
    rows = sorted(streamed(work, worker, reuse, bad=None), key=lambda row: row["start"])
    assert rows == [{"start": start, "sum": sum(range(start, min(start + 8, 50)))} for start in range(0, 50, 8)]


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_decoding_is_kept_on_its_kind_of_node(work, reuse) -> None:
    from ensemw2s.cluster.pool import stream

    class Held:
        def __call__(self, chunk: dict) -> dict:
            import ray

            return {"held": ray.get_runtime_context().get_assigned_resources()}

    pool = POOL.model_copy(update={"node_resource": DRIVER})
    for row in stream(work, Held, {}, labeling=pool, actors=2, reuse=reuse):
        assert row["held"][DRIVER] == NODE_SHARE


@pytest.mark.usefixtures("_ray_here")
def test_pooled_processes_can_import_before_there_is_work() -> None:
    import ray

    from ensemw2s.cluster.pool import warm

    assert all(map(psutil.pid_exists, ray.get(warm(["colorsys"], labeling=POOL, actors=2))))
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        ray.get(warm(["no_such_module"], labeling=POOL, actors=1))
    assert warm(["colorsys"], labeling=POOL.model_copy(update={"gpus_per_actor": 1}), actors=2) == []


@pytest.mark.usefixtures("_ray_here")
def test_a_stream_waits_for_the_processes_that_import_for_it(work, worker) -> None:
    import ray

    from ensemw2s.cluster.pool import stream, warm

    started = warm(["transformers.models.llama.modeling_llama"], labeling=POOL, actors=2)
    for _ in stream(work, worker, {"bad": None}, labeling=POOL, actors=2, reuse=True):
        assert set(ray.wait(started, num_returns=2, timeout=0)[0]) == set(started)


@pytest.mark.usefixtures("_ray_here")
def test_pooled_processes_end_where_their_memory_is_needed(work) -> None:
    import ray

    from ensemw2s.cluster.pool import cool, stream

    class Process:
        def __call__(self, chunk: dict) -> dict:
            import os

            return {"pid": os.getpid()}

    pooled = {row["pid"] for row in stream(work, Process, {}, labeling=POOL, actors=2, reuse=True)}
    ended = set(ray.get(cool(labeling=POOL, actors=2)))
    assert len(ended) == 2
    assert ended & pooled, "others were ended"
    until = time.monotonic() + 30
    while any(map(psutil.pid_exists, ended)):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert cool(labeling=POOL.model_copy(update={"gpus_per_actor": 1}), actors=2) == []


def third(work: list[dict], reuse: bool) -> list[dict]:
    """The chunk that fails: among others, or alone. Where one fails, Ray Data cancels the tasks of the others, and Ray
    2.60 aborts this process if one of them ends in that very moment (`task_manager.cc`: it was not pending): chunks of
    milliseconds did once; those of real work take seconds.
    """
    return work[2:3] if reuse else work


@REUSE
@pytest.mark.usefixtures("_ray_here")
@pytest.mark.parametrize("kind", [DataError, ResourceError])
def test_an_error_of_ours_arrives_as_it_is(work, worker, reuse, kind) -> None:
    with pytest.raises(kind, match=r"^there is a reason$"):
        streamed(third(work, reuse), worker, reuse, bad=16, kind=kind.__name__)


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_an_error_at_the_start_of_a_worker_arrives_as_it_is(work, worker, reuse) -> None:
    with pytest.raises(DataError, match=r"^the model is of another kind$"):
        streamed(third(work, reuse), worker, reuse, bad=None, built=False)


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_a_chunk_that_ends_its_process_every_time_is_given_up(work, worker, reuse, monkeypatch) -> None:
    monkeypatch.setattr("ensemw2s.cluster.pool.RETRIES", 1)
    with pytest.raises(ResourceError, match=r"a chunk's process died 2 times; if for lack of memory, lower labeling\."):
        streamed(third(work, reuse), worker, reuse, bad=16, kind="death")
