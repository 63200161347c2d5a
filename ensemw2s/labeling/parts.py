"""A folder of labels: the columns, the names of its files, and how they are written and read.

Every chunk of prompts has one part, put in place whole. `*.parquet` are labels, at any time; prompts that cannot be
labelled lie in `rejected/`, under the name of the part that they are missing from.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s import faults
from ensemw2s.config import LabelingConfig
from ensemw2s.errors import ResourceError
from ensemw2s.storage import remote

LABEL_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("logprob", pa.float64()),
        ("agreement", pa.float64()),
        ("vote_entropy", pa.float64()),
        ("n_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("token_agreement", pa.list_(pa.float32())),
        ("token_entropy", pa.list_(pa.float32())),
    ]
)
OPTION_FIELDS = [("margin", pa.float64())]
SAMPLE_FIELDS = [("consistency", pa.float64())]
SOFT_FIELDS = [("top_tokens", pa.list_(pa.list_(pa.int32()))), ("top_logprobs", pa.list_(pa.list_(pa.float16())))]
REJECTED_SCHEMA = pa.schema([("id", pa.string()), ("prompt", pa.string()), ("reason", pa.string())])
REJECTED = "rejected"
KEPT = "kept"


def label_schema(labeling: LabelingConfig, *, margin: bool = False) -> pa.Schema:
    """The columns of labels that are made with this config; `margin` where questions have options."""
    samples = SAMPLE_FIELDS if labeling.samples > 1 else []
    options = OPTION_FIELDS if margin else []
    return pa.schema([*LABEL_SCHEMA, *options, *samples, *(SOFT_FIELDS if labeling.soft_top_k else [])])


def part_name(start: int) -> str:
    """File name of the part whose first prompt has this number; names sort in the order of the prompts."""
    return f"part-{start:010d}.parquet"


def rejected_part(folder: Path, start: int) -> Path:
    """Where the rejected prompts of that part go."""
    return folder / REJECTED / part_name(start)


def parts(folder: Path) -> list[Path]:
    """The parts that are there, in the order of the prompts."""
    return sorted(remote.pull(folder).glob("part-*.parquet"))


def rejected_parts(folder: Path) -> list[Path]:
    """Files of rejected prompts: those of the input first, then those of chunks in their order."""
    return sorted(remote.pull(folder / REJECTED).glob("*.parquet"))


def count(files: list[Path]) -> int:
    """Rows of parquet files."""
    return sum(pq.read_metadata(file).num_rows for file in files)


def write_part(table: pa.Table, path: Path) -> None:
    """Writes a file atomically. Raises `ResourceError` when the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(table, temporary)
        faults.reach("labeling/part")
        remote.push(temporary, path)
        os.replace(temporary, path)
    except OSError as error:
        raise ResourceError(
            f"{remote.shown(path)} cannot be written ({error.strerror or error}); what is labelled is kept"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Removes what writers left that were killed; nobody else may be writing."""
    for file in folder.rglob(".*.parquet.*.tmp"):
        file.unlink(missing_ok=True)


def read_labels(folder: Path) -> pa.Table:
    """All parts of a labels folder, in the order of the prompts."""
    return pa.concat_tables([pq.read_table(part) for part in parts(folder)])
