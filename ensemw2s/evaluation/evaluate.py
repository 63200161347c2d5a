"""Test examples and voters in, answers and teacher-forced scores out, streamed over Ray Data actors.

Every voter decodes each prompt for real (exact match) and is scored under teacher forcing (token accuracy, NLL, options
of multiple-choice questions). What the figures say is worked out in `results`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from ensemw2s.cluster.pool import chunks, stream
from ensemw2s.config import DataConfig, LabelingConfig
from ensemw2s.evaluation.voters import EvaluationWork

EVALUATOR = "ensemw2s.evaluation.evaluator:Evaluator"

Rows = dict[str, list[Any]]
"""Per-example columns of one voter on one split."""


def evaluate_all(
    work: Sequence[EvaluationWork],
    *,
    data: DataConfig,
    labeling: LabelingConfig,
    actors: int,
    shown: int,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, dict[str, Rows]]:
    """Evaluates groups of voters on splits, on one pool of actors.

    Args:
        work: Which splits, and who answers.
        data: How prompts are rendered.
        labeling: Pool and decoding.
        actors: Largest size of the pool.
        shown: Examples of the ood split of which every token is kept.
        on_progress: Called with chunks done, chunks in all, and a note.

    Returns:
        Split → voter → columns, in the order of the split's file.
    """
    unique = {item.group.name: item.group for item in work}
    pieces = [
        chunk
        for item in work
        for chunk in chunks(
            item.examples.resolve(),
            labeling.chunk_size,
            split=item.split,
            group=item.group.name,
            decoded=item.decoded,
            shown=shown if item.split == "ood" else 0,
        )
    ]
    arguments = {
        "groups": [group.model_dump() for group in unique.values()],
        "data": data.model_dump(mode="json"),
        "labeling": labeling.model_dump(mode="json"),
    }
    parts: dict[str, dict[str, dict[int, Rows]]] = defaultdict(lambda: defaultdict(dict))
    pieces.sort(key=lambda chunk: str(chunk["group"]))  # an actor holds one group at a time
    for done, row in enumerate(
        stream(pieces, EVALUATOR, arguments, labeling=labeling, actors=actors, reuse=True), start=1
    ):
        for voter, columns in json.loads(row["columns"]).items():
            parts[row["split"]][voter][row["start"]] = columns
        if on_progress is not None:
            on_progress(done, len(pieces), "chunks")
    return {split: {voter: _joined(by_start) for voter, by_start in voters.items()} for split, voters in parts.items()}


def _joined(by_start: dict[int, Rows]) -> Rows:
    ordered = [by_start[start] for start in sorted(by_start)]
    return {key: [value for rows in ordered for value in rows[key]] for key in ordered[0]}
