"""Progress that people see: counts go in; bars on a terminal come out, plain lines otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines about the same task."""


class Progress:
    """Shows stages as they begin and end, and how far the tasks in them are."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        self._bars: RichProgress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
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

    def _print(self, line: Text) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announces a stage, and says how long it took."""
        began = time.monotonic()
        self._print(Text.assemble((name, "bold"), f"  {what}"))
        yield
        self._print(Text(f"{name}  done in {time.monotonic() - began:.1f} s", "dim"))

    def update(self, task: str, done: int, total: int, note: str = "") -> None:
        """Sets how far a task is; one that reached its total disappears."""
        if self._bars is None:
            due = time.monotonic() - self._said.setdefault(task, time.monotonic()) >= PLAIN_INTERVAL
            if due:
                self._said[task] = time.monotonic()
                self.say(f"  {task}: {done}/{total} {note}".rstrip())
            return
        if done >= total:
            if task in self._tasks:
                self._bars.remove_task(self._tasks.pop(task))
            return
        if task not in self._tasks:
            self._tasks[task] = self._bars.add_task(task, total=total, note=note)
        self._bars.update(self._tasks[task], completed=done, total=total, note=note)
