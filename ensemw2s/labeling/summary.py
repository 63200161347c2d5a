"""What a folder of labels holds, in numbers: counts and histograms, as `summary.json` beside the parts.

Read part by part, so that memory does not grow with the labels. Nothing in it depends on how long anything took: the
same labels have the same summary.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.labeling.parts import parts, rejected_parts
from ensemw2s.storage import store

SUMMARY = "summary.json"
BINS = 20
Facts = dict[str, Any]


def summarise(folder: Path) -> Facts:
    """Counts, means and histograms of a folder of labels.

    Returns:
        `labels`, `tokens`, `rejected` (counts), `finish_reasons`, `reasons` (of rejected prompts, with digits left
        out), `means`, and `histograms`: for each quantity `edges` and `counts`, one count less than edges.
    """
    files = parts(folder)
    longest, most_divided, least_likely = _extremes(files)
    edges = {
        "agreement": np.linspace(0, 1, BINS + 1),
        "consistency": np.linspace(0, 1, BINS + 1),
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
    return {
        "labels": total,
        "tokens": int(sums["n_tokens"]),
        "rejected": rejected.total(),
        "finish_reasons": dict(sorted(reasons.items())),
        "reasons": dict(rejected.most_common(20)),
        "means": {name: sums[name] / total for name in shown} if total else {},
        "histograms": {
            name: {"edges": edges[name].tolist(), "counts": counts[name].tolist()} for name in shown if total
        },
    }


def write_summary(folder: Path) -> Facts:
    """Writes `summary.json` into a folder of labels, and gives what it says."""
    facts = summarise(folder)
    store.put_json(folder / SUMMARY, facts)
    return facts


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
