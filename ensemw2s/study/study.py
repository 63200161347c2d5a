"""A study from its file to its report: cells one after another on one Ray, each from what others have made already.

Cells share a folder of stages named by fingerprints, so data, pre-training and equal rounds are made once, and a study
that was stopped goes on with what is missing. What a cell gives is `rows`', what all say together `report`'s.
"""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from ensemw2s.cluster.connect import connect
from ensemw2s.cluster.resources import ResourcePlan, Resources, plan_resources
from ensemw2s.config.study import StudyConfig
from ensemw2s.errors import EnsemW2SError, StudyError
from ensemw2s.pipeline import preflight, steps
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.manifest import git_commit, versions
from ensemw2s.pipeline.outlook import outlook
from ensemw2s.pipeline.phases import evaluate, run_stages
from ensemw2s.progress import Progress
from ensemw2s.storage import remote, store
from ensemw2s.study import report, rows
from ensemw2s.study.cells import Cell, expand, study_directory
from ensemw2s.study.records import StudyResults
from ensemw2s.study.taken import Taken, take
from ensemw2s.study.taken import sources as taken_from


def check(study: StudyConfig) -> list[Cell]:
    """Checks every cell against the world, as `run` does with its config; seeds change nothing of that.

    Raises:
        ConfigError: With the cell whose config is wrong.
        DataError, ModelError, ResourceError: As of `preflight.check`, with the cell.
    """
    cells = expand(study)
    for cell in cells:
        if cell.seed != study.seeds[0]:
            continue
        try:
            preflight.check(cell.config)
        except EnsemW2SError as error:
            raise type(error)(f"{cell.task}, {cell.variant}: {error}") from error
    return cells


def run(
    study: StudyConfig, *, sources: Sequence[Path] = (), debug: bool = False, progress: Progress | None = None
) -> StudyResults:
    """Runs the cells that are not done, and writes study.parquet and the report.

    Args:
        study: What to run.
        sources: Files with rows of cells that were run elsewhere, and need not run again (`taken.take`).
        debug: Show the logs of Ray and of all workers.
        progress: Where to show progress; default: the terminal.

    Returns:
        What study.json says.

    Raises:
        ConfigError: If a file of `sources` is missing or has no rows.
        StudyError: If cells failed; all others are finished and reported by then.
    """
    shown, cells, folder = progress or Progress(), expand(study), study_directory(study)
    shown.run = study.name
    with store.only_one(folder):
        taken = take(cells, folder, sources, keep=True)
        waiting = [cell for cell in cells if cell.name not in taken and not steps.done(cell.graph.evaluation)]
        failed: dict[str, str] = {}
        for source, count in taken_from(taken, sources).items():
            shown.say(f"{count} of {len(cells)} cells are taken from {source}")
        if waiting:
            with shown:
                failed = _run_cells(cells, waiting, folder, shown, debug)
        else:
            shown.say(f"{remote.shown(folder)} is complete: nothing to do")
        summary = write(study, cells, failed, taken)
    show(summary, study, shown.console)
    if failed:
        name, reason = next(iter(failed.items()))
        raise StudyError(
            f"{len(failed)} of {len(cells)} cells failed, and are tried again by the same command; the first one "
            f"({name}): {reason}"
        )
    return summary


def show(summary: StudyResults, study: StudyConfig, console: Console) -> None:
    """Prints what a study says, and where its page lies."""
    report.print_summary(summary, console)
    console.print(Text(f"\nreport: {remote.shown(study_directory(study) / 'study.html')}"), soft_wrap=True)


def write(
    study: StudyConfig, cells: list[Cell], failed: dict[str, str], taken: Mapping[str, Taken] | None = None
) -> StudyResults:
    """Writes study.parquet, study.json and study.html from the cells that are done.

    Args:
        study: The study.
        cells: All its cells.
        failed: Name and reason of those that failed.
        taken: Name and rows of those that were run elsewhere.

    Raises:
        StudyError: If none is.
    """
    folder, taken = study_directory(study), taken or {}
    done = [cell for cell in cells if cell.name in taken or steps.done(cell.graph.evaluation)]
    if not done:
        reasons = [f"{name}: {reason}" for name, reason in failed.items()] or ["none was run"]
        raise StudyError(f"no cell of study {study.name} is finished; {reasons[0]}")
    found = [taken[cell.name].rows if cell.name in taken else rows.of_cell(cell) for cell in done]
    table = pa.Table.from_pylist([row.model_dump() for own in found for row in own], schema=rows.SCHEMA)
    pq.write_table(table, folder / "study.parquet")
    remote.push(folder / "study.parquet")
    finished = {cell.name for cell in done}
    missing = [cell.name for cell in cells if cell.name not in finished]
    failed = {**_failed_before(folder, missing), **failed}
    commits = _commits(folder, [cell for cell in done if cell.name not in taken])
    return report.write(study, table, failed, missing, folder, commits, taken_from(taken))


def _failed_before(folder: Path, missing: list[str]) -> dict[str, str]:
    """Name and reason of the cells that failed when they were last tried, of those that are still missing."""
    written = folder / "study.json"
    told = StudyResults.read(written).failed if remote.exists(written) else {}
    return {name: reason for name, reason in told.items() if name in missing}


def _commits(folder: Path, done: list[Cell]) -> dict[str, int]:
    """Commit of the code → how many cells were finished by it, of those that say so."""
    told = [folder / "cells" / f"{cell.slug}.json" for cell in done]
    return dict(Counter(str(store.read_json(path)["git_commit"]) for path in told if remote.exists(path)).most_common())


def _run_cells(cells: list[Cell], waiting: list[Cell], folder: Path, shown: Progress, debug: bool) -> dict[str, str]:
    """Runs cells; returns name and reason of those that failed."""
    failed = {}
    with (
        connect(cells[0].config.cluster, debug=debug) as resources,
        _Workshop(folder, resources, shown) as shop,
    ):
        shown.say(f"{remote.shown(folder)}: {resources}; {len(waiting)} of {len(cells)} cells to do")
        for number, cell in enumerate(waiting, 1):
            shown.run = f"{cell.config.name}/{cell.slug}"
            shown.say(f"\ncell {number} of {len(waiting)}: {cell.name}")
            try:
                shop.run(cell)
            except Exception as error:  # whatever it is, the other cells do not depend on it
                if debug:
                    traceback.print_exc()
                kind = "" if isinstance(error, EnsemW2SError) else f"{type(error).__name__}: "
                failed[cell.name] = kind + " ".join(str(error).split())
                shown.say(f"cell {cell.name} failed: {failed[cell.name]}")
        shown.run = cells[0].config.name
    return failed


@dataclass
class _Workshop:
    """What cells use one after another: lanes stay up as long as cells want the same of them."""

    folder: Path
    resources: Resources
    progress: Progress
    _lanes: Any = None
    _wanted: Any = None
    _seconds: list[tuple[str, float]] = field(default_factory=list)

    def __enter__(self) -> _Workshop:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._close(abandon=kind is not None)

    def run(self, cell: Cell) -> None:
        """Runs one cell to its end, and writes down what it took."""
        began, graph = time.time(), cell.graph
        plan = plan_resources(cell.config, self.resources)
        self._seconds = []
        with self._lanes_for(cell, plan) as lanes:
            context = Context(graph, plan, self.progress, lanes, on_stage=self._note)
            done = {stage.name: steps.done(stage) for stage in graph.stages()}
            missing = [stage for stage in graph.stages() if not done[stage.name]]
            self.progress.expect(*outlook(graph, done))
            lanes.start(sum(stage.name.startswith(("models/", "rounds/", "consensus/")) for stage in missing))
            run_stages(context)
            evaluate(context)
        place = self.folder / "cells"
        place.mkdir(exist_ok=True)
        facts = {
            "cell": cell.name,
            "stages_missing": len(missing),
            "started": began,
            "seconds": round(time.time() - began, 1),
            "stages": [{"name": name, "seconds": round(seconds, 2)} for name, seconds in self._seconds],
            "evaluation": graph.evaluation.path.name,
            "versions": versions(),
            "git_commit": git_commit(),
        }
        store.put_json(place / f"{cell.slug}.json", facts)

    def _note(self, name: str, started: float, finished: float) -> None:
        self._seconds.append((name, finished - started))

    @contextmanager
    def _lanes_for(self, cell: Cell, plan: ResourcePlan) -> Iterator[Any]:
        """Lanes as this cell wants them; those of the cell before where they are the same."""
        from ensemw2s.training.launch import Lanes

        wanted = (cell.config.training, plan)
        if wanted != self._wanted:
            self._close()
            scratch = self.folder / ".ray"
            self._lanes = Lanes(
                cell.config.training, plan.lanes, scratch, keep=plan.keep_lanes, on_progress=self.progress.update
            )
            self._wanted = wanted
        try:
            yield self._lanes
        except BaseException:
            self._close(abandon=True)  # what it was training is no more of use
            raise

    def _close(self, *, abandon: bool = False) -> None:
        if self._lanes is not None:
            self._lanes.close(abandon=abandon)
            remote.remove(self.folder / ".ray")
        self._lanes = self._wanted = None
