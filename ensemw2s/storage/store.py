"""The run directory: what each stage leaves, put in place atomically, recognised by its fingerprint.

A stage's description goes in, a folder with its output and a marker comes out. The marker is written last, so a folder
without one is unfinished work and is done again; a marker that does not match names what changed. Where a folder
mirrors object storage, the objects count (`remote`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ensemw2s import faults
from ensemw2s.errors import ArtifactError, ResourceError
from ensemw2s.storage import remote
from ensemw2s.storage.locks import locked
from ensemw2s.storage.remote import CONTENTS, MARKER, shown

if TYPE_CHECKING:
    import pyarrow as pa

_WORKING = ".partial-"
_STARTED = ".started.json"
_SUFFIX = 8


class Description(BaseModel):
    """What the output of a stage depends on. The stage's marker holds it.

    Attributes:
        stage: Name of the stage.
        settings: Plain JSON values under dotted config keys.
        inputs: Fingerprints of the stages that it reads, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    settings: dict[str, object] = {}
    inputs: dict[str, str] = {}

    @classmethod
    def read(cls, path: Path) -> Description | None:
        """What a file says; None if there is none.

        Raises:
            ArtifactError: If it is damaged.
        """
        file = remote.pull(path)
        try:
            return cls.model_validate(json.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = "it describes no stage" if isinstance(error, ValidationError) else error
            folder = shown(path.parent)
            raise ArtifactError(f"{shown(file)} is damaged ({reason}): delete {folder} to redo it") from None

    def write(self, path: Path) -> None:
        """Writes the file atomically."""
        write_json(path, self.model_dump())


@dataclass(frozen=True)
class Stage:
    """A pure function of its settings and its inputs' fingerprints, that leaves a folder.

    Attributes:
        name: Name in messages, such as `rounds/2`.
        path: Folder that it leaves.
        settings: Everything that its output depends on, as plain JSON values under dotted config keys.
        inputs: Stages it reads.
    """

    name: str
    path: Path
    settings: dict[str, object]
    inputs: tuple[Stage, ...] = ()

    @cached_property
    def description(self) -> Description:
        inputs = {stage.name: stage.fingerprint for stage in self.inputs}
        return Description(stage=self.name, settings=self.settings, inputs=inputs)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.description.model_dump())


def fingerprint_of(value: object) -> str:
    """SHA-256 of a plain JSON value, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_hash(file: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_done(path: Path, description: Description) -> bool:
    """Whether a folder holds the finished output of this description.

    Raises:
        ArtifactError: If it holds the finished output of another one; the message says what differs.
    """
    found = Description.read(path / MARKER)
    if found is None or found == description:
        return found is not None
    raise ArtifactError(
        f"{shown(path)} was made with another config: {difference(found, description)}. "
        "Use another name for this run, or --fresh to delete what no longer fits and redo it"
    )


def difference(found: Description, wanted: Description) -> str:
    """What changed between two descriptions, in one line."""
    a, b = _flat(found.model_dump()), _flat(wanted.model_dump())
    changes = [
        f"{key} was {a.get(key)!r}, is {b.get(key)!r}"
        for key in sorted(a.keys() | b.keys())
        if a.get(key) != b.get(key)
    ]
    settings = [c.removeprefix("settings.") for c in changes if c.startswith("settings.")]
    inputs = [c.split(" ")[0].removeprefix("inputs.") for c in changes if c.startswith("inputs.")]
    shown = settings or [f"its inputs changed ({', '.join(inputs)})"]
    return "; ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")


def _flat(tree: object, prefix: str = "") -> dict[str, object]:
    if isinstance(tree, dict):
        return {
            k: v for key, value in tree.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: tree}


@contextmanager
def publish(path: Path, description: Description) -> Iterator[Path]:
    """Gives an empty folder to write into, and puts its content in place at `path` when the block ends well.

    Folders of other stages that already lie inside `path` (a round's experts) stay. In object storage, what another
    machine has finished meanwhile stays, too.

    Raises:
        ResourceError: If the disk is full; what was written is removed, `path` is as it was. If object storage cannot
            be written; then `path` is as it was, or unfinished.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_partial(path)
    working = path.parent / f"{_WORKING}{path.name}-{uuid.uuid4().hex[:_SUFFIX]}"
    working.mkdir()
    try:
        yield working
        faults.reach("storage/publish")
        description.write(working / MARKER)
        if remote.uri(path) is not None and is_done(path, description):
            shutil.rmtree(working)
            return
        remote.push(working, path)
        _put_in_place(working, path)
    except BaseException as error:
        shutil.rmtree(working, ignore_errors=True)
        if _disk_full(error):
            raise ResourceError(
                f"no space left for {shown(path)}: free some, then run the same command again"
            ) from error
        raise


def _disk_full(error: BaseException) -> bool:
    """Whether an error says so; safetensors has its own kind, which gives the number in its text only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def _put_in_place(working: Path, path: Path) -> None:
    _follow_umask(working)
    for file in working.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    if not path.exists():
        os.rename(working, path)
        return
    (path / MARKER).unlink(missing_ok=True)
    for entry in sorted(working.iterdir(), key=lambda e: (e.name == MARKER, e.name == CONTENTS)):
        target = path / entry.name
        if target.is_dir() and entry.is_dir():
            shutil.rmtree(target)
        os.replace(entry, target)
    working.rmdir()


def _follow_umask(working: Path) -> None:
    """Lets others read what they may read of other files: safetensors gives its files to their owner alone."""
    mode = working.stat().st_mode & 0o666  # that of a folder which was just made
    for file in working.rglob("*"):
        if file.is_file() and not file.is_symlink():
            with suppress(OSError):  # not every file system has modes
                file.chmod(file.stat().st_mode | mode)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Keeps others who want to make the same stage out; they wait. The lock goes with the process, however it ends.

    In object storage there are no locks: only others on this machine are kept out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.parent / f".{path.name}.lock"):
        yield


@contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Keeps two runs out of one folder: the second one raises `ResourceError`. The lock goes with the process.

    As with `alone`, runs of other machines do not see it where the folder mirrors object storage.
    """
    root.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(root / ".lock", wait=False))
        except BlockingIOError:
            raise ResourceError(
                f"another run is at work in {shown(root)}: wait for its end, or use another name"
            ) from None
        yield


def remove_partial(path: Path) -> None:
    """Removes what an interrupted `publish` of this folder left behind."""
    for leftover in path.parent.glob(f"{_WORKING}{path.name}-{'?' * _SUFFIX}"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Writes JSON atomically: temporary file, fsync, rename."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as handle:
            json.dump(value, handle, indent=2, ensure_ascii=False)
            handle.write("\n")
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_json(path: Path, value: object) -> None:
    """`write_json` for a file that belongs to no folder with a marker: it goes where its path says."""
    write_json(path, value)
    remote.push(path)


def put_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside and renames it, so that a reader never meets half of it; it goes where its path says."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    remote.push(path)


def read_json(path: Path) -> Any:
    """Reads JSON. Raises `ArtifactError` where it is missing or damaged."""
    try:
        return json.loads(remote.pull(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{shown(path)} cannot be read: {error}") from None


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a parquet file of a stage's folder."""
    import pyarrow.parquet as pq

    return pq.read_table(remote.pull(path), columns=columns)


def resume(path: Path, description: Description) -> None:
    """Prepares a folder whose files are put in place one by one, keeping those of an interrupted run of the same stage.

    Files that another description began are removed, so that two can never mix. End with `finish`.
    """
    started = path / _STARTED
    try:
        same = Description.read(started) == description
    except ArtifactError:
        same = False
    if same:
        remote.remove(path / CONTENTS)  # of a `finish` that did not come to its end
    else:
        remote.remove(path)
        path.mkdir(parents=True)
        description.write(started)
        remote.push(started)


def finish(path: Path, description: Description) -> None:
    """Marks a folder that `resume` prepared as complete."""
    remote.pull(path)  # other machines have written some of its files
    description.write(path / MARKER)
    (path / _STARTED).unlink(missing_ok=True)
    remote.push(path)
