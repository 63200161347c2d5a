"""Rows of data files: parquet, JSON and CSV, local or in object storage, compressed or not.

Text is parsed by Python's own modules. Those of pyarrow guess types, and an answer such as 007 or 2024-01-01 would come
back as another text than the file's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from ensemw2s.config import FilesSource
from ensemw2s.data.rows import OriginRow, Part, reason
from ensemw2s.errors import DataError


class FilesReader:
    """Rows of parquet, JSON and CSV files, in the order of the paths and of the names in a folder."""

    endings = (".parquet", ".jsonl", ".ndjson", ".json", ".csv")
    compressions = (".gz", ".bz2", ".zst")

    def __init__(self, source: FilesSource, on_error: Callable[[DataError], None] | None = None) -> None:
        self.source, self.on_error = source, on_error

    def rows(self, part: Part = "easy", seed: int = 0) -> Iterator[OriginRow]:
        """All rows of all files."""
        for filesystem, file in self.files():
            yield from self._read(filesystem, file)

    def sample(self, part: Part = "easy") -> Iterator[OriginRow]:
        """The first row of each file."""
        for filesystem, file in self.files():
            yield from itertools.islice(self._read(filesystem, file), 1)

    def identity(self) -> dict[str, object]:
        """Path and size of each file, SHA-256 of local ones, time of the last change of remote ones."""
        return {"kind": "files", "files": [file_identity(filesystem, file) for filesystem, file in self.files()]}

    def files(self) -> list[tuple[pafs.FileSystem, pafs.FileInfo]]:
        """The files that the paths stand for."""
        found: list[tuple[pafs.FileSystem, pafs.FileInfo]] = []
        for path in self.source.paths:
            try:
                filesystem, inner = open_path(path)
                info = filesystem.get_file_info(inner)
                if info.type == pafs.FileType.Directory:
                    listed = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
                    files = [f for f in listed if f.is_file and self._is_data(f.path, inner)]
                else:
                    files = [info]
            except (OSError, pa.ArrowException, ValueError) as error:
                raise DataError(f"data path {path} cannot be read: {reason(error)}") from error
            if info.type == pafs.FileType.NotFound:
                raise DataError(
                    f"data path {path} does not exist (looked for {inner}); correct it in paths of the source"
                )
            if not files:
                raise DataError(f"data folder {path} holds no file ending in {', '.join(self.endings)}")
            found.extend((filesystem, file) for file in sorted(files, key=lambda f: f.path))
        return found

    def _is_data(self, path: str, folder: str) -> bool:
        """Whether a folder's file is data: a known ending and no hidden or `_` name on the way to it."""
        inside = path[len(folder.rstrip("/")) + 1 :].split("/")
        return self._format(path) is not None and not any(part.startswith((".", "_")) for part in inside)

    def _format(self, path: str) -> str | None:
        name = path.lower()
        for compression in self.compressions:
            name = name.removesuffix(compression)
        return next((ending for ending in self.endings if name.endswith(ending)), None)

    def _read(self, filesystem: pafs.FileSystem, file: pafs.FileInfo) -> Iterator[OriginRow]:
        ending = self._format(file.path)
        if ending is None:
            raise DataError(f"data file {file.path} has an unknown ending; expected one of {', '.join(self.endings)}")
        read = {".parquet": _read_parquet, ".csv": _read_csv, ".json": _read_json}.get(ending, _read_jsonl)
        try:
            for number, row in read(filesystem, file.path):
                if isinstance(row, dict):
                    yield f"{file.path} row {number}", row
                    continue
                error = (
                    row
                    if isinstance(row, ValueError)
                    else ValueError(f"row {number} is a {type(row).__name__}, expected an object with named fields")
                )
                if self.on_error is None:
                    raise error
                self.on_error(DataError(f"{file.path}: {error}"))
        except (OSError, pa.ArrowException, ValueError, csv.Error) as error:  # UnicodeDecodeError is a ValueError
            raise DataError(f"data file {file.path} cannot be read as {ending[1:]}: {reason(error)}") from error


def open_path(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URI, and the path inside it."""
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), str(Path(path).expanduser().resolve())


NumberedRow = tuple[int, object]
"""A row, or the error in its place, and its number."""


def _read_parquet(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    with filesystem.open_input_file(path) as stream:
        batches = pq.ParquetFile(stream).iter_batches(batch_size=4096)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


@contextmanager
def _open_text(filesystem: pafs.FileSystem, path: str) -> Iterator[io.TextIOWrapper]:
    with filesystem.open_input_stream(path, compression="detect") as stream:
        yield io.TextIOWrapper(io.BufferedReader(stream, 1 << 20), "utf-8-sig", newline="")


def _read_csv(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open_text(filesystem, path) as text:
        reader = csv.DictReader(text, strict=True)
        header = list(reader.fieldnames or ())
        if len(set(header)) < len(header):
            raise ValueError(f"its header names a column twice: {', '.join(header)}")
        for number, row in enumerate(reader, start=1):
            if None in row or None in row.values():
                yield (
                    number,
                    ValueError(
                        f"row {number} (line {reader.line_num}) does not have {len(header)} cells as the header does"
                    ),
                )
            else:
                yield number, row


def _read_jsonl(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    with _open_text(filesystem, path) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError as error:
                    yield number, ValueError(f"line {number} is not JSON: {error.msg} at column {error.colno}")


def _read_json(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    """A JSON array of objects, or JSON lines under the other name."""
    with _open_text(filesystem, path) as text:
        is_array = next((c for c in iter(lambda: text.read(1), "") if not c.isspace()), "") == "["
    if not is_array:
        yield from _read_jsonl(filesystem, path)
        return
    with _open_text(filesystem, path) as text:
        yield from enumerate(json.load(text), start=1)


def file_identity(filesystem: pafs.FileSystem, file: pafs.FileInfo) -> dict[str, object]:
    """Path and size of a file; SHA-256 of a local one, time of the last change of a remote one."""
    facts: dict[str, object] = {"path": file.path, "size": file.size}
    if isinstance(filesystem, pafs.LocalFileSystem):
        with open(file.path, "rb") as stream:
            facts["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
    else:
        facts["modified_ns"] = file.mtime_ns
    return facts
