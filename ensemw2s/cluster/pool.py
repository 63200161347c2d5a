"""The pool of processes that score, label and evaluate: chunks stream in, one result per chunk streams out.

A chunk names a range of rows of a parquet file, and the process reads them itself: so batches are the same in every
run, memory stays flat, and what a chunk gives does not depend on which process had it.
"""

from __future__ import annotations

import gc
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s import errors
from ensemw2s.cluster.resources import share_of
from ensemw2s.config import LabelingConfig
from ensemw2s.errors import DataError, EnsemW2SError, ResourceError
from ensemw2s.storage import remote

if TYPE_CHECKING:  # a run that is complete needs no Ray, which takes a second to import
    from ray.data import Dataset

RETRIES = 12
"""How often a chunk is tried again whose process died or cannot be reached. Ray's default is to try for ever without a
word. A lost node costs tries until the cluster knows that it is dead."""

IDLE = 5.0
"""Seconds without a chunk after which a pooled process lets go of its models."""


@dataclass(frozen=True)
class Chunk:
    """Rows `start` to `stop` (exclusive) of a parquet file."""

    path: Path
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start

    def read(self) -> pa.Table:
        """The rows; only the row groups that hold them are read.

        Raises:
            DataError: If the file has fewer rows by now.
        """
        file = pq.ParquetFile(remote.pull(self.path))
        tables, first = [], 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            low, high = max(self.start, first), min(self.stop, first + rows)
            if low < high:
                tables.append(file.read_row_group(group).slice(low - first, high - low))
            first += rows
        if first < self.stop:
            raise DataError(
                f"{self.path} has {first} rows, expected at least {self.stop}: was it changed during the run?"
            )
        return pa.concat_tables(tables)


def chunks(path: Path, size: int) -> list[Chunk]:
    """Divides the rows of a parquet file into chunks of at most `size`."""
    path = path.resolve()  # workers do not share this process's working folder
    total = pq.read_metadata(remote.pull(path)).num_rows
    return [Chunk(path, start, min(start + size, total)) for start in range(0, total, size)]


WorkT = TypeVar("WorkT")
WorkT_contra = TypeVar("WorkT_contra", contravariant=True)
ResultT = TypeVar("ResultT")
ResultT_co = TypeVar("ResultT_co", covariant=True)


class Worker(Protocol[WorkT_contra, ResultT_co]):
    """What the processes of a pool do: a frozen record that travels to them and opens its models there."""

    def open(self) -> Callable[[WorkT_contra], ResultT_co]:
        """Loads what the work needs. What it gives turns one piece of work into its result."""


@dataclass(frozen=True)
class Pool:
    """Processes of one size that work on chunks.

    The processes start with the first stream. Actors end with their stream. Pooled processes (`reuse`) stay for the
    next stream, without their models, and end with the connection to Ray.

    Attributes:
        cpus: CPUs per process; its threads.
        gpus: GPUs per process.
        node_resource: A resource of the nodes that processes are kept on; None: any node.
        smallest: Processes that are kept while there is work.
        largest: Most processes at a time.
    """

    cpus: float = 1.0
    gpus: float = 0.0
    node_resource: str | None = None
    smallest: int = 1
    largest: int = 1

    @classmethod
    def of(cls, labeling: LabelingConfig, actors: int) -> Pool:
        """The pool that a config asks for; `actors` is its largest size on this cluster."""
        return cls(
            labeling.cpus_per_actor, labeling.gpus_per_actor, labeling.node_resource, labeling.min_actors, actors
        )

    def stream(
        self, work: Sequence[WorkT], worker: Worker[WorkT, ResultT], *, calls: int = 1, reuse: bool = False
    ) -> Iterator[ResultT]:
        """Does every piece of work, and yields the results as they come.

        Args:
            work: Pieces of work, such as chunks: frozen records.
            worker: Who does them.
            calls: How many pieces a process works on at the same time, each in a thread; more than 1 for workers that
                can.
            reuse: Where no GPU is used, work in Ray's pooled processes in place of actors: they outlive this call, so
                many short streams pay for starting up once. (A pooled process would hold on to GPU memory.)

        Raises:
            EnsemW2SError: What the worker raised, if it is one of ours.
            ResourceError: If the processes that worked on a piece died again and again.
        """
        if not work:
            return
        import ray.data
        from ray import cloudpickle
        from ray.util.annotations import RayDeprecationWarning

        rows = [{"work": cloudpickle.dumps(piece)} for piece in work]
        with warnings.catch_warnings():
            # Ray Data 2.60 warns of every remote option it gave no name, and the number of retries is one of these.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            packed, largest = cloudpickle.dumps(worker), min(self.largest, len(work))
            if reuse and not self.gpus:
                done = self._pooled(dataset, packed, largest)
            else:
                done = self._by_actors(dataset, packed, largest, calls)
        try:
            for row in done.iter_rows():
                outcome = pickle.loads(row["outcome"])
                if isinstance(outcome, _Failure):
                    raise getattr(errors, outcome.kind)(outcome.message)
                yield outcome
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise ResourceError(
                f"decoding stopped: a chunk's process died {RETRIES + 1} times; if for lack of memory, lower "
                f"labeling.batch_size or labeling.max_actors ({str(error).strip().splitlines()[0]})"
            ) from error

    def _pooled(self, dataset: Dataset, packed: bytes, largest: int) -> Dataset:
        from ray.data import TaskPoolStrategy

        return dataset.map(
            _in_pooled_process,  # type: ignore[arg-type]  # Ray Data's annotation forgets fn_args
            fn_args=(packed,),
            compute=TaskPoolStrategy(size=largest),
            num_cpus=self.cpus,
            resources=share_of(self.node_resource),
            max_retries=RETRIES,
        )

    def _by_actors(self, dataset: Dataset, packed: bytes, largest: int, calls: int) -> Dataset:
        from ray.data import ActorPoolStrategy

        return dataset.map(
            _Actor,  # type: ignore[arg-type]  # and that a class may be given
            fn_constructor_args=(packed,),
            compute=ActorPoolStrategy(
                min_size=min(self.smallest, largest),
                max_size=largest,
                initial_size=largest,
                max_tasks_in_flight_per_actor=calls + 1,
                max_concurrent_calls_per_actor=calls,
                enable_true_multi_threading=calls > 1,
            ),
            num_cpus=self.cpus,
            num_gpus=self.gpus or None,
            resources=share_of(self.node_resource),
            max_task_retries=RETRIES,
        )


class _Work(TypedDict):
    """A row of Ray Data that goes in: a pickled piece of work."""

    work: bytes


class _Outcome(TypedDict):
    """A row of Ray Data that comes out: a pickled result, or a pickled `_Failure`."""

    outcome: bytes


@dataclass(frozen=True)
class _Failure:
    """An error of ours: Ray Data keeps the text of what a worker raises, but not what it was."""

    kind: str
    message: str

    @classmethod
    def of(cls, error: EnsemW2SError) -> _Failure:
        return cls(type(error).__name__, str(error))


class _Kept:
    """The open worker of a pooled process, kept from one task to the next.

    Its models take memory that others need, so it goes when no task has come for a while.
    """

    def __init__(self, idle: float = IDLE) -> None:
        self._idle, self._lock = idle, threading.Lock()
        self._packed, self._open = b"", None
        self._timer = threading.Timer(idle, self._let_go)

    def run(self, packed: bytes, work: object) -> object:
        """The result of a piece of work, by a worker that is opened if another one was."""
        self._timer.cancel()
        with self._lock:
            if packed != self._packed:
                self._forget()
                self._packed, self._open = packed, pickle.loads(packed).open()
            assert self._open is not None
            try:
                return self._open(work)
            finally:
                self._timer = threading.Timer(self._idle, self._let_go)
                self._timer.daemon = True
                self._timer.start()

    def _let_go(self) -> None:
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._packed, self._open = b"", None
        gc.collect()  # engines refer to their ensemble in a circle


_kept = _Kept()
"""What a pooled process keeps: a task of Ray has no other place for it. In the process that streams it stays empty."""


def _in_pooled_process(row: _Work, packed: bytes) -> _Outcome:
    from ray import cloudpickle

    _use_own_cores()
    try:
        outcome = _kept.run(packed, pickle.loads(row["work"]))
    except EnsemW2SError as error:
        outcome = _Failure.of(error)
    return {"outcome": cloudpickle.dumps(outcome)}


def _use_own_cores() -> None:
    """As many threads as Ray gave cores to this process: more would wait for each other."""
    import ray
    import torch

    threads = max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


class _Actor:
    """Hands the work in a Ray Data row to the open worker; the result is the row that comes out."""

    def __init__(self, packed: bytes) -> None:
        _use_own_cores()
        self._open: Callable[[object], object]
        try:
            self._open = pickle.loads(packed).open()
        except EnsemW2SError as error:
            failure = _Failure.of(error)  # an actor that cannot start would be started again and again
            self._open = lambda _: failure

    def __call__(self, row: _Work) -> _Outcome:
        from ray import cloudpickle

        try:
            outcome = self._open(pickle.loads(row["work"]))
        except EnsemW2SError as error:
            outcome = _Failure.of(error)
        return {"outcome": cloudpickle.dumps(outcome)}
