"""Chunks on real Ray Data actors and pooled processes: every result arrives, and errors of ours arrive as they are."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.cluster.pool import Chunk, Pool, chunks
from ensemw2s.cluster.resources import DRIVER, NODE_SHARE, has_gpu
from ensemw2s.config import ClusterConfig
from ensemw2s.errors import DataError, ResourceError

pytestmark = pytest.mark.ray

POOL = Pool(cpus=0.5, largest=2)
REUSE = pytest.mark.parametrize("reuse", [False, True], ids=["actors", "pooled processes"])


@pytest.fixture(scope="module")
def _ray_here(ray_environment):
    """A Ray of this process; it is gone at the end."""
    from ensemw2s.cluster.connect import connect

    with connect(ClusterConfig(cpus=2, object_store_mb=100)):
        yield


@pytest.fixture
def work(tmp_path) -> list[Chunk]:
    path = tmp_path / "numbers.parquet"
    pq.write_table(pa.table({"n": list(range(50))}), path)
    return chunks(path, 8)


@pytest.fixture(scope="module")
def summing() -> type:
    @dataclass(frozen=True)
    class Summing:  # not of the module: the processes of Ray cannot import that
        """Sums up chunks; some it cannot do."""

        bad: int | None = None
        kind: str = ""
        can_open: bool = True

        def open(self) -> Callable[[Chunk], tuple[int, int, bool]]:
            if not self.can_open:
                raise DataError("the model is of another kind")

            def total(chunk: Chunk) -> tuple[int, int, bool]:
                import os

                import ray

                from ensemw2s import errors

                if chunk.start == self.bad:
                    if self.kind == "death":
                        os._exit(1)
                    raise getattr(errors, self.kind)("there is a reason")
                in_actor = ray.get_runtime_context().get_actor_id() is not None
                return chunk.start, sum(chunk.read()["n"].to_pylist()), in_actor

            return total

    return Summing


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_every_chunk_gives_its_result_once(work, summing, reuse) -> None:
    found = sorted(POOL.stream(work, summing(), reuse=reuse))
    expected = [(start, sum(range(start, min(start + 8, 50)))) for start in range(0, 50, 8)]
    assert [(start, total) for start, total, _ in found] == expected
    assert {in_actor for *_, in_actor in found} == {not reuse}


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_decoding_is_kept_on_its_kind_of_node(work, reuse) -> None:
    class Holding:
        def open(self) -> Callable[[Chunk], dict[str, float]]:
            import ray

            return lambda _: ray.get_runtime_context().get_assigned_resources()

    pool = replace(POOL, node_resource=DRIVER)
    for held in pool.stream(work, Holding(), reuse=reuse):
        assert held[DRIVER] == NODE_SHARE


@pytest.mark.usefixtures("_ray_here")
def test_pooled_processes_serve_the_next_stream(work) -> None:
    class Process:
        def open(self) -> Callable[[Chunk], int]:
            import os

            return lambda _: os.getpid()

    first, second = (set(POOL.stream(work, Process(), reuse=True)) for _ in range(2))
    assert first & second


def third(work: list[Chunk], reuse: bool) -> list[Chunk]:
    """The chunk that fails: among others, or alone. Where one fails, Ray Data cancels the tasks of the others, and Ray
    2.60 aborts this process if one of them ends in that very moment (`task_manager.cc`: it was not pending): chunks of
    milliseconds did once; those of real work take seconds.
    """
    return work[2:3] if reuse else work


@REUSE
@pytest.mark.usefixtures("_ray_here")
@pytest.mark.parametrize("kind", [DataError, ResourceError])
def test_an_error_of_ours_arrives_as_it_is(work, summing, reuse, kind) -> None:
    with pytest.raises(kind, match=r"^there is a reason$"):
        list(POOL.stream(third(work, reuse), summing(bad=16, kind=kind.__name__), reuse=reuse))


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_an_error_at_the_start_of_a_worker_arrives_as_it_is(work, summing, reuse) -> None:
    with pytest.raises(DataError, match=r"^the model is of another kind$"):
        list(POOL.stream(third(work, reuse), summing(can_open=False), reuse=reuse))


@REUSE
@pytest.mark.usefixtures("_ray_here")
def test_a_chunk_that_ends_its_process_every_time_is_given_up(work, summing, reuse, monkeypatch) -> None:
    monkeypatch.setattr("ensemw2s.cluster.pool.RETRIES", 1)
    with pytest.raises(ResourceError, match=r"a chunk's process died 2 times; if for lack of memory, lower labeling\."):
        list(POOL.stream(third(work, reuse), summing(bad=16, kind="death"), reuse=reuse))


@pytest.mark.usefixtures("_ray_here")
@pytest.mark.skipif(has_gpu(), reason="nothing is forked where there is a GPU")
def test_processes_are_forks_that_have_imported_torch_and_have_ids_of_their_own():
    import ray

    @ray.remote(num_cpus=0)
    class Looking:
        def look(self) -> tuple[bool, str, str]:
            ours = ray.get_runtime_context().get_worker_id()
            return "torch" in sys.modules, ours, ray.WorkerID.from_random().hex()

    looking = [Looking.remote() for _ in range(3)]
    found = ray.get([one.look.remote() for one in looking])
    assert all(imported for imported, _, _ in found)
    assert len({each for _, *both in found for each in both}) == 6
