"""Teacher-forced scoring of experts, streamed over Ray Data actors: which answer tokens does each expert get right?

A token table and model folders go in; each model's most likely token at every answer position comes out, or how likely
it finds the true one. What that means for alphas and weights is decided in `rounds` and `votes`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensemw2s import faults
from ensemw2s.config import LabelingConfig
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.combine import Rule
from ensemw2s.errors import EnsemW2SError

REHEARSED = 8
"""Rows a process."""

_rehearsals: set[threading.Thread] = set()
"""Those under way in this process."""


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
        from ensemw2s.cluster.pool import read_chunk
        from ensemw2s.ensemble.score import score

        faults.reach("boosting/chunk")
        data = TokenData.from_table(read_chunk(chunk))
        scores = score(self._model, data.prompt_ids, data.answer_ids, pad_id=0, batch_size=self._batch_size)
        tokens = np.concatenate([s.member_tokens for s in scores], axis=1).astype(np.int32)
        return {"start": chunk["start"], "rows": len(data), "tokens": tokens.tobytes()}


def warm(labeling: LabelingConfig, actors: int) -> None:
    """Starts the processes that score, or evaluate, and does not wait for them."""
    from ensemw2s.cluster import pool as stream

    modules = ["ensemw2s.ensemble.score", "ensemw2s.ensemble.voter"]
    stream.warm(modules, labeling=labeling, actors=actors)


def cool(labeling: LabelingConfig, actors: int) -> None:
    """Ends these processes, which would keep their memory while others need it, and does not wait for that."""
    from ensemw2s.cluster import pool as stream

    stream.cool(labeling=labeling, actors=actors)


@contextmanager
def rehearsed(table: Path, model: str, *, labeling: LabelingConfig, actors: int) -> Iterator[None]:
    """Scores a few rows a process in the background, so that the first round does not wait for what starts with the
    first stream: Ray Data in this process, code and first passes of a model in the others. Not on GPUs.
    """
    from ensemw2s.cluster.pool import chunks, stream

    def rehearse() -> None:
        with suppress(EnsemW2SError, ray.exceptions.RayError):  # the first round meets the same, and says it
            work = chunks(table.resolve(), REHEARSED)[:actors]
            list(stream(work, Scorer, _arguments([model], labeling), labeling=labeling, actors=actors, reuse=True))

    if labeling.gpus_per_actor:
        yield
        return
    import ray

    thread = threading.Thread(target=rehearse, name="rehearse scoring", daemon=True)
    _rehearsals.add(thread)
    thread.start()
    try:
        yield
    finally:
        thread.join()  # else it could ask a Ray that has ended, which starts another one
        _rehearsals.discard(thread)


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
    rows = _streamed(table, Scorer, models, {}, labeling=labeling, actors=actors, on_progress=on_progress)
    return np.concatenate([np.frombuffer(row["tokens"], np.int32).reshape(len(models), -1) for row in rows], axis=1)


class LikelihoodScorer:
    """Scores chunks of a token table with members of an ensemble (a worker for `labeling.stream`)."""

    def __init__(
        self,
        models: list[str],
        batch_size: int,
        precision: str,
        weights: list[float],
        temperatures: list[float],
        rule: Rule,
        grid: list[float],
    ) -> None:
        from ensemw2s.ensemble.members import load_members
        from ensemw2s.ensemble.model import EnsembleForCausalLM
        from ensemw2s.ensemble.voter import best_device, weights_type

        self._batch_size, self._grid = batch_size, grid
        device = best_device()
        members = load_members(models, device=device, dtype=weights_type(precision, device))
        self._model = EnsembleForCausalLM(members, weights, rule, temperatures=temperatures)

    def __call__(self, chunk: dict[str, Any]) -> dict[str, Any]:
        """Returns the first row's number, and bytes of float32 [tokens], [members, tokens] and of float64
        [temperatures, members, rows].
        """
        from ensemw2s.cluster.pool import read_chunk
        from ensemw2s.ensemble.score import score

        data = TokenData.from_table(read_chunk(chunk))
        size = {"pad_id": 0, "batch_size": self._batch_size}
        scores = score(self._model, data.prompt_ids, data.answer_ids, **size, temperatures=self._grid)
        return {
            "start": chunk["start"],
            "rows": len(data),
            "together": np.concatenate([s.logprobs for s in scores]).tobytes(),
            "each": np.concatenate([s.member_logprobs for s in scores], axis=1).tobytes(),
            "scaled": np.stack([s.scaled_nll for s in scores], axis=-1).tobytes(),
        }


@dataclass(frozen=True)
class Likelihoods:
    """How likely the true answers are; N answer tokens of n examples in the table's order.

    Attributes:
        nll: `[N]`, float32: loss of each token under the ensemble, in nats.
        member_logprobs: `[members, N]`, float32: log-probability of each token under each member.
        scaled_nll: `[temperatures, members, n]`, float64: each member's loss of each answer at other temperatures.
    """

    nll: NDArray[np.float32]
    member_logprobs: NDArray[np.float32]
    scaled_nll: NDArray[np.float64]


def likelihoods(
    table: Path,
    models: list[str],
    *,
    weights: Sequence[float],
    temperatures: Sequence[float],
    rule: Rule,
    grid: Sequence[float],
    labeling: LabelingConfig,
    actors: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Likelihoods:
    """How likely an ensemble and each of its members find every answer token, given the true ones before.

    Args:
        table: Token table (parquet).
        models: Folders of the members.
        weights: Their weights.
        temperatures: What their logits are divided by.
        rule: How they are combined.
        grid: Temperatures for `scaled_nll`, on top of the members' own.
        labeling: Actors and batch size.
        actors: Largest size of the pool.
        on_progress: Called with rows done and rows in all.
    """
    options = {"weights": [*weights], "temperatures": [*temperatures], "rule": rule, "grid": [*grid]}
    rows = _streamed(
        table, LikelihoodScorer, models, options, labeling=labeling, actors=actors, on_progress=on_progress
    )
    each = [np.frombuffer(row["each"], np.float32).reshape(len(models), -1) for row in rows]
    scaled = [np.frombuffer(row["scaled"]).reshape(len(grid), len(models), row["rows"]) for row in rows]
    return Likelihoods(
        nll=-np.concatenate([np.frombuffer(row["together"], np.float32) for row in rows]),
        member_logprobs=np.concatenate(each, axis=1),
        scaled_nll=np.concatenate(scaled, axis=-1),
    )


def _streamed(
    table: Path,
    worker: type,
    models: list[str],
    options: dict[str, Any],
    *,
    labeling: LabelingConfig,
    actors: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """What a worker returns for each chunk of a table, in the table's order."""
    from ensemw2s.cluster.pool import chunks, stream

    for rehearsal in tuple(_rehearsals):
        rehearsal.join()  # its processes are free then; else there would be as many others
    work = chunks(table.resolve(), labeling.chunk_size)
    total = work[-1]["stop"] if work else 0
    parts: dict[int, dict[str, Any]] = {}
    done = 0
    arguments = _arguments(models, labeling) | options
    for row in stream(work, worker, arguments, labeling=labeling, actors=actors, reuse=True):
        parts[row["start"]] = row
        done += row["rows"]
        if on_progress is not None:
            on_progress(done, total)
    return [parts[start] for start in sorted(parts)]


def _arguments(models: list[str], labeling: LabelingConfig) -> dict[str, Any]:
    """What every scorer is made of."""
    # workers do not share this process's working folder; a hub id stays as it is
    places = [str(Path(model).resolve()) if Path(model).exists() else model for model in models]
    return {"models": places, "batch_size": labeling.batch_size, "precision": labeling.precision}
