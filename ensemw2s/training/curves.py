"""Curves of a training: numbers of a step come in, points go to TensorBoard, MLflow or wandb, for people to look at.

Worker 0 writes them while it trains, beside the run's artifacts. Nothing reads them back, and a tracking server that
does not answer stops no training.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from ensemw2s import env
from ensemw2s.storage import remote
from ensemw2s.training.spec import Tracking

log = logging.getLogger(__name__)

TAG = "ensemw2s.training"
"""Tag of an MLflow run: the name of the training that it shows."""


class CurveWriter:
    """Scalars over steps; a point stands for all steps since the last one."""

    def __init__(self, tracking: Tracking | None, *, after: int = 0) -> None:
        """Begins anew, or goes on: what an earlier, killed training wrote is removed or continued.

        Args:
            tracking: Where points go. None: nowhere.
            after: Step whose checkpoint the training goes on from; 0: the start.
        """
        self._every = tracking.every if tracking else 1
        self._since, self._tokens = time.monotonic(), 0
        self._sink: _Sink | None = None
        if tracking is not None:
            self._try(lambda: setattr(self, "_sink", _SINKS[tracking.kind](tracking, after)))

    def due(self, number: int, tokens: int) -> bool:
        """Counts a step, and says whether a point is due. Only then must its values be fetched from the device.

        Args:
            number: Steps done so far.
            tokens: Tokens in this step, of all workers.
        """
        self._tokens += tokens
        return self._sink is not None and number % self._every == 0

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Writes the point of a step that is due, and the tokens per second since the last one."""
        seconds = time.monotonic() - self._since
        self.point(number, {**values, "tokens_per_second": self._tokens / max(seconds, 1e-9)})
        self._since, self._tokens = time.monotonic(), 0

    def point(self, number: int, values: Mapping[str, float]) -> None:
        """Writes scalars at a place on the axis."""
        if (sink := self._sink) is not None:
            self._try(lambda: sink.add(number, values))

    def close(self, *, finished: bool = True) -> None:
        """Writes what is left; `finished` is whether the training came to its end."""
        if (sink := self._sink) is not None:
            self._try(lambda: sink.close(finished))

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # servers fail in many ways, and none of them is a reason not to train
            log.warning("no more curves: %s: %s", type(error).__name__, error)
            self._sink = None


class _Sink(Protocol):
    def add(self, number: int, values: Mapping[str, float]) -> None: ...

    def close(self, finished: bool) -> None: ...


class _TensorBoard:
    """An event file in the training's folder."""

    def __init__(self, tracking: Tracking, after: int) -> None:
        from tensorboardX import SummaryWriter

        if not after:
            remote.remove(Path(tracking.place))
        # of what the file before says about later steps TensorBoard shows nothing
        purge = after + 1 if after else None
        self._folder = Path(tracking.place)
        self._writer = SummaryWriter(tracking.place, purge_step=purge, filename_suffix=f".{after}")

    def add(self, number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)

    def close(self, finished: bool) -> None:
        self._writer.close()
        remote.push(self._folder)


class _Mlflow:
    """A run of an MLflow experiment that is named like the whole run."""

    def __init__(self, tracking: Tracking, after: int) -> None:
        if "://" not in tracking.place:
            env.MLFLOW_FILES.set_default()  # a folder was asked for
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=tracking.place)
        experiment = self._experiment(tracking.experiment)
        earlier = self._client.search_runs([experiment], f"tags.`{TAG}` = '{tracking.name}'")
        if earlier and after:
            self._run: str = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        for run in earlier:
            self._client.delete_run(run.info.run_id)
        self._run = self._client.create_run(experiment, run_name=tracking.name, tags={TAG: tracking.name}).info.run_id

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self._client.get_experiment_by_name(name)) is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another training was first
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def add(self, number: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics: list[Any] = [Metric(name, value, now, number) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


class _Wandb:
    """A run of Weights & Biases, in the project that is named like the whole run; offline unless there is a key."""

    def __init__(self, tracking: Tracking, after: int) -> None:
        env.WANDB_ERRORS.set_default()
        import wandb  # costs seconds

        folder = Path(tracking.place)
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / f"{tracking.name.replace('/', '.')}.id"
        if not (after and known.exists()):
            known.write_text(uuid.uuid4().hex[:16], encoding="utf-8")
        self._folder = folder
        self._run = wandb.init(
            project=tracking.experiment,
            id=known.read_text(encoding="utf-8"),
            name=tracking.name,
            dir=tracking.place,
            mode=None if env.WANDB_MODE.get() else "online" if env.WANDB_KEY.get() else "offline",
            resume="allow",
            reinit="create_new",  # trainings of one worker follow each other
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
        self._run.define_metric("*", step_metric="step")  # a training that goes on repeats steps

    def add(self, number: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": number})

    def close(self, finished: bool) -> None:
        import wandb

        self._run.finish(exit_code=0 if finished else 1)
        wandb.teardown()  # ends wandb's own process: until then the last points may not be in the run's file
        remote.push(self._folder)


_SINKS: Mapping[str, Callable[[Tracking, int], _Sink]] = {
    "tensorboard": _TensorBoard,
    "mlflow": _Mlflow,
    "wandb": _Wandb,
}
