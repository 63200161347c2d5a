"""What `ensemw2s study --plan` shows: cells go in, how much of each is done and what is left in all comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.cluster.connect import cluster_address
from ensemw2s.cluster.resources import local_resources
from ensemw2s.costs.here import Here, on_this_machine, together
from ensemw2s.pipeline import steps
from ensemw2s.pipeline.plan import lay_out, parameters, training_steps
from ensemw2s.pipeline.survey import StageState
from ensemw2s.storage.record import Record, only_where_known
from ensemw2s.storage.store import Stage
from ensemw2s.study.cells import Cell
from ensemw2s.study.taken import Taken, sources


@dataclass(frozen=True)
class CellState:
    """How far a cell is.

    Attributes:
        cell: The cell.
        stages: Number of its stages.
        done: How many of them are there.
        complete: Its evaluation is, or its rows are there.
        taken: The file that its rows are taken from; None where it is done here, or is to be done.
    """

    cell: Cell
    stages: int
    done: int
    complete: bool
    taken: str | None = None


@dataclass(frozen=True)
class StudyPlan:
    """A study as it would go on.

    Attributes:
        cells: Every cell.
        stages: Number of different stages of the cells that are not complete.
        models: Models among these that are still to be trained.
        waiting: Stages among these that are to be made.
        steps: Optimizer steps of the models that are still to be trained, at most.
        sources: File → cells that are taken from it.
    """

    cells: tuple[CellState, ...]
    stages: int
    models: int
    waiting: int
    steps: int
    sources: Mapping[str, int]


class PlannedCell(Record):
    """A cell and how far it is; see `CellState`."""

    task: str
    variant: str
    seed: int
    stages: int
    done: int
    complete: bool
    taken: str | None = only_where_known()


class StudyPlanRecord(Record):
    """What `ensemw2s study --plan --json` prints.

    Attributes:
        name: Name of the study.
        cells: Every cell.
        stages: Number of different stages of the cells that are not complete.
        stages_left: Stages among these that are to be made.
        models_left: Models among these that are to be trained.
        steps_left: Their optimizer steps in all, at most.
        here: Time and memory on this machine; None for a cluster, or if nothing is left.
    """

    name: str
    cells: tuple[PlannedCell, ...]
    stages: int
    stages_left: int
    models_left: int
    steps_left: int

    here: Here | None = None

    @classmethod
    def of(cls, name: str, plan: StudyPlan, here: Here | None = None) -> StudyPlanRecord:
        """Writes a plan down."""
        cells = tuple(
            PlannedCell(
                task=state.cell.task,
                variant=state.cell.variant,
                seed=state.cell.seed,
                stages=state.stages,
                done=state.done,
                complete=state.complete,
                taken=state.taken,
            )
            for state in plan.cells
        )
        return cls(
            name=name,
            cells=cells,
            stages=plan.stages,
            stages_left=plan.waiting,
            models_left=plan.models,
            steps_left=plan.steps,
            here=here,
        )


def here_of(cells: list[Cell]) -> Here | None:
    """Time and memory of what is left of all cells on this machine; what cells share is counted with the first."""
    known: dict[Path, bool] = {}
    parts = []
    for cell in cells:
        config, stages = cell.graph.config, list(cell.graph.stages())
        if cluster_address(config.cluster) is not None:
            return None
        found: dict[str, StageState] = {}
        for stage in stages:
            if stage.path not in known:
                known[stage.path] = steps.done(stage)
            found[stage.name] = StageState("done" if known[stage.path] else "to do", "")
        known |= {stage.path: True for stage in stages}  # the next cell finds them made
        plan = lay_out(cell.graph, found, parameters(cell.graph))
        part = on_this_machine(cell.graph, plan, local_resources(config.cluster))
        parts += [part] if part is not None else []
    return together(parts)


def survey(cells: list[Cell], taken: Mapping[str, Taken] | None = None, places: Sequence[Path] = ()) -> StudyPlan:
    """Looks up what is done. Reads markers only.

    Args:
        cells: All cells of a study.
        taken: Name and rows of those that were run elsewhere.
        places: Where such rows were looked for.
    """
    taken = taken or {}
    known: dict[Path, bool] = {}
    trained: dict[Path, int] = {}
    left: set[Path] = set()

    def done(stage: Stage) -> bool:
        if stage.path not in known:
            known[stage.path] = steps.done(stage)
        return known[stage.path]

    states = []
    for cell in cells:
        stages = list(cell.graph.stages())
        source = taken[cell.name].source if cell.name in taken else None
        complete = source is not None or done(cell.graph.evaluation)
        state = CellState(cell, len(stages), sum(map(done, stages)), complete, source)
        states.append(state)
        if not state.complete:
            left |= {stage.path for stage in stages}
            of = training_steps(cell.graph)
            trained |= {stage.path: of[stage.name] for stage in stages if stage.name in of}
    waiting = {path for path in left if not known[path]}
    training = [n for path, n in trained.items() if path in waiting]
    return StudyPlan(tuple(states), len(left), len(training), len(waiting), sum(training), sources(taken, places))


def print_plan(plan: StudyPlan, console: Console, here: Here | None = None) -> None:
    """Prints every cell with its state, and what is left to do in all."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Task", "Variant", "Seed", "State"):
        table.add_column(heading, overflow="fold", header_style="bold")
    for state in plan.cells:
        text = "done" if state.complete else f"{state.done} of {state.stages} stages done"
        text = f"taken from {state.taken}" if state.taken is not None else text
        cell = state.cell
        table.add_row(Text(cell.task), Text(cell.variant), str(cell.seed), Text(text))
    console.print(table)
    complete = sum(state.complete and state.taken is None for state in plan.cells)
    files = plan.sources.items()
    said = "".join(f" {count} {'is' if count == 1 else 'are'} taken from {file}." for file, count in files)
    console.print(
        f"\n{complete} of {len(plan.cells)} cells are done.{said} The others share {plan.stages} stages, "
        f"{plan.waiting} of them to do, with {plan.models} models to train in {plan.steps} steps.",
        soft_wrap=True,
        highlight=False,
    )
    for heading, text in (here.lines() if here is not None else {}).items():
        console.print(f"{heading}  {text}.", soft_wrap=True, highlight=False, markup=False)
