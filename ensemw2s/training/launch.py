"""Many training runs on Ray Train: a list of specs goes in, their trained models lie in their output folders after.

A lane is one `TorchTrainer` run whose workers train one spec after another, so that starting up is paid once a lane. A
board (one small actor) hands out the specs, so that lanes stay busy until none is left, and collects the progress.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import LoggingConfig

from ensemw2s import store
from ensemw2s.config import TrainingConfig
from ensemw2s.errors import EnsemW2SError, TrainingError
from ensemw2s.training.spec import TrainSpec

POLL = 0.5
"""Seconds between two looks at the board."""

OnProgress = Callable[[str, int, int, str], None]


@ray.remote(num_cpus=0)
class Board:
    """Which specs wait, which lane has which, and how far each is."""

    def __init__(self, specs: list[str]) -> None:
        self._waiting = list(range(len(specs)))
        self._specs = specs
        self._held: dict[int, int] = {}
        self._progress: dict[str, tuple[int, int, float]] = {}

    def take(self, lane: int) -> str | None:
        """The next spec of a lane, as JSON. A lane that comes back without having finished gets the same one again."""
        if lane not in self._held:
            if not self._waiting:
                return None
            self._held[lane] = self._waiting.pop(0)
        return self._specs[self._held[lane]]

    def finish(self, lane: int) -> None:
        self._held.pop(lane, None)

    def report(self, name: str, done: int, total: int, loss: float) -> None:
        self._progress[name] = (done, total, loss)

    def progress(self) -> dict[str, tuple[int, int, float]]:
        return dict(self._progress)


def train_all(
    specs: list[TrainSpec],
    *,
    training: TrainingConfig,
    lanes: int,
    scratch: Path,
    on_progress: OnProgress | None = None,
) -> dict[str, dict[str, Any]]:
    """Trains specs side by side; those whose finished output is there are not trained again.

    Args:
        specs: What to train; long ones first make the lanes end together.
        training: Workers of a lane and their resources.
        lanes: Ray Train runs side by side, at most.
        scratch: Folder for Ray Train's own files; they are removed at the end.
        on_progress: Called from this thread with name, steps done, steps in all and a note.

    Returns:
        The facts of each spec's train.json, by name.

    Raises:
        TrainingError: If a lane failed more often than `training.max_failures`; finished specs stay.
    """
    waiting = [spec for spec in specs if not store.is_done(Path(spec.output), spec.fingerprint)]
    if waiting:
        board = Board.remote([spec.model_dump_json() for spec in waiting])
        count = min(lanes, len(waiting))
        with ThreadPoolExecutor(count, thread_name_prefix="lane") as pool:
            runs = [pool.submit(_run_lane, lane, board, training, scratch) for lane in range(count)]
            pending = set(runs)
            while pending:
                _, pending = wait(pending, timeout=POLL)
                _show(board, on_progress)
        ray.kill(board)
        for run in runs:
            run.result()
    return {spec.name: store.read_json(Path(spec.output) / "train.json") for spec in specs}


def _show(board: Any, on_progress: OnProgress | None) -> None:
    if on_progress is not None:
        for name, (done, total, loss) in ray.get(board.progress.remote()).items():
            on_progress(name, done, total, f"loss {loss:.3f}")


def _run_lane(lane: int, board: Any, training: TrainingConfig, scratch: Path) -> None:
    """One Ray Train run, from start to end."""
    name = f"lane-{lane}-{uuid.uuid4().hex[:8]}"  # a name that was used before would resume that run
    resources = {"CPU": training.cpus_per_worker}
    if training.gpus_per_worker:
        resources["GPU"] = training.gpus_per_worker
    trainer = TorchTrainer(
        lane_worker,
        train_loop_config={"lane": lane, "board": board},
        scaling_config=ScalingConfig(
            num_workers=training.workers, use_gpu=training.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(scratch.resolve()),
            failure_config=FailureConfig(max_failures=training.max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _reason(error) from error
    finally:
        shutil.rmtree(scratch / name, ignore_errors=True)


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


def lane_worker(config: dict[str, Any]) -> None:
    """What each worker of a lane does: takes specs from the board until none is left, all workers the same one."""
    from ray.train.collective import broadcast_from_rank_zero

    from ensemw2s.training import loop

    board, lane = config["board"], config["lane"]
    first = ray.train.get_context().get_world_rank() == 0
    said = 0.0

    def on_step(name: str, done: int, total: int, loss: float) -> None:
        nonlocal said
        if done == total or time.monotonic() - said > POLL:
            said = time.monotonic()
            board.report.remote(name, done, total, loss)

    while True:
        text = broadcast_from_rank_zero(ray.get(board.take.remote(lane)) if first else None)
        if text is None:
            return
        loop.train(TrainSpec.model_validate_json(text), on_step=on_step)
        if first:
            ray.get(board.finish.remote(lane))
