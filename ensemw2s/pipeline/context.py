"""What the phases of a run share: config, graph, resources, progress, and whom to tell when a stage ran."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from ensemw2s import faults
from ensemw2s.boosting.scoring import Reading
from ensemw2s.cluster.pool import Pool
from ensemw2s.cluster.resources import ResourcePlan
from ensemw2s.config import Config
from ensemw2s.models.info import model_info
from ensemw2s.pipeline.graph import Graph
from ensemw2s.progress import Progress, stage_metrics

if TYPE_CHECKING:
    from ensemw2s.training.launch import Lanes


@dataclass
class Context:
    """A run in progress.

    Attributes:
        graph: Its stages.
        plan: How the resources are divided.
        progress: Where progress is shown.
        lanes: Where models are trained.
        on_stage: Called with name, start and end (seconds since 1970) of every stage that ran.
    """

    graph: Graph
    plan: ResourcePlan
    progress: Progress
    lanes: Lanes
    on_stage: Callable[[str, float, float], None]

    @property
    def config(self) -> Config:
        return self.graph.config

    @cached_property
    def pool(self) -> Pool:
        """Where models score, label and are evaluated."""
        return Pool.of(self.config.labeling, self.plan.actors)

    @property
    def reading(self) -> Reading:
        """How experts read the tables that they are scored on."""
        labeling = self.config.labeling
        return Reading(labeling.batch_size, labeling.chunk_size, labeling.precision)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Around a stage: shows it on the terminal and to Prometheus, and tells `on_stage` when it ran."""
        faults.reach("pipeline/stage")
        began = time.time()
        run = self.progress.run or self.config.name
        with self.progress.stage(name, what), stage_metrics.running(run, name):
            yield
        self.on_stage(name, began, time.time())

    @cached_property
    def vocabulary(self) -> int:
        """K, the number of classes of the multi-class boosting: the size of the weak models' output layer."""
        base = self.graph.weak[0]
        return model_info(base.path, base.revision).vocabulary
