"""From a person's files to one parquet file that actors read by row groups, and what cannot be used put aside.

Rows flow through one at a time, whatever the size of the input: ids that were seen are kept on the disk.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import FilesSource, HuggingFaceSource
from ensemw2s.data.columns import ColumnError, render_row
from ensemw2s.data.examples import EXAMPLE_SCHEMA, example_id
from ensemw2s.data.readers import make_reader
from ensemw2s.data.rows import Fields, Row
from ensemw2s.errors import DataError
from ensemw2s.labeling.parts import REJECTED_SCHEMA
from ensemw2s.storage import remote

FileSource = FilesSource | HuggingFaceSource
"""Where a saved model's input may come from."""


def check_input(source: FileSource, *, labelled: bool) -> None:
    """Finds what the first row of each file shows to be wrong.

    Raises:
        DataError: A file that cannot be read, a column that is missing, no rows; and if rows must be labelled, a value
            that cannot be used.
    """
    rows, broken = 0, list[DataError]()
    for origin, row in make_reader(source, None if labelled else broken.append).sample("easy"):
        try:
            render_row(source.columns, row, origin=origin, answer_optional=not labelled)
        except DataError as error:
            if labelled or isinstance(error, ColumnError):
                raise
        rows += 1
    if rows + len(broken) == 0:
        raise DataError(f"there are no rows in {named(source)}")


def identity(source: FileSource) -> Any:
    """Plain values that change when the input does."""
    found = make_reader(source).identity()
    return found["files"] if isinstance(source, FilesSource) else found


def write_examples(source: FileSource, path: Path, *, group: int, rejected: Path | None = None) -> int:
    """Writes the rows of the input as one parquet file (EXAMPLE_SCHEMA), put in place whole.

    Without an id column the id is a hash of the prompt, with `-2`, `-3` and so on where the same prompt comes again.
    Memory is for a group of rows; ids that were seen are kept on the disk.

    Args:
        source: Files or a data set, and columns.
        path: The parquet file.
        group: Rows of a row group; the grain in which actors read.
        rejected: File for rows that cannot be used (REJECTED_SCHEMA). Default: the first one is raised, and every row
            must have an answer.

    Returns:
        Number of rows that can be used.

    Raises:
        DataError: There are no rows; without `rejected`, a row cannot be used, or an id comes twice.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        _Rows(path, EXAMPLE_SCHEMA, group) as usable,
        _Rows(rejected or path, REJECTED_SCHEMA, group) as refused,
        _Seen() as seen,
    ):

        def refuse(error: DataError) -> None:
            if rejected is None:
                raise error
            refused.add({"id": None, "prompt": None, "reason": str(error)})

        for origin, row in make_reader(source, None if rejected is None else refuse).rows("easy", 0):
            try:
                usable.add(_example(source, origin, row, seen, labelled=rejected is None))
            except DataError as error:
                refuse(error)
        if not usable.total + refused.total:
            raise DataError(f"there are no rows in {named(source)}")
        if refused.total:
            refused.finish()
        usable.finish()
    return usable.total


def _example(source: FileSource, origin: str, row: Row, seen: _Seen, *, labelled: bool) -> Fields:
    example = render_row(source.columns, row, origin=origin, answer_optional=not labelled)
    own = example["id"] or example_id(example["prompt"])
    times = seen.add(own)
    if times > 1:
        if example["id"] is not None:
            raise DataError(f"{origin}: the id {own} occurs twice; ids must be unique")
        own = f"{own}-{times}"
    return {**example, "id": own, "difficulty": example["difficulty"] or 0.0}


class _Rows:
    """A parquet file to which rows are added; it is put in place by `finish`, or there is none."""

    def __init__(self, path: Path, schema: pa.Schema, group: int) -> None:
        self.path, self.schema, self.group, self.total = path, schema, group, 0
        self._temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        self._batch: list[Mapping[str, object]] = []
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, row: Mapping[str, object]) -> None:
        self._batch.append(row)
        self.total += 1
        if len(self._batch) == self.group:
            self._flush()

    def finish(self) -> None:
        self._flush()
        assert self._writer is not None
        self._writer.close()
        remote.push(self._temporary, self.path)
        os.replace(self._temporary, self.path)

    def _flush(self) -> None:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, self.schema)
        if self._batch:
            self._writer.write_table(pa.Table.from_pylist(self._batch, schema=self.schema))
            self._batch = []


class _Seen:
    """How often each id came, on the disk: millions of them do not fit everybody's memory."""

    def __init__(self) -> None:
        # not beside the output: its file system may lack the locks that SQLite takes
        self._path = Path(tempfile.gettempdir()) / f"ensemw2s-seen-{uuid.uuid4().hex[:8]}"
        self._table = sqlite3.connect(self._path, isolation_level=None)
        self._table.execute("pragma journal_mode = off")
        self._table.execute("pragma synchronous = off")
        self._table.execute("create table seen (id text primary key, times integer) without rowid")
        self._table.execute("begin")

    def __enter__(self) -> _Seen:
        return self

    def __exit__(self, *_: object) -> None:
        self._table.close()
        self._path.unlink(missing_ok=True)

    def add(self, identity: str) -> int:
        """How often the id has come, this time included."""
        upsert = "insert into seen values (?, 1) on conflict do update set times = times + 1 returning times"
        return int(self._table.execute(upsert, (identity,)).fetchone()[0])


def named(source: FileSource) -> str:
    """The input, in words."""
    return ", ".join(source.paths) if isinstance(source, FilesSource) else f"{source.path} ({source.split})"
