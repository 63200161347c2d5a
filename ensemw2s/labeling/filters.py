"""Which labels are good enough to learn from: a filter and labels go in, the labels that pass come out.

Its own module because students are trained on what passes, and `ensemw2s label` writes it beside all labels; a label
that does not pass stays where it is.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import LabelFilter
from ensemw2s.errors import DataError
from ensemw2s.labeling.parts import KEPT, parts, write_part

DECIDING = ("finish_reason", "answer", "agreement", "consistency")


def passing(labels: pa.Table, wanted: LabelFilter) -> np.ndarray:
    """Which labels pass.

    A label that ran out of length or is empty is never one to learn from, and does not count for the fraction. Of equal
    agreement the earlier label is kept, and one label at least where any is good enough.

    Args:
        labels: Has the columns finish_reason, answer and agreement; consistency if the filter asks for it.
        wanted: The filter.

    Returns:
        `[n]`, bool.

    Raises:
        DataError: If the filter asks for consistency and the labels have none.
    """
    agreement = np.asarray(labels["agreement"])
    passes = np.asarray(labels["finish_reason"].to_pylist(), object) == "stop"
    passes &= np.asarray(labels["answer"].to_pylist(), object) != ""
    passes &= agreement >= wanted.min_agreement
    if wanted.min_consistency:
        if "consistency" not in labels.column_names:
            raise DataError("min_consistency needs labels that were chosen among several samples (labeling.samples)")
        passes &= np.asarray(labels["consistency"]) >= wanted.min_consistency
    places = np.flatnonzero(passes)
    if wanted.keep_fraction < 1 and len(places):
        keep = max(1, round(wanted.keep_fraction * len(places)))
        best = np.argsort(-agreement[places], kind="stable")[:keep]
        passes = np.zeros(len(labels), bool)
        passes[places[best]] = True
    return passes


def write_kept(folder: Path, wanted: LabelFilter) -> int:
    """Writes the labels of a folder that pass into its folder `kept`, part by part, and says how many these are.

    Memory is for the columns that decide and one part.
    """
    files = parts(folder)
    if not files:
        return 0
    columns = [name for name in DECIDING if name in pq.read_schema(files[0]).names]
    passes = passing(pa.concat_tables([pq.read_table(file, columns=columns) for file in files]), wanted)
    first = 0
    for file in files:
        table = pq.read_table(file)
        write_part(table.filter(pa.array(passes[first : first + len(table)])), folder / KEPT / file.name)
        first += len(table)
    return int(passes.sum())
