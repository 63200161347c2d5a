"""Curves of a training as TensorBoard event files: numbers of a step come in, points of scalars go to disk.

Written while it trains, by worker 0, next to the run's artifacts and not into them: they are there to be looked at,
and nothing reads them back.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path


class Curves:
    """Scalars over steps in one folder; a point stands for all steps since the last one."""

    def __init__(self, folder: str | Path | None, every: int = 1, *, after: int = 0) -> None:
        """Begins anew, or goes on: what an earlier, killed training wrote about later steps is not shown.

        Args:
            folder: Where the event file goes; none: nothing is written.
            every: Steps between two points.
            after: Step whose checkpoint the training goes on from; 0: the start.
        """
        self._writer, self._every = None, every
        self._since, self._tokens = time.monotonic(), 0
        if folder is not None:
            from tensorboardX import SummaryWriter

            if not after:
                shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(
                str(folder), purge_step=after + 1 if after else None, filename_suffix=f".{after}"
            )

    def due(self, number: int, tokens: int) -> bool:
        """Counts a step; whether it is time for a point. Only then its values need to be fetched from the device.

        Args:
            number: Steps done so far.
            tokens: Tokens in this step, of all workers.
        """
        self._tokens += tokens
        return self._writer is not None and number % self._every == 0

    def step(self, number: int, values: Mapping[str, float]) -> None:
        """Writes the point of a step that is due, and the tokens per second since the last one."""
        seconds = time.monotonic() - self._since
        self.point(number, {**values, "tokens_per_second": self._tokens / max(seconds, 1e-9)})
        self._since, self._tokens = time.monotonic(), 0

    def point(self, number: int, values: Mapping[str, float]) -> None:
        """Writes scalars at a place on the axis."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, number)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
