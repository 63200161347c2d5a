"""Pseudo-labels: prompts in, what a label maker answers out, as parquet parts with the labels contract.

Every chunk of prompts becomes one part, written by the actor that decoded it and put in place atomically. A part that
is there is not decoded again, so a killed run loses no more than the chunks it was at, and no prompt is labelled twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ensemw2s import faults
from ensemw2s.cluster.pool import Pool
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.errors import DataError
from ensemw2s.labeling.chunks import LabelChunk, LabeledChunk, LabelJob
from ensemw2s.labeling.parts import REJECTED, count, part_name, rejected_parts, remove_unfinished
from ensemw2s.storage import remote

if TYPE_CHECKING:
    from ensemw2s.labeling.labeler import Labeler


@dataclass(frozen=True)
class LabelWorker:
    """Labels chunks of prompts of several jobs (a worker of a pool)."""

    jobs: tuple[LabelJob, ...]
    data: DataConfig
    labeling: LabelingConfig

    def open(self) -> Labeler:
        """Only where labels are made are models and engines imported, which takes seconds."""
        from ensemw2s.labeling.labeler import Labeler

        return Labeler(self.jobs, self.data, self.labeling)


OnProgress = Callable[[int, int, str], None]


def label_all(
    jobs: list[LabelJob],
    *,
    data: DataConfig,
    labeling: LabelingConfig,
    pool: Pool,
    on_progress: OnProgress | None = None,
) -> None:
    """Labels all prompts of all jobs that have no part yet, on one pool of actors.

    Args:
        jobs: What to label.
        data: How prompts are rendered.
        labeling: How they are decoded.
        pool: Where they are decoded.
        on_progress: Called with prompts done, prompts in all, and a note.

    Raises:
        DataError: If more prompts than `labeling.max_rejected` cannot be labelled; what is labelled is kept.
    """
    everything = [chunk for job in jobs for chunk in job.chunks(labeling.chunk_size)]
    done = {job.output.resolve(): remote.names(job.output) for job in jobs}
    work = [chunk for chunk in everything if part_name(chunk.prompts.start) not in done[chunk.output]]
    rate = _Rate(total=_rows(everything), before=_rows(everything) - _rows(work), rejected=_rejected(jobs))
    check_rejected(jobs, labeling)
    worker = LabelWorker(tuple(jobs), data, labeling)
    for labeled in pool.stream(work, worker, calls=labeling.chunks_per_actor):
        rate.add(labeled)
        faults.reach("labeling/row")
        if labeled.rejected:
            check_rejected(jobs, labeling, labeled.reason)
        if on_progress is not None:
            on_progress(rate.before + rate.rows, rate.total, rate.note())
    for job in jobs:
        remove_unfinished(job.output)


@dataclass
class _Rate:
    """How fast it goes, from what the stream gives back.

    Attributes:
        total: Prompts in all.
        before: Of these, how many were labelled before.
        rejected: Prompts that cannot be labelled.
    """

    total: int
    before: int
    rejected: int
    rows: int = 0
    tokens: int = 0
    kinds: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)
    drafts: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, labeled: LabeledChunk) -> None:
        self.rows += labeled.rows
        self.tokens += labeled.tokens
        self.rejected += labeled.rejected
        self.kinds = labeled.kinds or self.kinds
        if labeled.kinds:  # else it had been made before
            self.drafts[labeled.actor] = (labeled.proposed, labeled.accepted)

    def note(self) -> str:
        """As in `310 prompts/s, 2400 tokens/s, 2 actors, 12 s left, 3 rejected (stacked full weights, one pass)`."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        left = (self.total - self.before - self.rows) * seconds / max(self.rows, 1)
        several = "s" if len(self.drafts) > 1 else ""
        said = [
            f"{self.rows / seconds:.0f} prompts/s",
            f"{self.tokens / seconds:.0f} tokens/s",
            f"{len(self.drafts)} actor{several}",
            f"{left:.0f} s left" if left < 600 else f"{left / 60:.0f} min left",
        ]
        if self.rejected:
            said.append(f"{self.rejected} rejected")
        if proposed := sum(proposed for proposed, _ in self.drafts.values()):
            said.append(f"{sum(accepted for _, accepted in self.drafts.values()) / proposed:.0%} of drafts accepted")
        kinds = f" ({'; '.join(self.kinds)})" if self.kinds else ""
        return ", ".join(said) + kinds


def check_rejected(jobs: list[LabelJob], labeling: LabelingConfig, reason: str = "") -> None:
    """Raises `DataError` if more prompts of one job than `labeling.max_rejected` cannot be labelled."""
    allowed = labeling.max_rejected
    if allowed is None:
        return
    for job in jobs:
        if (found := _rejected([job])) > allowed:
            last = f"; the last reason: {reason}" if reason else ""
            raise DataError(
                f"{found} rows cannot be labelled, labeling.max_rejected (--max-rejected) allows {allowed}{last}. See "
                f"{remote.shown(job.output / REJECTED)}; what is labelled is kept"
            )


def _rows(work: list[LabelChunk]) -> int:
    return sum(chunk.prompts.rows for chunk in work)


def _rejected(jobs: list[LabelJob]) -> int:
    return sum(count(rejected_parts(job.output)) for job in jobs)
