"""Teacher-forced scoring of experts, streamed over a pool: which answer tokens does each expert get right?

A token table and model folders go in; each model's most likely token at every answer position comes out, or how likely
it finds the true one. What that means for alphas and weights is decided in `pipeline.rounds` and `pipeline.votes`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ensemw2s import faults
from ensemw2s.data.tokens import TokenData

if TYPE_CHECKING:
    from ensemw2s.cluster.pool import Chunk, Pool, Worker
    from ensemw2s.ensemble.anchor import Anchor
    from ensemw2s.ensemble.combine import Rule
    from ensemw2s.ensemble.model import EnsembleForCausalLM

OnProgress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


@dataclass(frozen=True)
class Reading:
    """How a table is read by models.

    Attributes:
        batch_size: Rows per forward pass.
        chunk_size: Rows per piece of work.
        precision: Type of the weights; `auto`: bf16 on GPUs that have it, else fp32.
    """

    batch_size: int
    chunk_size: int
    precision: Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class ScoredChunk:
    """What scoring finds in one chunk of n rows with N answer tokens.

    Attributes:
        start: Number of the first row.
        rows: n.
        tokens: `[models, N]`, int32: each model's most likely tokens.
    """

    start: int
    rows: int
    tokens: NDArray[np.int32]


@dataclass(frozen=True)
class Scorer:
    """Scores chunks of a token table with several models (a worker of a pool)."""

    models: tuple[str, ...]
    reading: Reading

    def open(self) -> Callable[[Chunk], ScoredChunk]:
        """Loads the models."""
        from ensemw2s.ensemble.score import score

        model = _load(self.models, self.reading, [1.0] * len(self.models))

        def scored(chunk: Chunk) -> ScoredChunk:
            faults.reach("boosting/chunk")
            data = TokenData.from_table(chunk.read())
            scores = score(model, data.prompt_ids, data.answer_ids, pad_id=0, batch_size=self.reading.batch_size)
            tokens = np.concatenate([s.member_tokens for s in scores], axis=1).astype(np.int32)
            return ScoredChunk(chunk.start, len(data), tokens)

        return scored


def predictions(
    table: Path, models: list[str], *, pool: Pool, reading: Reading, on_progress: OnProgress | None = None
) -> NDArray[np.int32]:
    """Each model's most likely token at every answer position, given the prompt and the true tokens before.

    Args:
        table: Token table (parquet).
        models: Folders of experts or bases.
        pool: Where they are read.
        reading: Sizes of batches and chunks.
        on_progress: Called with rows done and rows in all.

    Returns:
        [models, N], N answer tokens in the table's order; ties go to the lowest id.
    """
    parts = _streamed(table, Scorer(_places(models), reading), pool, reading, on_progress)
    return np.concatenate([part.tokens for part in parts], axis=1)


@dataclass(frozen=True)
class LikelyChunk:
    """What an ensemble and its members make of one chunk of n rows with N answer tokens.

    Attributes:
        start: Number of the first row.
        rows: n.
        together: `[N]`, float32: log-probability of each token under the ensemble.
        each: `[members, N]`, float32: the same under each member.
        scaled: `[temperatures, members, n]`, float64: each member's loss of each answer, in nats.
    """

    start: int
    rows: int
    together: NDArray[np.float32]
    each: NDArray[np.float32]
    scaled: NDArray[np.float64]


@dataclass(frozen=True)
class LikelihoodScorer:
    """Scores chunks of a token table with the members of an ensemble (a worker of a pool)."""

    models: tuple[str, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]
    rule: Rule
    grid: tuple[float, ...]
    reading: Reading
    anchors: tuple[Anchor, ...] = ()

    def open(self) -> Callable[[Chunk], LikelyChunk]:
        """Loads the members."""
        from ensemw2s.ensemble.score import score

        model = _load(self.models, self.reading, self.weights, self.rule, self.temperatures, self.anchors)

        def scored(chunk: Chunk) -> LikelyChunk:
            data, batch_size = TokenData.from_table(chunk.read()), self.reading.batch_size
            scores = score(
                model, data.prompt_ids, data.answer_ids, pad_id=0, batch_size=batch_size, temperatures=self.grid
            )
            return LikelyChunk(
                start=chunk.start,
                rows=len(data),
                together=np.concatenate([s.logprobs for s in scores]),
                each=np.concatenate([s.member_logprobs for s in scores], axis=1),
                scaled=np.stack([s.scaled_nll for s in scores], axis=-1),
            )

        return scored


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
    pool: Pool,
    reading: Reading,
    anchors: Sequence[Anchor] = (),
    on_progress: OnProgress | None = None,
) -> Likelihoods:
    """How likely an ensemble and each of its members find every answer token, given the true ones before.

    Args:
        table: Token table (parquet).
        models: Folders of the members.
        weights: Their weights.
        temperatures: What their logits are divided by.
        rule: How they are combined.
        grid: Temperatures for `scaled_nll`, on top of the members' own.
        pool: Where they are read.
        reading: Sizes of batches and chunks.
        anchors: How each member is mixed with its base; empty: not at all.
        on_progress: Called with rows done and rows in all.
    """
    scorer = LikelihoodScorer(
        _places(models), tuple(weights), tuple(temperatures), rule, tuple(grid), reading, tuple(anchors)
    )
    parts = _streamed(table, scorer, pool, reading, on_progress)
    return Likelihoods(
        nll=-np.concatenate([part.together for part in parts]),
        member_logprobs=np.concatenate([part.each for part in parts], axis=1),
        scaled_nll=np.concatenate([part.scaled for part in parts], axis=-1),
    )


ScoredT = TypeVar("ScoredT", ScoredChunk, LikelyChunk)


def _streamed(
    table: Path, worker: Worker[Chunk, ScoredT], pool: Pool, reading: Reading, on_progress: OnProgress | None
) -> list[ScoredT]:
    """What a worker finds in each chunk of a table, in the table's order."""
    from ensemw2s.cluster.pool import chunks

    work = chunks(table, reading.chunk_size)
    total = sum(chunk.rows for chunk in work)
    parts: list[ScoredT] = []
    for part in pool.stream(work, worker, reuse=True):
        parts.append(part)
        if on_progress is not None:
            on_progress(sum(part.rows for part in parts), total)
    return sorted(parts, key=lambda part: part.start)


def _places(models: list[str]) -> tuple[str, ...]:
    """Folders as workers find them, which do not share this process's working folder; a hub id stays as it is."""
    return tuple(str(Path(model).resolve()) if Path(model).exists() else model for model in models)


def _load(
    models: Sequence[str],
    reading: Reading,
    weights: Sequence[float],
    rule: Rule = "probability",
    temperatures: Sequence[float] = (),
    anchors: Sequence[Anchor] = (),
) -> EnsembleForCausalLM:
    """The models as an ensemble, on the best device of this process."""
    from ensemw2s.ensemble.members import load_members
    from ensemw2s.ensemble.model import EnsembleForCausalLM
    from ensemw2s.ensemble.voter import best_device, weights_type

    device = best_device()
    members = load_members(models, device=device, dtype=weights_type(reading.precision, device), anchors=anchors)
    return EnsembleForCausalLM(members, weights, rule, temperatures=temperatures)
