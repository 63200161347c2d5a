"""Work over a pool of Ray Data actors: descriptions of chunks stream in, one result row a chunk streams out.

A chunk names a range of rows of a parquet file, and the actor reads them itself: so batches are the same in every run,
memory stays flat, and what a chunk gives does not depend on which actor had it. Scoring, labelling and evaluation
are such workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from ensemw2s.config import LabelingConfig
from ensemw2s.errors import DataError, EnsemW2SError, ResourceError

Chunk = dict[str, Any]


def chunks(path: Path, size: int, **fields: Any) -> list[Chunk]:
    """Divides the rows of a parquet file into chunks of at most `size`; `fields` are added to each."""
    total = pq.read_metadata(path).num_rows
    return [
        {"path": str(path), "start": start, "stop": min(start + size, total), **fields}
        for start in range(0, total, size)
    ]


def read_chunk(chunk: Chunk) -> pa.Table:
    """The rows of a chunk; only the row groups that hold them are read.

    Raises:
        DataError: If the file has fewer rows by now.
    """
    file = pq.ParquetFile(chunk["path"])
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
    worker: type,
    arguments: dict[str, Any],
    *,
    labeling: LabelingConfig,
    actors: int,
    reuse: bool = False,
) -> Iterator[dict[str, Any]]:
    """Runs `worker(**arguments)(chunk)` for every chunk on a pool of actors, and yields the results as they come.

    Args:
        work: Chunks; plain values only.
        worker: Class whose instances take a chunk and return a flat row; the same keys for every chunk.
        arguments: Constructor arguments, plain values.
        labeling: Size of an actor and of the pool.
        actors: Largest size of the pool.
        reuse: Where no GPU is used, work in Ray's pooled processes in place of actors: they outlive this call, so that
            many short streams pay for starting up once. (A pooled process would hold on to GPU memory.)

    Raises:
        EnsemW2SError: What the worker raised, if it is one of ours.
        ResourceError: If the work failed because actors died.
    """
    if not work:
        return
    largest = min(actors, len(work))
    items = ray.data.from_items([{"chunk": chunk} for chunk in work], override_num_blocks=len(work))
    if reuse and not labeling.gpus_per_actor:
        dataset = items.map(
            _in_pooled_process,  # type: ignore[arg-type]  # Ray Data's annotation forgets fn_args
            fn_args=(worker, json.dumps(arguments)),
            compute=TaskPoolStrategy(size=largest),
            num_cpus=labeling.cpus_per_actor,
        )
    else:
        smallest = min(labeling.min_actors, largest)
        dataset = items.map(
            _Actor,  # type: ignore[arg-type]  # and that a class may be given
            fn_constructor_args=(worker, arguments),
            compute=ActorPoolStrategy(
                min_size=smallest, max_size=largest, initial_size=largest, max_tasks_in_flight_per_actor=2
            ),
            num_cpus=labeling.cpus_per_actor,
            num_gpus=labeling.gpus_per_actor or None,
        )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        while cause is not None and not isinstance(cause, EnsemW2SError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if isinstance(cause, EnsemW2SError):
            raise cause from error
        raise
    except ray.exceptions.RayError as error:
        raise ResourceError(f"decoding stopped: {str(error).strip().splitlines()[0]}") from error


@lru_cache(maxsize=1)
def _worker(worker: type, arguments: str) -> Any:
    return worker(**json.loads(arguments))


def _in_pooled_process(row: dict[str, Any], worker: type, arguments: str) -> dict[str, Any]:
    result: dict[str, Any] = _worker(worker, arguments)(row["chunk"])
    return result


class _Actor:
    """Hands the chunk in a Ray Data row to the worker; the worker's flat dictionary is the row that comes out."""

    def __init__(self, worker: type, arguments: dict[str, Any]) -> None:
        self._worker = worker(**arguments)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return self._worker(row["chunk"])
