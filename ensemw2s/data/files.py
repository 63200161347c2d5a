"""Rows of data files: parquet, JSON and CSV, local or in object storage, compressed or not.

Text is parsed by Python's own modules. Those of pyarrow guess types, and an answer such as 007 or 2024-01-01 would come
back as another text than the file's.
"""

from __future__ import annotations

import codecs
import csv
import fnmatch
import glob
import hashlib
import io
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from ensemw2s.config import FilesSource
from ensemw2s.data.rows import JSON, OriginRow, Part, reason
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
        for path in itertools.chain.from_iterable(map(expand, self.source.paths)):
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


def expand(path: str) -> list[str]:
    """The files and folders that a pattern such as `data/*.jsonl` stands for; a path that is none, or is there, itself.

    Raises:
        DataError: Nothing matches the pattern, or its folder cannot be read.
    """
    if not any(mark in path for mark in "*?["):
        return [path]
    try:
        if "://" not in path:
            local = str(Path(path).expanduser())
            found = [local] if Path(local).exists() else sorted(glob.glob(local, recursive=True))
        else:
            root = re.split(r"[*?\[]", path)[0].rsplit("/", 1)[0]
            filesystem, inner = open_path(root)
            pattern = inner + path[len(root) :]
            listed = filesystem.get_file_info(pafs.FileSelector(inner, recursive=True))
            found = [root + f.path[len(inner) :] for f in listed if f.is_file and _matches(f.path, pattern)]
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DataError(f"data path {path} cannot be read: {reason(error)}") from error
    if not found:
        raise DataError(f"data path {path}: no file has such a name; correct it in paths of the source")
    return sorted(found)


def _matches(path: str, pattern: str) -> bool:
    """Whether a path matches a pattern, folder by folder; `**` stands for any number of folders."""
    parts, wanted = path.split("/"), pattern.split("/")
    if "**" not in wanted:
        return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))
    at = wanted.index("**")
    return any(
        _matches("/".join(parts[:at] + parts[k:]), "/".join(wanted[:at] + wanted[at + 1 :]))
        for k in range(at, len(parts))
    )


def open_path(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a local path or URI, and the path inside it."""
    if "://" in path:
        return pafs.FileSystem.from_uri(path)
    return pafs.LocalFileSystem(), str(Path(path).expanduser().resolve())


NumberedRow = tuple[int, object]
"""A row, or the error in its place, and its number."""


def _read_parquet(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    with filesystem.open_input_file(path) as stream:
        number = 0
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=4096):
            for row in _rows_of(batch):
                number += 1
                yield number, row if isinstance(row, dict) else ValueError(f"row {number}: {row}")


def _rows_of(batch: pa.RecordBatch) -> Iterator[object]:
    """The rows of a batch, one by one where a text among them is no UTF-8."""
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        for i in range(batch.num_rows):
            try:
                yield batch.slice(i, 1).to_pylist()[0]
            except UnicodeDecodeError as error:
                yield f"its text is not UTF-8 ({error.reason})"


@contextmanager
def _open_text(filesystem: pafs.FileSystem, path: str) -> Iterator[io.TextIOWrapper]:
    """A text file. Bytes that are no UTF-8 become single surrogates, which `_not_utf8` finds.

    Raises:
        ValueError: The first bytes are of another encoding.
    """
    with filesystem.open_input_stream(path, compression="detect") as stream:
        buffered = io.BufferedReader(stream, 1 << 20)
        start = buffered.peek(4)[:4]
        if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            name = "UTF-32" if start == codecs.BOM_UTF32_LE else "UTF-16"
            raise ValueError(f"it is {name}, expected UTF-8; {_convert(name)}")
        yield io.TextIOWrapper(buffered, "utf-8-sig", errors="surrogateescape", newline="")


def _not_utf8(line: str) -> str | None:
    """What is wrong with a text that is no UTF-8, and which encoding it looks like."""
    broken = _ESCAPED.search(line)
    if broken is None:
        return None
    raw = line.encode("utf-8", "surrogateescape")
    name = "Windows-1252"
    if sum(byte > 0x7F for byte in raw) >= ENOUGH and (guess := from_bytes(raw).best()) is not None:
        name = guess.encoding
    byte = ord(broken.group()) - 0xDC00
    return f"is not UTF-8 (byte 0x{byte:02X}); it looks like {name}: {_convert(name)}"


_ESCAPED = re.compile("[\udc80-\udcff]")
ENOUGH = 40
"""Bytes outside ASCII from which an encoding can be told; a few are most likely of the most frequent one."""


def _convert(name: str) -> str:
    return f"convert the file with iconv -f {name} -t UTF-8"


def _read_csv(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open_text(filesystem, path) as text:
        reader = csv.reader(text, strict=True)
        header = next(reader, [])
        if broken := _not_utf8(",".join(header)):
            raise ValueError(f"line 1 {broken}")
        if len(set(header)) < len(header):
            raise ValueError(f"its header names a column twice: {', '.join(header)}")
        if len(header) == 1 and (other := [mark for mark in (";", "\t", "|") if mark in header[0]]):
            raise ValueError(
                f"its header is a single column, {header[0]!r}: it seems to be separated by {other[0]!r}, expected ','"
            )
        number, first = 0, reader.line_num
        while True:
            first = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                number += 1
                if reader.line_num > first:  # a quote that never ends takes the rest of the file with it
                    raise ValueError(
                        f"row {number} begins in line {first} and does not end before line {reader.line_num} "
                        f"({error}); is a quote missing?"
                    ) from None
                yield number, ValueError(f"row {number} (line {first}) is not CSV: {error}")
                continue
            if cells is None:
                return
            if not cells:  # an empty line
                continue
            number += 1
            where = f"row {number} (line {first})"
            if broken := _not_utf8("".join(cells)):
                yield number, ValueError(f"{where} {broken}")
            elif len(cells) != len(header):
                said = f"{where} does not have {len(header)} cells as the header does, but {len(cells)}"
                yield number, ValueError(f"{said}; cells with commas need quotes")
            else:
                yield number, dict(zip(header, cells, strict=True))


def _read_jsonl(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    with _open_text(filesystem, path) as text:
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield number, _parsed(line, f"line {number}")


def _parsed(line: str, where: str) -> object:
    """The value of a line of JSON, or the error in its place."""
    if broken := _not_utf8(line):
        return ValueError(f"{where} {broken}")
    try:
        return JSON.decode(line)
    except json.JSONDecodeError as error:
        return ValueError(f"{where} is not JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return ValueError(f"{where} is nested too deeply")
    except ValueError:  # Python's JSON raises no other
        most = sys.get_int_max_str_digits()
        return ValueError(f"{where} has an integer of over {most} digits: put it in quotes, as text")


def _read_json(filesystem: pafs.FileSystem, path: str) -> Iterator[NumberedRow]:
    """A JSON array of objects, or JSON lines under the other name."""
    with _open_text(filesystem, path) as text:
        is_array = next((c for c in iter(lambda: text.read(1), "") if not c.isspace()), "") == "["
    if not is_array:
        yield from _read_jsonl(filesystem, path)
        return
    with _open_text(filesystem, path) as text:
        content = text.read()
    if broken := _ESCAPED.search(content):
        line = content.count("\n", 0, broken.start()) + 1
        raise ValueError(f"line {line} {_not_utf8(content.splitlines()[line - 1])}")
    try:
        rows = JSON.decode(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    yield from enumerate(rows, start=1)


def file_identity(filesystem: pafs.FileSystem, file: pafs.FileInfo) -> dict[str, object]:
    """Path and size of a file; SHA-256 of a local one, time of the last change of a remote one."""
    facts: dict[str, object] = {"path": file.path, "size": file.size}
    if isinstance(filesystem, pafs.LocalFileSystem):
        facts["sha256"] = _sha256(file.path, file.size, file.mtime_ns)
    else:
        facts["modified_ns"] = file.mtime_ns
    return facts


@cache
def _sha256(path: str, size: int, changed_ns: int) -> str:
    """Hash of a file; one that did not change is read once per process."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
