"""What a folder of labels holds, in numbers: counts and histograms, as `summary.json` beside the parts.

Read part by part, so that memory does not grow with the labels. Nothing in it depends on how long anything took: the
same labels have the same summary.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.labeling.parts import parts, rejected_parts
from ensemw2s.storage import remote
from ensemw2s.storage.record import Record

SUMMARY = "summary.json"
BINS = 20


class Histogram(Record):
    """How often a quantity lies between two edges; the last bin includes both."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


class LabelSummary(Record):
    """What a folder of labels holds.

    Attributes:
        labels: Number of labels.
        tokens: Their tokens.
        rejected: Prompts that could not be labelled.
        finish_reasons: Labels by how decoding ended.
        reasons: Rejected prompts by reason, with digits left out; the 20 most frequent ones.
        means: Mean of each quantity; empty without labels.
        histograms: Of each quantity; empty without labels.
    """

    labels: int
    tokens: int
    rejected: int
    finish_reasons: dict[str, int]
    reasons: dict[str, int]
    means: dict[str, float]
    histograms: dict[str, Histogram]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The summary in a folder of labels."""
        return cls.read_file(folder / SUMMARY)

    def write(self, folder: Path) -> None:
        """Puts it into a folder of labels."""
        self.write_file(folder / SUMMARY)
        remote.push(folder / SUMMARY)


def summarise(folder: Path) -> LabelSummary:
    """Counts, means and histograms of a folder of labels."""
    files = parts(folder)
    longest, most_divided, least_likely = _extremes(files)
    edges = {
        "agreement": np.linspace(0, 1, BINS + 1),
        "consistency": np.linspace(0, 1, BINS + 1),
        "margin": np.linspace(0, 1, BINS + 1),
        "vote_entropy": np.linspace(0, most_divided or 1.0, BINS + 1),
        "n_tokens": np.unique(np.linspace(0, longest or 1, min(BINS, longest or 1) + 1).round()),
        "logprob": np.linspace(least_likely or -1.0, 0, BINS + 1),
    }
    counts = {name: np.zeros(len(values) - 1, np.int64) for name, values in edges.items()}
    sums: defaultdict[str, float] = defaultdict(float)
    reasons: Counter[str] = Counter()
    total = 0
    for file in files:
        table = _columns(file, [*edges, "finish_reason"])
        total += len(table)
        reasons.update(table["finish_reason"].to_pylist())
        for name in edges:
            if name in table.column_names:
                values = np.asarray(table[name], np.float64)
                counts[name] += np.histogram(np.clip(values, edges[name][0], edges[name][-1]), edges[name])[0]
                sums[name] += float(values.sum())
    shown = [name for name in edges if name in sums]
    rejected = Counter(reason for file in rejected_parts(folder) for reason in _reasons(file))
    bins = {name: Histogram(edges=edges[name].tolist(), counts=counts[name].tolist()) for name in shown if total}
    return LabelSummary(
        labels=total,
        tokens=int(sums["n_tokens"]),
        rejected=rejected.total(),
        finish_reasons=dict(sorted(reasons.items())),
        reasons=dict(rejected.most_common(20)),
        means={name: sums[name] / total for name in shown} if total else {},
        histograms=bins,
    )


def _columns(file: Path, wanted: list[str]) -> pa.Table:
    there = set(pq.read_schema(file).names)
    return pq.read_table(file, columns=[name for name in wanted if name in there])


def _extremes(files: list[Path]) -> tuple[int, float, float]:
    """The longest label in tokens, the largest entropy, the lowest log-probability; 0 where there are no labels."""
    longest, most_divided, least_likely = 0, 0.0, 0.0
    for file in files:
        table = _columns(file, ["n_tokens", "vote_entropy", "logprob"])
        if len(table):
            longest = max(longest, max(table["n_tokens"].to_pylist()))
            most_divided = max(most_divided, max(table["vote_entropy"].to_pylist()))
            least_likely = min(least_likely, min(table["logprob"].to_pylist()))
    return longest, most_divided, least_likely


def _reasons(file: Path) -> list[str]:
    """Why prompts were rejected, without the numbers that make each reason its own."""
    texts = pq.read_table(file, columns=["reason"])["reason"].to_pylist()
    return [re.sub(r"\d+", "N", text) for text in texts]
