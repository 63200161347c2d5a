"""What people see of a search while it runs: Tune's callbacks come in, a table of trials on a terminal, else lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

from ray import tune
from rich.live import Live
from rich.table import Table

from ensemw2s.progress import Progress
from ensemw2s.search.records import OBJECTIVE, Measurement
from ensemw2s.search.space import Point

SHOWN = 24
"""Rows of the table: the trials that run, and the newest of the others."""

STATES = {"RUNNING": "running", "TERMINATED": "ended", "ERROR": "failed", "PENDING": "waits", "PAUSED": "waits"}

NUMBERED = re.compile(r"(\d{4,})-")
"""How a trial's folder begins."""

_views: list[_View] = []


class Watcher(tune.Callback):
    """Tells the views. It holds nothing itself: Tune stores its callbacks with the experiment."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, object], **_: Any
    ) -> None:
        for view in _views:
            view.result(trials, trial, result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        for view in _views:
            view.draw(trials)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        for view in _views:
            view.draw(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        for view in _views:
            view.failed(trials, trial)


class _View:
    def __init__(self, progress: Progress, live: Live | None) -> None:
        self._progress, self._live = progress, live

    def result(self, trials: list[Any], trial: Any, result: Mapping[str, object]) -> None:
        self.draw(trials)
        if self._live is None:
            found = Measurement.model_validate(result)
            self._progress.say(
                f"  trial {number(trial)}: {found.rounds} rounds{_passes(found.passes)}, value {found.value:.4f}, "
                f"best {found.objective:.4f} ({words(trial.config)})"
            )

    def failed(self, trials: list[Any], trial: Any) -> None:
        self.draw(trials)
        if self._live is None:
            self._progress.say(f"  trial {number(trial)} failed ({words(trial.config)})")

    def draw(self, trials: list[Any]) -> None:
        if self._live is not None:
            self._live.update(table(trials))


@contextmanager
def live_table(progress: Progress) -> Iterator[None]:
    """Shows the trials of the search that runs inside the block."""
    if not progress.console.is_terminal:
        view = _View(progress, None)
        _views.append(view)
        try:
            yield
        finally:
            _views.remove(view)
        return
    with Live(console=progress.console, transient=True, refresh_per_second=2) as live:
        view = _View(progress, live)
        _views.append(view)
        try:
            yield
        finally:
            _views.remove(view)


def number(trial: Any) -> int:
    """Trials are numbered in the order in which they were drawn, from 0, as Tune's tag has it: `1_learning_rate=...`.

    Tune's own list has another order after a restart: the trial that reported last comes first (Ray 2.60).
    """
    return int(str(trial.experiment_tag).split("_")[0]) - 1


def trial_folder(trial: Any) -> str:
    """Name of a trial's folder, which is all that Tune's results keep of its number."""
    return f"{number(trial):04d}-{trial.trial_id}"


def numbered(results: Iterable[Any]) -> dict[int, Any]:
    """Number of a trial → its result, by number. Folders of version 0.2 have none: there, Tune's order counts."""
    found = list(results)
    names = [NUMBERED.match(Path(result.path).name) for result in found]
    if not all(names):
        return dict(enumerate(found))
    return dict(
        sorted(((int(name[1]), result) for name, result in zip(names, found, strict=True) if name), key=itemgetter(0))
    )


def table(trials: list[Any]) -> Table:
    """The trials that run and the newest of the others."""
    shown = Table(box=None, pad_edge=False)
    for name in ("trial", "state", "rounds", "value", "best"):
        shown.add_column(name, justify="right" if name != "state" else "left")
    shown.add_column("point", overflow="fold")
    for trial in sorted(trials, key=number)[-SHOWN:]:
        found = trial.last_result or {}
        figures = [f"{found[key]:.4f}" if key in found else "" for key in ("value", OBJECTIVE)]
        state = STATES.get(str(trial.status), str(trial.status).lower())
        size = f"{found.get('rounds', '')}{_passes(found.get('passes', 0))}"
        shown.add_row(str(number(trial)), state, size, *figures, words(trial.config))
    return shown


def _passes(number: int) -> str:
    return f" + {number} pass{'' if number == 1 else 'es'}" if number else ""


def words(point: Point) -> str:
    """A point in a line."""
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in point.items()
    )
