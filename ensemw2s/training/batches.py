"""From a token table to the micro-batches of one worker: the same examples in the same order for any worker count.

Token tables go in; per optimizer step, a worker gets its padded micro-batches with token weights that are already
divided by the global sum of the step's weights. Which examples form a step depends on seed and epoch only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ensemw2s.boosting.segments import SEGMENTS
from ensemw2s.data.tokens import WEIGHT, TokenData
from ensemw2s.errors import DataError
from ensemw2s.storage.store import read_table

if TYPE_CHECKING:
    import torch

BUCKET = 50
"""Batches whose examples are sorted by length together: long enough to save padding, short enough to stay random."""


@dataclass(frozen=True)
class TrainingSet:
    """Token sequences with a loss multiplier, and optionally a target distribution, for every answer token."""

    tokens: TokenData
    multipliers: NDArray[np.float64]
    """[N], over all answer tokens in order."""
    soft_ids: NDArray[np.int64] | None = None
    """[N, k], tokens of the target distribution."""
    soft_probabilities: NDArray[np.float32] | None = None
    """[N, k], their probabilities, each row summing to 1."""
    weights: NDArray[np.float64] | None = None
    """[n], what the loss of each example counts; None: all count 1. Unlike multipliers they are not normalised over a
    step: examples of like length share a step, so all of a step's examples may be ones that count little."""
    segments: list[NDArray[np.int64]] | None = None
    """Of each answer the segment of each token, where boosting weighs segments; None: it weighs tokens."""
    shares: NDArray[np.float64] | None = None
    """[N], what each token counts in the sum that losses are divided by: its part of its segment; None: 1."""

    @property
    def lengths(self) -> list[int]:
        return [len(answer) for answer in self.tokens.answer_ids]

    def __len__(self) -> int:
        return len(self.tokens.ids)


def read_training_set(paths: list[str], *, soft: bool) -> TrainingSet:
    """Reads token tables as one data set, every multiplier 1.

    Args:
        paths: Parquet files with TOKENS_SCHEMA, optionally with `WEIGHT`, `top_tokens` and `top_logprobs`.
        soft: Read the target distributions; rows without one get all probability on their own token.

    Raises:
        DataError: If there are no examples.
    """
    tables = [read_table(Path(path)) for path in paths]
    tokens = TokenData.from_table(pa.concat_tables([t.select(["id", "prompt_ids", "answer_ids"]) for t in tables]))
    if not tokens.ids:
        raise DataError(f"there is nothing to train on: {', '.join(paths)} hold no examples")
    ids, probabilities = _soft_targets(tables, tokens) if soft else (None, None)
    cut = [own for table in tables if SEGMENTS in table.column_names for own in table[SEGMENTS].to_pylist()]
    segments = [np.asarray(own, np.int64) for own in cut] if len(cut) == len(tokens.ids) else None
    return TrainingSet(tokens, np.ones(int(tokens.offsets[-1])), ids, probabilities, _weights(tables), segments)


def _weights(tables: list[pa.Table]) -> NDArray[np.float64] | None:
    """Weight of each example, `[n]`; None where no table says any."""
    if not any(WEIGHT in table.column_names for table in tables):
        return None
    parts = [np.asarray(t[WEIGHT], np.float64) if WEIGHT in t.column_names else np.ones(len(t)) for t in tables]
    return np.concatenate(parts)


def _soft_targets(tables: list[pa.Table], tokens: TokenData) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    rows: list[tuple[list[int], list[float]]] = []
    answers = iter(tokens.answer_ids)
    for table in tables:
        soft = "top_tokens" in table.column_names
        top_tokens = table["top_tokens"].to_pylist() if soft else [None] * len(table)
        top_logprobs = table["top_logprobs"].to_pylist() if soft else [None] * len(table)
        for likely, logprobs in zip(top_tokens, top_logprobs, strict=True):
            answer = next(answers)
            if likely is None:
                rows += [([int(token)], [0.0]) for token in answer]
            else:
                rows += list(zip(likely, logprobs, strict=True))
    k = max(len(ids) for ids, _ in rows)
    ids = np.zeros((len(rows), k), np.int64)
    scores = np.full((len(rows), k), -np.inf, np.float32)
    for i, (row_ids, row_logprobs) in enumerate(rows):
        ids[i, : len(row_ids)] = row_ids
        scores[i, : len(row_ids)] = row_logprobs
    probabilities = np.exp(scores - scores.max(axis=1, keepdims=True))
    return ids, probabilities / probabilities.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Layout:
    """How a step's examples are divided over workers and micro-batches."""

    batch_size: int
    world: int
    rank: int
    micro: int
    """Examples a micro-batch."""
    accumulation: int
    """Micro-batches per step, the same on every worker."""

    @classmethod
    def of(cls, *, batch_size: int, micro_batch_size: int | None, world: int, rank: int) -> Layout:
        share = math.ceil(batch_size / world)
        micro = min(micro_batch_size or share, share)
        return cls(batch_size, world, rank, micro, math.ceil(share / micro))

    def slots(self, batch: NDArray[np.int64]) -> NDArray[np.int64]:
        """This worker's examples of a step, [accumulation, micro]; -1 where there is none."""
        slots = np.full(self.accumulation * self.micro, -1, np.int64)
        mine = batch[self.rank :: self.world]
        slots[: len(mine)] = mine
        return slots.reshape(self.accumulation, self.micro)


def epoch_batches(lengths: NDArray[np.int64], batch_size: int, *, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Indices of the examples of each step of an epoch: shuffled, of like length within a batch, every example once."""
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[NDArray[np.int64]] = []
    span = batch_size * BUCKET
    for start in range(0, len(order), span):
        bucket = order[start : start + span]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def step_batches(
    data: TrainingSet, layout: Layout, *, pad_id: int, seed: int, epoch: int, first: int = 0
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Yields, for each optimizer step of an epoch from step `first` on, this worker's micro-batches (see `collate`)."""
    lengths = np.array([len(p) + len(a) for p, a in zip(data.tokens.prompt_ids, data.tokens.answer_ids, strict=True)])
    offsets = data.tokens.offsets
    counted = data.multipliers if data.shares is None else data.multipliers * data.shares
    for batch in epoch_batches(lengths, layout.batch_size, seed=seed, epoch=epoch)[first:]:
        total = sum(float(counted[offsets[i] : offsets[i + 1]].sum()) for i in batch)
        yield [collate(data, rows, pad_id=pad_id, total=total) for rows in layout.slots(batch)]


def collate(data: TrainingSet, rows: NDArray[np.int64], *, pad_id: int, total: float) -> dict[str, torch.Tensor]:
    """Right-pads examples into tensors.

    Args:
        data: The data set.
        rows: Indices of examples; -1 is an empty row without loss.
        pad_id: Padding token.
        total: What multipliers are divided by: their sum over the whole step, all workers.

    Returns:
        `input_ids`, `attention_mask` [batch, seq] int64; `labels` [batch, seq] int64, the token that each position is
        to predict, -100 where none; `weights` [batch, seq] float32; with soft targets `soft_ids` and
        `soft_probabilities` [batch, seq, k].
    """
    import torch  # here, because `plan` needs only `Layout`

    tokens = data.tokens
    sequences = [
        np.concatenate([tokens.prompt_ids[i], tokens.answer_ids[i]]) if i >= 0 else np.array([pad_id]) for i in rows
    ]
    width = max(len(s) for s in sequences)
    shape = (len(rows), width)
    out: dict[str, NDArray[Any]] = {
        "input_ids": np.full(shape, pad_id, np.int64),
        "attention_mask": np.zeros(shape, np.int64),
        "labels": np.full(shape, -100, np.int64),
        "weights": np.zeros(shape, np.float32),
    }
    if data.soft_ids is not None and data.soft_probabilities is not None:
        out["soft_ids"] = np.zeros((*shape, data.soft_ids.shape[1]), np.int64)
        out["soft_probabilities"] = np.zeros((*shape, data.soft_ids.shape[1]), np.float32)
    for row, (i, sequence) in enumerate(zip(rows, sequences, strict=True)):
        out["input_ids"][row, : len(sequence)] = sequence
        out["attention_mask"][row, : len(sequence)] = 1
        if i < 0:
            continue
        span = slice(int(tokens.offsets[i]), int(tokens.offsets[i + 1]))
        first = len(tokens.prompt_ids[i]) - 1  # the position that predicts the first answer token
        place = slice(first, first + span.stop - span.start)
        out["labels"][row, place] = tokens.answer_ids[i]
        out["weights"][row, place] = data.multipliers[span] / total if total > 0 else 0.0
        if data.weights is not None:
            out["weights"][row, place] *= data.weights[i]
        if data.soft_ids is not None and data.soft_probabilities is not None:
            out["soft_ids"][row, place] = data.soft_ids[span]
            out["soft_probabilities"][row, place] = data.soft_probabilities[span]
    return {key: torch.from_numpy(value) for key, value in out.items()}
