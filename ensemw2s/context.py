"""What every part of a run shares while it runs: config, graph, resources, progress, and the record of its stages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ensemw2s.cluster import ResourcePlan
from ensemw2s.config import Config
from ensemw2s.models.loading import model_info
from ensemw2s.progress import Progress
from ensemw2s.stages import Graph
from ensemw2s.training.spec import TrainSpec


@dataclass
class Context:
    """A run in progress.

    Attributes:
        graph: Its stages.
        plan: How much runs at the same time.
        progress: Where progress is shown.
        on_stage: Called with name, start and end (seconds since 1970) of every stage that ran.
    """

    graph: Graph
    plan: ResourcePlan
    progress: Progress
    on_stage: Callable[[str, float, float], None]
    reserved: int = 0

    @property
    def config(self) -> Config:
        return self.graph.config

    @property
    def actors(self) -> int:
        """Largest size of an actor pool beside the lanes that other work has reserved."""
        t, d = self.config.training, self.config.labeling
        busy = self.reserved * t.workers * t.cpus_per_worker / d.cpus_per_actor
        return max(d.min_actors, int(self.plan.actors - busy))

    def reserve(self, lanes: int) -> None:
        """Says how many lanes run beside the main line of stages."""
        self.reserved = lanes

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Shows a stage and records when it ran."""
        began = time.time()
        with self.progress.stage(name, what):
            yield
        self.on_stage(name, began, time.time())

    @cached_property
    def vocabulary(self) -> int:
        """K, the number of classes of a token: the size of the weak models' output layer."""
        base = self.graph.weak[0]
        return model_info(base.path, base.revision).vocabulary

    def train(self, specs: list[TrainSpec], *, lanes: int | None = None) -> dict[str, dict[str, Any]]:
        """Trains specs on the cluster (see `training.launch.train_all`)."""
        from ensemw2s.training.launch import train_all

        return train_all(
            specs,
            training=self.config.training,
            lanes=lanes or max(1, self.plan.lanes - self.reserved),
            scratch=self.graph.root / ".ray",
            on_progress=self.progress.update,
        )
