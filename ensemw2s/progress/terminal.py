"""Progress that people see: counts go in; bars on a terminal come out, plain lines otherwise.

Machines that collect logs read it too: with ENSEMW2S_LOG=json every line is a JSON object that says which run and which
stage it is about.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from ensemw2s import env
from ensemw2s.errors import ConfigError

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines about the same task."""


_stage: ContextVar[str | None] = ContextVar("stage", default=None)
"""The stage that this thread is in; a run has several at the same time."""


def wants_json() -> bool:
    """Whether lines are to be JSON objects.

    Raises:
        ConfigError: If the environment says something else than json or text.
    """
    wanted = env.LOG.get() or "text"
    if wanted not in ("json", "text"):
        raise ConfigError(f"{env.LOG.name} is {wanted}; expected json or text")
    return wanted == "json"


def about(seconds: float) -> str:
    """A duration that nobody knows exactly: under a minute, about 3 min, about 2 h 10 min."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "under a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60:02d} min"


class Progress:
    """Shows stages as they begin and end, and how far the tasks in them are.

    Attributes:
        console: Where lines and tables go; one that shows nothing where lines are JSON objects, which tables are not.
        run: Name of the run, for these objects and for Prometheus; of a cell of a study STUDY/CELL.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self.run: str | None = None
        self._json: IO[str] | None = None
        if wants_json() and not self.console.quiet:
            self._json, self.console = self.console.file, Console(quiet=True, force_terminal=False)
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._steps: dict[str, int] = {}
        self._finished: set[str] = set()
        self._spent, self._since = 0, time.monotonic()
        if self.console.is_terminal:
            self._bars = RichProgress(
                TextColumn("  {task.description}", markup=False),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                console=self.console,
                transient=True,
            )

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, text: str) -> None:
        """One line that stays; square brackets in it are text."""
        self._print(Text(text))

    def _print(self, line: Text, level: str = "info", **facts: Any) -> None:
        if self._json is None:
            self.console.print(line, highlight=False, soft_wrap=True)
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        known = {"time": now, "level": level, "run": self.run, "stage": _stage.get(), "message": line.plain.strip()}
        self._json.write(json.dumps(known | facts, ensure_ascii=False) + "\n")  # whole: threads write beside each other
        self._json.flush()

    def expect(self, steps: Mapping[str, int], done: Collection[str] = ()) -> None:
        """Says which stages there will be, so that each is announced with its number and the time that is left.

        Args:
            steps: Every stage in order → the optimizer steps that it has left. The time left is told of training, in
                which nearly all of it goes: as long for each step as it took so far, everything else included.
            done: Those that are done already.
        """
        self._steps, self._finished = dict(steps), set(done)
        self._spent, self._since = 0, time.monotonic()

    def _place(self, name: str) -> tuple[str, dict[str, Any]]:
        """Where a stage stands among those that are expected, in words and as facts."""
        if name not in self._steps:
            return "", {}
        number, total = list(self._steps).index(name) + 1, len(self._steps)
        facts: dict[str, Any] = {"number": number, "of": total}
        words = f"stage {number} of {total}"
        waiting = sum(n for stage, n in self._steps.items() if stage not in self._finished)
        if self._spent and waiting:
            facts["seconds_left"] = round((time.monotonic() - self._since) / self._spent * waiting)
            words += f", {about(facts['seconds_left'])} of training left"
        return f"  ({words})", facts

    def _end(self, name: str) -> None:
        """Counts the steps of a stage that ended."""
        if name in self._steps and name not in self._finished:
            self._finished.add(name)
            self._spent += self._steps[name]

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announces a stage, and says how long it took."""
        began, outer = time.monotonic(), _stage.set(name)
        try:
            place, facts = self._place(name)
            self._print(Text.assemble((name, "bold"), f"  {what}", (place, "dim")), event="begin", **facts)
            yield
            self._end(name)
            seconds = time.monotonic() - began
            self._print(Text(f"{name}  done in {seconds:.1f} s", "dim"), event="end", seconds=round(seconds, 3))
        except BaseException as error:
            if self._json is not None:  # as text, it is the last line of the command
                self._print(Text(str(error) or type(error).__name__), "error", event="failed")
            raise
        finally:
            _stage.reset(outer)

    def update(self, task: str, done: int, total: int, note: str = "") -> None:
        """Sets how far a task is; one that reached its total disappears."""
        if self._bars is None:
            due = time.monotonic() - self._said.setdefault(task, time.monotonic()) >= PLAIN_INTERVAL
            if due:
                self._said[task] = time.monotonic()
                line = f"  {task}: {done}/{total} {note}".rstrip()
                self._print(Text(line), task=task, done=done, total=total)
            return
        if done >= total:
            if task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task))
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)
