"""Every voter's answer to every example, as files: truths and columns of the evaluation go in, parquet comes out.

Its own module because these files are for other programs: their columns are documented, and no stage reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.evaluation.chunks import Rows

FORCED_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("split", "voter", "id")),
        ("answer_ids", pa.list_(pa.int32())),
        ("member_ids", pa.list_(pa.list_(pa.int32()))),
    ]
)


def write_answers(path: Path, truths: dict[str, pa.Table], columns: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes every voter's answer to every example, for further analysis."""
    rows = [
        {"split": split, "voter": voter, "id": identity, "prompt": prompt, "answer": answer, "truth": truth}
        for split, table in truths.items()
        for voter, found in columns[split].items()
        if "answer" in found
        for identity, prompt, truth, answer in zip(
            *(table[name].to_pylist() for name in ("id", "prompt", "answer")), found["answer"], strict=True
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_forced(path: Path, truths: dict[str, pa.Table], columns: Mapping[str, Mapping[str, Rows]]) -> None:
    """Writes what each member of an ensemble predicts at every token of the true answers, to compare their errors."""
    rows = [
        {"split": split, "voter": voter, "id": identity, "answer_ids": answer, "member_ids": members}
        for split, table in truths.items()
        for voter, found in columns[split].items()
        if "member_ids" in found
        for identity, answer, members in zip(
            table["id"].to_pylist(), found["answer_ids"], found["member_ids"], strict=True
        )
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=FORCED_SCHEMA), path)
