"""What `ensemw2s study --plan` shows: cells go in, how much of each is done and what is left in all comes out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ensemw2s.pipeline import steps
from ensemw2s.pipeline.graph import Graph
from ensemw2s.storage.record import Record
from ensemw2s.storage.store import Stage
from ensemw2s.study.cells import Cell


@dataclass(frozen=True)
class CellState:
    """How far a cell is.

    Attributes:
        cell: The cell.
        stages: Number of its stages.
        done: How many of them are there.
        complete: Its evaluation is.
    """

    cell: Cell
    stages: int
    done: int
    complete: bool


@dataclass(frozen=True)
class StudyPlan:
    """A study as it would go on.

    Attributes:
        cells: Every cell.
        stages: Number of different stages of the cells that are not complete.
        models: Models among these that are still to be trained.
        waiting: Stages among these that are to be made.
    """

    cells: tuple[CellState, ...]
    stages: int
    models: int
    waiting: int


class PlannedCell(Record):
    """A cell and how far it is; see `CellState`."""

    task: str
    variant: str
    seed: int
    stages: int
    done: int
    complete: bool


class StudyPlanRecord(Record):
    """What `ensemw2s study --plan --json` prints.

    Attributes:
        name: Name of the study.
        cells: Every cell.
        stages: Number of different stages of the cells that are not complete.
        stages_left: Stages among these that are to be made.
        models_left: Models among these that are to be trained.
    """

    name: str
    cells: tuple[PlannedCell, ...]
    stages: int
    stages_left: int
    models_left: int

    @classmethod
    def of(cls, name: str, plan: StudyPlan) -> StudyPlanRecord:
        """Writes a plan down."""
        cells = tuple(
            PlannedCell(
                task=state.cell.task,
                variant=state.cell.variant,
                seed=state.cell.seed,
                stages=state.stages,
                done=state.done,
                complete=state.complete,
            )
            for state in plan.cells
        )
        return cls(name=name, cells=cells, stages=plan.stages, stages_left=plan.waiting, models_left=plan.models)


def survey(cells: list[Cell]) -> StudyPlan:
    """Looks up what is done. Reads markers only."""
    known: dict[Path, bool] = {}
    trained: set[Path] = set()
    left: set[Path] = set()

    def done(stage: Stage) -> bool:
        if stage.path not in known:
            known[stage.path] = steps.done(stage)
        return known[stage.path]

    states = []
    for cell in cells:
        stages = list(cell.graph.stages())
        state = CellState(cell, len(stages), sum(map(done, stages)), done(cell.graph.evaluation))
        states.append(state)
        if not state.complete:
            left |= {stage.path for stage in stages}
            trained |= {stage.path for stage in _models(cell.graph)}
    waiting = {path for path in left if not known[path]}
    return StudyPlan(tuple(states), len(left), len(waiting & trained), len(waiting))


def _models(graph: Graph) -> list[Stage]:
    experts = (*(expert for r in graph.all_rounds for expert in r.experts), *graph.baseline_experts)
    trained = (*(base.stage for base in graph.pretrained), *(expert.stage for expert in experts))
    return [*trained, *(student.stage for student in graph.learning_from([None, *graph.all_labels]))]


def print_plan(plan: StudyPlan, console: Console) -> None:
    """Prints every cell with its state, and what is left to do in all."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("Task", "Variant", "Seed", "State"):
        table.add_column(heading, overflow="fold", header_style="bold")
    for state in plan.cells:
        text = "done" if state.complete else f"{state.done} of {state.stages} stages done"
        cell = state.cell
        table.add_row(Text(cell.task), Text(cell.variant), str(cell.seed), Text(text))
    console.print(table)
    complete = sum(state.complete for state in plan.cells)
    console.print(
        f"\n{complete} of {len(plan.cells)} cells are done. The others share {plan.stages} stages, "
        f"{plan.waiting} of them to do, with {plan.models} models to train.",
        soft_wrap=True,
        highlight=False,
    )
