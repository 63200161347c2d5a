"""Work over a pool of Ray Data actors: descriptions of chunks stream in, one result row a chunk streams out.

A chunk names a range of rows of a parquet file, and the actor reads them itself: so batches are the same in every run,
memory stays flat, and what a chunk gives does not depend on which actor had it. Scoring, labelling and evaluation
are such workers.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from ensemw2s import errors
from ensemw2s.cluster.resources import share_of
from ensemw2s.config import LabelingConfig
from ensemw2s.errors import DataError, EnsemW2SError, ResourceError
from ensemw2s.storage import remote

Chunk = dict[str, Any]

RETRIES = 12
"""How often a chunk whose process died or cannot be reached is tried again. Ray's own answer is: for ever, with nothing
said. A lost node costs tries until the cluster knows that it is dead."""

ACTOR = "actor"
"""Column of a result: which actor it comes from."""

STARTING = 30.0
"""Seconds for which a stream waits for pooled processes that are importing: longer than that takes."""

_starting: dict[str, list[ray.ObjectRef]] = defaultdict(list)
"""What `warm` has started and no stream has waited for, by Ray job."""

FAILED = "error of ours"
"""Column of a row that stands for an error; no worker has one of this name."""


def chunks(path: Path, size: int, **fields: Any) -> list[Chunk]:
    """Divides the rows of a parquet file into chunks of at most `size`; `fields` are added to each."""
    total = pq.read_metadata(remote.pull(path)).num_rows
    return [
        {"path": str(path), "start": start, "stop": min(start + size, total), **fields}
        for start in range(0, total, size)
    ]


def read_chunk(chunk: Chunk) -> pa.Table:
    """The rows of a chunk; only the row groups that hold them are read.

    Raises:
        DataError: If the file has fewer rows by now.
    """
    file = pq.ParquetFile(remote.pull(Path(chunk["path"])))
    start, stop = int(chunk["start"]), int(chunk["stop"])
    tables, first = [], 0
    for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        low, high = max(start, first), min(stop, first + rows)
        if low < high:
            tables.append(file.read_row_group(group).slice(low - first, high - low))
        first += rows
    if first < stop:
        raise DataError(f"{chunk['path']} has {first} rows, expected at least {stop}: was it changed during the run?")
    return pa.concat_tables(tables)


def stream(
    work: list[Chunk],
    worker: type | str,
    arguments: dict[str, Any],
    *,
    labeling: LabelingConfig,
    actors: int,
    calls: int = 1,
    reuse: bool = False,
) -> Iterator[dict[str, Any]]:
    """Runs `worker(**arguments)(chunk)` for every chunk on a pool of actors, and yields the results as they come.

    Args:
        work: Chunks; plain values only.
        worker: Class whose instances take a chunk and return a flat row; the same keys for every chunk. Or where it is,
            as in `package.module:Class`: then only the actors import it, which for models takes seconds.
        arguments: Constructor arguments, plain values.
        labeling: Size of an actor and of the pool.
        actors: Largest size of the pool.
        calls: How many chunks an actor works on at the same time, each in a thread; more than 1 for workers that can.
        reuse: Where no GPU is used, work in Ray's pooled processes in place of actors: they outlive this call, so that
            many short streams pay for starting up once. (A pooled process would hold on to GPU memory.)

    Raises:
        EnsemW2SError: What the worker raised, if it is one of ours.
        ResourceError: If the processes that worked on a chunk died again and again.
    """
    if not work:
        return
    if reuse:
        _let_them_start()
    largest = min(actors, len(work))
    items = ray.data.from_items([{"chunk": chunk} for chunk in work], override_num_blocks=len(work))
    with warnings.catch_warnings():
        # Ray Data 2.60 warns of every remote option it gave no name, and the number of retries is one of these.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        if reuse and not labeling.gpus_per_actor:
            dataset = items.map(
                _in_pooled_process,  # type: ignore[arg-type]  # Ray Data's annotation forgets fn_args
                fn_args=(worker, json.dumps(arguments)),
                compute=TaskPoolStrategy(size=largest),
                num_cpus=labeling.cpus_per_actor,
                resources=share_of(labeling.node_resource),
                max_retries=RETRIES,
            )
        else:
            smallest = min(labeling.min_actors, largest)
            dataset = items.map(
                _Actor,  # type: ignore[arg-type]  # and that a class may be given
                fn_constructor_args=(worker, arguments),
                compute=ActorPoolStrategy(
                    min_size=smallest,
                    max_size=largest,
                    initial_size=largest,
                    max_tasks_in_flight_per_actor=calls + 1,
                    max_concurrent_calls_per_actor=calls,
                    enable_true_multi_threading=calls > 1,
                ),
                num_cpus=labeling.cpus_per_actor,
                num_gpus=labeling.gpus_per_actor or None,
                resources=share_of(labeling.node_resource),
                max_task_retries=RETRIES,
            )
    try:
        for row in dataset.iter_rows():
            if row.get(FAILED):
                raise getattr(errors, row[FAILED])(row["message"])
            yield row
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise ResourceError(
            f"decoding stopped: a chunk's process died {RETRIES + 1} times; if for lack of memory, lower "
            f"labeling.batch_size or labeling.max_actors ({str(error).strip().splitlines()[0]})"
        ) from error


def warm(modules: list[str], *, labeling: LabelingConfig, actors: int) -> list[ray.ObjectRef]:
    """Starts the pooled processes of a later `stream(reuse=True)`, which takes seconds, and does not wait for them: the
    stream does.

    Args:
        modules: What they are to import.
        labeling: Size of one.
        actors: How many.

    Returns:
        One reference a process, to its number; none where a GPU is used.
    """
    if labeling.gpus_per_actor:
        return []
    size, kind = labeling.cpus_per_actor, share_of(labeling.node_resource)
    start = ray.remote(num_cpus=size, resources=kind, max_retries=0)(_import)
    started = [start.remote(modules) for _ in range(actors)]
    _starting[ray.get_runtime_context().get_job_id()] += started
    return started


def _let_them_start() -> None:
    """Waits for the processes that `warm` started: a stream that finds them importing would start as many others."""
    started = _starting.pop(ray.get_runtime_context().get_job_id(), [])
    if started:
        ray.wait(started, num_returns=len(started), timeout=STARTING)


def cool(*, labeling: LabelingConfig, actors: int) -> list[ray.ObjectRef]:
    """Ends as many pooled processes, which would keep their memory for a later stream, and does not wait for them.

    Returns:
        One reference a process, to its number; none where a GPU is used.
    """
    if labeling.gpus_per_actor:
        return []
    size, kind = labeling.cpus_per_actor, share_of(labeling.node_resource)
    end = ray.remote(num_cpus=size, resources=kind, max_retries=0, max_calls=1)(_be_the_last)
    return [end.remote() for _ in range(actors)]


def _be_the_last() -> int:
    time.sleep(0.2)  # so that the next one does not find this process free
    return os.getpid()


def _import(modules: list[str]) -> int:
    for name in modules:
        importlib.import_module(name)
    return os.getpid()


@lru_cache(maxsize=1)
def _worker(worker: type | str, arguments: str) -> Any:
    return _class(worker)(**json.loads(arguments))


def _in_pooled_process(row: dict[str, Any], worker: type | str, arguments: str) -> dict[str, Any]:
    _use_own_cores()
    try:
        result: dict[str, Any] = _worker(worker, arguments)(row["chunk"])
        return result
    except EnsemW2SError as error:
        return _failure(error)


def _class(worker: type | str) -> Any:
    return pkgutil.resolve_name(worker) if isinstance(worker, str) else worker


def _use_own_cores() -> None:
    """As many threads as Ray gave cores to this process: more would wait for each other."""
    import torch

    threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _Actor:
    """Hands the chunk in a Ray Data row to the worker; the worker's flat dictionary is the row that comes out."""

    def __init__(self, worker: type | str, arguments: dict[str, Any]) -> None:
        _use_own_cores()
        self._worker, self._failed = None, None
        try:
            self._worker = _class(worker)(**arguments)
        except EnsemW2SError as error:
            self._failed = _failure(error)  # an actor that cannot start would be started again and again

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            assert self._failed is not None
            return self._failed
        try:
            return {**self._worker(row["chunk"]), ACTOR: ray.get_runtime_context().get_actor_id()}
        except EnsemW2SError as error:
            return _failure(error)


def _failure(error: EnsemW2SError) -> dict[str, Any]:
    """An error of ours as a row: Ray Data keeps the text of what a worker raises, but not what it was."""
    return {FAILED: type(error).__name__, "message": str(error)}
