"""A plan as a record, for programs: what `ensemw2s plan --json` prints."""

from __future__ import annotations

from ensemw2s.cluster.resources import ResourcePlan, Resources
from ensemw2s.pipeline.plan import Plan
from ensemw2s.pipeline.survey import State
from ensemw2s.storage.record import Record


class PlannedStage(Record):
    """A stage of a plan.

    Attributes:
        name: Its name.
        state: Whether it is done, to do, changed (made with another config), not needed, or freed (gone, and not made
            again).
        detail: The settings that changed, or why it is not needed; empty where there is nothing to say.
        steps: Optimizer steps of its training; None where it trains no model.
    """

    name: str
    state: State
    detail: str
    steps: int | None


class PlannedLine(Record):
    """A line of the plan's table: stages that belong together.

    Attributes:
        name: Name of the stage, or of the first and the last.
        what: Sizes in words.
        stages: Its stages; empty for a base that exists already.
    """

    name: str
    what: str
    stages: tuple[PlannedStage, ...]


class PlanRecord(Record):
    """A run as it would go on.

    Attributes:
        name: Name of the run.
        seed: Its seed.
        folder: Where its files go.
        lines: All stages, in the order of the pipeline.
        complete: Everything is done.
        models_left: Models that are still to be trained.
        steps_left: Their optimizer steps in all.
        cluster: Address of the cluster, or the cluster's file; None: this machine.
        nodes: Number of nodes there are.
        cpus: CPUs of all nodes together.
        gpus: GPUs of all nodes together.
        free_bytes: Bytes free on the disk of the run; None where it is not a disk of this machine.
        lanes: Trainings side by side.
        actors: Decoding actors at most.
    """

    name: str
    seed: int
    folder: str
    lines: tuple[PlannedLine, ...]
    complete: bool
    models_left: int
    steps_left: int
    cluster: str | None
    nodes: int
    cpus: float
    gpus: float
    free_bytes: int | None
    lanes: int
    actors: int

    @classmethod
    def of(
        cls, plan: Plan, *, resources: Resources, division: ResourcePlan, free_bytes: int | None, address: str | None
    ) -> PlanRecord:
        """Writes a plan down; the arguments are those of `print_plan`."""
        models, steps = plan.left()
        lines = []
        for item in plan.items:
            found = {stage.name: plan.found[stage.name] for stage in item.stages}
            stages = tuple(
                PlannedStage(name=name, state=one.state, detail=one.detail, steps=item.steps.get(name))
                for name, one in found.items()
            )
            lines.append(PlannedLine(name=item.name, what=item.what, stages=stages))
        return cls(
            name=plan.config.name,
            seed=plan.config.seed,
            folder=plan.where,
            lines=tuple(lines),
            complete=plan.complete,
            models_left=models,
            steps_left=steps,
            cluster=address,
            nodes=len(resources.nodes),
            cpus=resources.cpus,
            gpus=resources.gpus,
            free_bytes=free_bytes,
            lanes=division.lanes,
            actors=division.actors,
        )
