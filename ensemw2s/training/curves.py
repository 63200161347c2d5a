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

    def __init__(self, folder: str | Path | None, every: int = 1) -> None:
        """Begins anew: what an earlier, killed training wrote there is removed.

        Args:
            folder: Where the event file goes; none: nothing is written.
            every: Steps between two points.
        """
        self._writer, self._every = None, every
        self._since, self._tokens = time.monotonic(), 0
        if folder is not None:
            from tensorboardX import SummaryWriter

            shutil.rmtree(folder, ignore_errors=True)
            self._writer = SummaryWriter(str(folder))

    def step(self, number: int, *, tokens: int, values: Mapping[str, float | None]) -> None:
        """Counts a step, and writes a point if it is time.

        Args:
            number: Steps done so far.
            tokens: Tokens in this step, of all workers.
            values: Scalars by name; None is left out.
        """
        self._tokens += tokens
        if self._writer is None or number % self._every:
            return
        seconds = time.monotonic() - self._since
        self.point(number, {**values, "tokens_per_second": self._tokens / max(seconds, 1e-9)})
        self._since, self._tokens = time.monotonic(), 0

    def point(self, number: int, values: Mapping[str, float | None]) -> None:
        """Writes scalars at a place on the axis."""
        if self._writer is not None:
            for name, value in values.items():
                if value is not None:
                    self._writer.add_scalar(name, float(value), number)

    def close(self) -> None:
        """Writes what is left."""
        if self._writer is not None:
            self._writer.close()
