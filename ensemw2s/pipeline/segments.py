"""Segments of the easy answers, and how experts of several tokenizers do on them; see `boosting.segments`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ensemw2s.boosting.segments import SEGMENTS, numbered, segment_ids, segment_votes
from ensemw2s.config import Config
from ensemw2s.data.tokens import TokenData
from ensemw2s.ensemble.bytewise.vocabulary import token_bytes
from ensemw2s.models.tokenizers import load_tokenizer
from ensemw2s.pipeline.graph import Base, Graph
from ensemw2s.storage.store import read_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def with_segments(
    examples: pa.Table,
    tables: Sequence[pa.Table],
    tokenizers: Sequence[PreTrainedTokenizerBase],
    config: Config,
) -> list[pa.Table]:
    """Tables of tokens with the segment of each answer token.

    Args:
        examples: The examples.
        tables: The same as tokens of each tokenizer.
        tokenizers: The tokenizers.
        config: What precedes an answer.
    """
    prefix = "" if config.data.chat_template else config.data.answer_prefix
    spelt = [token_bytes(tokenizer) for tokenizer in tokenizers]
    found: list[list[list[int]]] = [[] for _ in tables]
    answers = [table["answer_ids"].to_pylist() for table in tables]
    for text, *ids in zip(examples["answer"].to_pylist(), *answers, strict=True):
        spellings = [[by_id[index] or b"" for index in own[:-1]] for by_id, own in zip(spelt, ids, strict=True)]
        for column, own in zip(found, segment_ids((prefix + text).encode(), spellings), strict=True):
            column.append(own.tolist())
    return [
        table.append_column(SEGMENTS, pa.array(column, pa.list_(pa.int32())))
        for table, column in zip(tables, found, strict=True)
    ]


Predict = Callable[[Path, list[str]], NDArray[np.integer]]
"""Gives the likeliest tokens of models, `[models, N]`, at each answer position of a table of tokens."""


@dataclass(frozen=True)
class Easy:
    """The easy training answers as the samples of boosting: tokens, or segments where there are several tokenizers.

    Attributes:
        ids: The examples.
        lengths: Samples of each.
        answers: `[N]`: the true samples, as votes.
    """

    graph: Graph
    ids: list[str]
    lengths: list[int]
    answers: NDArray[np.integer]

    @classmethod
    def read(cls, graph: Graph) -> Easy:
        """Reads them, once per round."""
        base = graph.weak[0]
        data = TokenData.read(graph.easy("easy_train", base))
        true = np.concatenate(data.answer_ids)
        if not graph.mixed:
            return cls(graph, data.ids, [len(answer) for answer in data.answer_ids], true)
        segments, lengths = _segments(graph, base)
        _, answers = segment_votes(true, true, segments, _bytes_of(base))
        return cls(graph, data.ids, lengths, answers)

    def votes(self, models: Sequence[tuple[str, Base]], predict: Predict) -> NDArray[np.integer]:
        """What models predict of each sample, `[models, N]`; right where it is equal to `answers`.

        Args:
            models: Folder of each model, and the base that it comes from.
            predict: Reads a table with models of its tokenizer.
        """
        if not self.graph.mixed:
            return predict(self.graph.easy("easy_train", self.graph.weak[0]), [model for model, _ in models])
        found: dict[int, NDArray[np.integer]] = {}
        for number in sorted({base.tokenizer for _, base in models}):
            own = [i for i, (_, base) in enumerate(models) if base.tokenizer == number]
            base = models[own[0]][1]
            table = self.graph.easy("easy_train", base)
            tokens = predict(table, [models[i][0] for i in own])
            true, by_id = np.concatenate(TokenData.read(table).answer_ids), _bytes_of(base)
            segments, _ = _segments(self.graph, base)
            for i, predicted in zip(own, tokens, strict=True):
                found[i], _ = segment_votes(predicted, true, segments, by_id)
        return np.stack([found[i] for i in range(len(models))])


def _segments(graph: Graph, base: Base) -> tuple[NDArray[np.int64], list[int]]:
    column = read_table(graph.easy("easy_train", base), [SEGMENTS])[SEGMENTS].to_pylist()
    return numbered([np.asarray(own, np.int64) for own in column])


def _bytes_of(base: Base) -> list[bytes | None]:
    return token_bytes(load_tokenizer(base.path, base.revision))
