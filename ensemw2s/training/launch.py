"""Many training runs on Ray Train: a list of specs goes in, their trained models lie in their output folders after.

A lane is one `TorchTrainer` run whose workers train one spec after another, so starting up is paid once per lane. A
board (one small actor) hands out the specs, so that lanes stay busy while any is left, and collects the progress.
"""

from __future__ import annotations

import asyncio
import heapq
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from ensemw2s import errors, faults
from ensemw2s.cluster.resources import share_of
from ensemw2s.config import TrainingConfig
from ensemw2s.errors import EnsemW2SError, TrainingError
from ensemw2s.storage import remote, store
from ensemw2s.training.records import TrainRecord
from ensemw2s.training.spec import TrainSpec

POLL = 0.3
"""Seconds between two looks at the board."""

PATIENCE = 60.0
"""Seconds that abandoned lanes have to end. One step, or the start of a lane, must fit."""

GROW = 60.0
"""Seconds between two looks at whether a lane that may grow can."""

OnProgress = Callable[[str, int, int, str], None]


@ray.remote(num_cpus=0)
class Board:
    """Which specs wait, which lane has which, and how far each is."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, str, str]] = []
        self._count = 0
        self._held: dict[int, tuple[str, str]] = {}
        self._finished: set[str] = set()
        self._failed: dict[str, tuple[str, str]] = {}
        self._progress: dict[str, tuple[int, int, float]] = {}
        self._closed = self._abandoned = False
        self._changed = asyncio.Condition()

    async def add(self, specs: list[tuple[str, str]], priority: int) -> None:
        """Puts up specs (ticket, JSON); lower priorities are taken first, among equals the earlier one."""
        async with self._changed:
            for ticket, text in specs:
                self._count += 1
                heapq.heappush(self._waiting, (priority, self._count, ticket, text))
            self._changed.notify_all()

    async def take(self, lane: int) -> str | None:
        """Waits for the next spec of a lane. None: there are no more.

        A lane that comes back without having finished (its workers died) gets the same spec again.
        """
        async with self._changed:
            while lane not in self._held:
                if self._waiting:
                    _, _, ticket, text = heapq.heappop(self._waiting)
                    self._held[lane] = (ticket, text)
                elif self._closed:
                    return None
                else:
                    await self._changed.wait()
            return self._held[lane][1]

    async def finish(self, lane: int) -> None:
        """Says that a lane has trained its spec."""
        if lane in self._held:
            self._finished.add(self._held.pop(lane)[0])

    async def fail(self, lane: int, kind: str, message: str) -> None:
        """Says that a lane's spec failed with one of our errors, which would come again at every other try."""
        if lane in self._held:
            self._failed[self._held.pop(lane)[0]] = (kind, message)

    async def close(self, abandon: bool) -> None:
        """Lets lanes end when nothing waits, or at once, with what they are at unfinished."""
        async with self._changed:
            self._closed, self._abandoned = True, abandon
            if abandon:
                self._waiting, self._held = [], {}
            self._changed.notify_all()

    async def report(self, name: str, done: int, total: int, loss: float) -> bool:
        """Takes the progress of a spec. Returns whether its training is still wanted."""
        self._progress[name] = (done, total, loss)
        return not self._abandoned

    async def look(self) -> tuple[set[str], dict[str, tuple[str, str]], dict[str, tuple[int, int, float]]]:
        """Finished tickets, failed ones with class and text of the error, and the progress since the last look."""
        progress, self._progress = self._progress, {}
        return self._finished, self._failed, progress


class Lanes:
    """Trains lists of specs on Ray Train runs that stay up in between.

    Args:
        training: Workers of a lane and their resources.
        count: Lanes side by side, at most.
        scratch: Folder for Ray Train's own files; they are removed at the end.
        keep: Lanes stay up between calls of `train`. Else each call ends with its lanes, and calls wait for each other.
        on_progress: Called with name, steps done, steps in all and a note.
    """

    def __init__(
        self, training: TrainingConfig, count: int, scratch: Path, *, keep: bool, on_progress: OnProgress | None = None
    ) -> None:
        self._training, self._count, self._scratch, self._keep = training, count, scratch, keep
        self._on_progress = on_progress
        self._board: Any = None
        self._runs: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._starting = threading.Lock()
        self._alone = threading.Lock()

    def __enter__(self) -> Lanes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(abandon=error is not None)

    def train(self, specs: list[TrainSpec], *, priority: int = 0) -> dict[str, TrainRecord]:
        """Trains specs side by side; those whose finished output is there are not trained again. Thread-safe.

        Args:
            specs: What to train; long ones first make the lanes end together.
            priority: Specs of lower priority values are begun first.

        Returns:
            The record of each training, by the name of its spec.

        Raises:
            EnsemW2SError: What a spec failed with, if it is one of ours; it is not tried again.
            TrainingError: If the workers of a lane died more often than `training.max_failures`.
                In both cases finished specs stay.
        """
        waiting = [spec for spec in specs if not store.is_done(Path(spec.output), spec.fingerprint)]
        if waiting and self._keep:
            self._train(waiting, priority)
        elif waiting:
            with self._alone:
                try:
                    self._train(waiting, priority)
                except BaseException:
                    self.close(abandon=True)
                    raise
                self.close()
        return {spec.name: TrainRecord.read(Path(spec.output)) for spec in specs}

    def close(self, *, abandon: bool = False) -> None:
        """Ends the lanes, after what they are training unless `abandon` is set. A later `train` starts new ones.

        Lanes are waited for in any case: the end of Ray under their feet would end this process, without a word.
        """
        board, runs = self._board, self._runs
        if board is None:
            return
        self._board, self._runs = None, []
        with suppress(ray.exceptions.RayError) if abandon else nullcontext():
            ray.get(board.close.remote(abandon))
        if abandon:
            faults.reach("training/abandoned")
        wait(runs, timeout=PATIENCE if abandon else None)
        ray.kill(board)

    def start(self, wanted: int) -> None:
        """Starts lanes, if they are to stay up, before there is work for them; `wanted` is how many can be of use."""
        if self._keep:
            self._start(wanted)

    def _start(self, wanted: int) -> None:
        with self._starting:
            if self._board is None:
                self._board = Board.remote()  # type: ignore[attr-defined]
            for lane in range(len(self._runs), min(self._count, wanted)):
                self._runs.append(self._pool.submit(self._run_lane, lane, self._board))

    def _train(self, specs: list[TrainSpec], priority: int) -> None:
        tickets = {uuid.uuid4().hex: spec.model_dump_json() for spec in specs}
        self._start(len(self._runs) + len(specs))
        board = self._board
        ray.get(board.add.remote(list(tickets.items()), priority))
        while True:
            finished, failed, progress = ray.get(board.look.remote())
            for name, (done, total, loss) in progress.items():
                if self._on_progress is not None:
                    self._on_progress(name, done, total, f"loss {loss:.3f}")
            for ticket in tickets.keys() & failed.keys():
                kind, message = failed[ticket]
                raise getattr(errors, kind, TrainingError)(message)
            if tickets.keys() <= finished:
                return
            for run in self._runs:
                if run.done():
                    run.result()  # a lane only ends by itself when it failed
            time.sleep(POLL)

    def _run_lane(self, lane: int, board: Any) -> None:
        """A lane, from start to end."""
        name = f"lane-{lane}-{uuid.uuid4().hex[:8]}"  # a name that was used before would resume that run
        try:
            self._trainer(name, lane, board).fit()
        except ray.train.TrainingFailedError as error:
            raise _reason(error) from error
        except ray.exceptions.RayActorError as error:  # what it had reserved may stay so; a new Ray has it all
            raise TrainingError("Ray Train's controller died: the same command goes on from here") from error
        finally:
            remote.remove(self._scratch / name)

    def _trainer(self, name: str, lane: int, board: Any) -> TorchTrainer:
        training, workers = self._training, self._training.workers
        resources = {"CPU": training.cpus_per_worker}
        if training.gpus_per_worker:
            resources["GPU"] = training.gpus_per_worker
        resources.update(share_of(training.node_resource))
        return TorchTrainer(
            lane_worker,
            train_loop_config={"lane": lane, "board": board},
            scaling_config=ScalingConfig(
                num_workers=workers.min if workers.min == workers.max else (workers.min, workers.max),
                use_gpu=training.gpus_per_worker > 0,
                resources_per_worker=resources,
                elastic_resize_monitor_interval_s=GROW,
            ),
            run_config=RunConfig(  # type: ignore[arg-type]  # annotated with the classes of Train v1
                name=name,
                storage_path=remote.for_ray(self._scratch),
                failure_config=FailureConfig(max_failures=training.max_failures),
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )


def _reason(error: ray.train.TrainingFailedError) -> EnsemW2SError:
    """What went wrong in a worker, without Ray's own trace."""
    failures = list(getattr(error, "worker_failures", {}).values()) or [getattr(error, "controller_failure", error)]
    for failure in failures:
        cause: BaseException | None = failure
        while cause is not None and not isinstance(cause, EnsemW2SError):
            cause = getattr(cause, "cause", None) or getattr(cause, "_base_exc", None) or cause.__cause__
        if cause is not None:
            return cause
    lines = str(failures[0]).strip().splitlines()
    return TrainingError(f"training failed: {lines[-1] if lines else type(failures[0]).__name__}")


class _Abandoned(Exception):
    """Nobody waits for the training any more."""


def lane_worker(config: dict[str, Any]) -> None:
    """What each worker of a lane does: takes specs from the board until none is left, all workers the same one."""
    from ray.train.collective import broadcast_from_rank_zero

    from ensemw2s.training import loop

    board, lane = config["board"], config["lane"]
    context = ray.train.get_context()
    first, alone = context.get_world_rank() == 0, context.get_world_size() == 1
    said, wanted = 0.0, None

    def on_step(name: str, done: int, total: int, loss: torch.Tensor) -> None:
        nonlocal said, wanted
        if done == total or time.monotonic() - said > POLL:
            said = time.monotonic()
            if wanted is not None and not ray.get(wanted):  # the answer to the last report, so there is no waiting
                raise _Abandoned
            wanted = board.report.remote(name, done, total, float(loss))

    def on_checkpoint(path: Path, step: int) -> None:
        # The checkpoint itself is not given to Ray Train, which would keep it with the lane: it lies beside the output
        # that it is on the way to, where a later run finds it too.
        ray.train.report({"checkpoint": str(path), "step": step})

    def leaving() -> bool:
        return ray.train.get_preemption_info() is not None

    while True:
        text = broadcast_from_rank_zero(ray.get(board.take.remote(lane)) if first else None)
        if text is None:
            return
        try:
            spec = TrainSpec.model_validate_json(text)
            loop.train(spec, on_step=on_step, on_checkpoint=on_checkpoint, leaving=leaving)
        except (_Abandoned, EnsemW2SError) as error:
            if isinstance(error, EnsemW2SError):
                ray.get(board.fail.remote(lane, type(error).__name__, str(error)))
            if not alone:
                raise  # the other workers may be waiting for this one
        else:
            if first:
                ray.get(board.finish.remote(lane))
