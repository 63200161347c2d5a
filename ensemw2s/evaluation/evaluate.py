"""Test examples and voters in, answers and teacher-forced scores out, streamed over Ray Data actors.

Every voter decodes each prompt for real (exact match) and is scored under teacher forcing (token accuracy, NLL, options
of multiple-choice questions). What the figures say is worked out in `results`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemw2s.cluster.pool import Pool, chunks
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.evaluation.chunks import Rows, SplitChunk
from ensemw2s.evaluation.voters import EvaluationWork, VoterGroup

if TYPE_CHECKING:
    from ensemw2s.evaluation.evaluator import Evaluator


@dataclass(frozen=True)
class EvaluationWorker:
    """Evaluates groups of voters on chunks of examples (a worker of a pool)."""

    groups: tuple[VoterGroup, ...]
    data: DataConfig
    labeling: LabelingConfig

    def open(self) -> Evaluator:
        """Only where examples are answered are models and engines imported, which takes seconds."""
        from ensemw2s.evaluation.evaluator import Evaluator

        return Evaluator(self.groups, self.data, self.labeling)


def evaluate_all(
    work: Sequence[EvaluationWork],
    *,
    data: DataConfig,
    labeling: LabelingConfig,
    pool: Pool,
    shown: int,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, Rows]]:
    """Evaluates groups of voters on splits, on one pool of actors.

    Args:
        work: Which splits, and who answers.
        data: How prompts are rendered.
        labeling: How they are decoded.
        pool: Where they are decoded.
        shown: Examples of the ood split of which every token is kept.
        on_progress: Called with chunks done, chunks in all, and a note.

    Returns:
        Split → voter → columns, in the order of the split's file.
    """
    unique = {item.group.name: item.group for item in work}
    pieces = [
        SplitChunk(chunk, item.split, item.group.name, item.decoded, shown if item.split == "ood" else 0)
        for item in work
        for chunk in chunks(item.examples, labeling.chunk_size)
    ]
    worker = EvaluationWorker(tuple(unique.values()), data, labeling)
    parts: dict[str, dict[str, dict[int, Rows]]] = defaultdict(lambda: defaultdict(dict))
    pieces.sort(key=lambda chunk: chunk.group)  # a process holds one group at a time
    for done, answered in enumerate(pool.stream(pieces, worker, reuse=True), start=1):
        for voter, columns in answered.columns.items():
            parts[answered.split][voter][answered.start] = columns
        if on_progress is not None:
            on_progress(done, len(pieces), "chunks")
    return {split: {voter: _joined(by_start) for voter, by_start in voters.items()} for split, voters in parts.items()}


def _joined(by_start: dict[int, Rows]) -> Rows:
    ordered = [by_start[start] for start in sorted(by_start)]
    return {key: [value for rows in ordered for value in rows[key]] for key in ordered[0]}
