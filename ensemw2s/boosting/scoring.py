"""Teacher-forced scoring of experts, streamed over Ray Data actors: which answer tokens does each expert get right?

A token table and model folders go in; each model's most likely token at every answer position comes out. What that
means for alphas and weights is decided in `rounds`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemw2s.config import LabelingConfig
from ensemw2s.data.tokens import TokenData


class Scorer:
    """Scores chunks of a token table with several models (a worker for `labeling.stream`)."""

    def __init__(self, models: list[str], batch_size: int, precision: str) -> None:
        from ensemw2s.ensemble.members import load_members
        from ensemw2s.ensemble.model import EnsembleForCausalLM
        from ensemw2s.ensemble.voter import best_device, weights_type

        self._batch_size = batch_size
        device = best_device()
        members = load_members(models, device=device, dtype=weights_type(precision, device))
        self._model = EnsembleForCausalLM(members, [1.0] * len(models))

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Returns the first row's number and the models' tokens: int32 bytes of [models, answer tokens]."""
        from ensemw2s.ensemble.score import score
        from ensemw2s.labeling.stream import read_chunk

        data = TokenData.from_table(read_chunk(chunk))
        scores = score(self._model, data.prompt_ids, data.answer_ids, pad_id=0, batch_size=self._batch_size)
        tokens = np.concatenate([s.member_tokens for s in scores], axis=1).astype(np.int32)
        return {"start": chunk["start"], "rows": len(data), "tokens": tokens.tobytes()}


@contextmanager
def warmed(labeling: LabelingConfig, actors: int) -> Iterator[None]:
    """Starts the processes that score, in the background, and Ray Data in this one, which is up when the block ends."""
    from ensemw2s.labeling import stream

    modules = ["ensemw2s.ensemble.score", "ensemw2s.ensemble.voter"]
    stream.warm(modules, labeling=labeling, actors=actors)
    thread = threading.Thread(target=stream.warm_driver, name="warm Ray Data", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()  # else it could ask a Ray that has ended, which starts another one


def predictions(
    table: Path,
    models: list[str],
    *,
    labeling: LabelingConfig,
    actors: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.int32]:
    """Each model's most likely token at every answer position, given the prompt and the true tokens before.

    Args:
        table: Token table (parquet).
        models: Folders of experts or bases.
        labeling: Actors and batch size.
        actors: Largest size of the pool.
        on_progress: Called with rows done and rows in all.

    Returns:
        [models, N], N answer tokens in the table's order; ties go to the lowest id.
    """
    from ensemw2s.labeling.stream import chunks, stream

    work = chunks(table.resolve(), labeling.chunk_size)
    total = work[-1]["stop"] if work else 0
    parts: dict[int, NDArray[np.int32]] = {}
    done = 0
    # workers do not share this process's working folder; a hub id stays as it is
    places = [str(Path(model).resolve()) if Path(model).exists() else model for model in models]
    arguments = {"models": places, "batch_size": labeling.batch_size, "precision": labeling.precision}
    for row in stream(work, Scorer, arguments, labeling=labeling, actors=actors, reuse=True):
        parts[row["start"]] = np.frombuffer(row["tokens"], np.int32).reshape(len(models), -1)
        done += row["rows"]
        if on_progress is not None:
            on_progress(done, total)
    return np.concatenate([parts[start] for start in sorted(parts)], axis=1)
