"""Object storage: a URI comes in, and a local folder that mirrors it goes out. What is made in the folder is uploaded.

The path of a mirror says what it mirrors, so the rest of the package needs only paths, on every node. The objects are
the truth. A local copy is made when an object is read and differs; it may be deleted at any time. Objects cannot be
renamed, so the marker of a folder is written last, and removed first when the folder is replaced.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemw2s import env
from ensemw2s.errors import ArtifactError, ConfigError, ResourceError
from ensemw2s.storage.locks import locked

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

MARKER = ".complete.json"
"""Says that a folder is finished."""

CONTENTS = ".contents.json"
"""Which files belong to a folder that has a marker, and an id that no other version of the folder has."""

WORKING = (".partial-", ".working-")
"""Prefixes of folders that are being written. They mirror nothing yet."""

_MIRROR = "ensemw2s-mirror"
_TEMPORARY = ".tmp"
_TRANSFERS = 8

_ACCESS = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and their kin",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY",
}
"""Kinds of storage, and the variables of the environment that give access."""


def local(place: str | Path) -> Path:
    """The folder or file of this machine that a path or a URI stands for.

    Args:
        place: A path, or `s3://bucket/key`, `gs://…`, `az://…`.

    Raises:
        ConfigError: If it is a URI of another form.
    """
    text = str(place)
    if "://" not in text:
        return Path(text).expanduser()
    scheme, rest = text.split("://", 1)
    parts = rest.rstrip("/").split("/")
    if scheme not in _ACCESS or not set(parts).isdisjoint({"", ".", ".."}) or set("?#@") & set(rest):
        raise ConfigError(
            f"{text} cannot be used: expected a folder, or BUCKET/KEY after one of "
            f"{', '.join(f'{known}://' for known in _ACCESS)}; credentials and endpoint belong into the environment"
        )
    return _root().joinpath(scheme, *parts)


def _root() -> Path:
    return Path(env.SCRATCH.get() or tempfile.gettempdir()).expanduser().absolute() / _MIRROR


def uri(path: str | Path) -> str | None:
    """What a path mirrors; None for a path that is only itself."""
    parts = Path(path).parts
    below = parts[parts.index(_MIRROR) + 1 :] if _MIRROR in parts else ()
    if len(below) < 2 or below[0] not in _ACCESS or any(part.startswith(WORKING) for part in below):
        return None
    return f"{below[0]}://{'/'.join(below[1:])}"


def shown(path: str | Path) -> str:
    """A path as people know it: the URI where it mirrors one."""
    return uri(path) or str(path)


def for_ray(path: Path) -> str:
    """A path as Ray takes it for a place that all nodes share."""
    found = uri(path)
    if found is not None and found.startswith("az://"):
        return f"abfs://{_account()}@{found.removeprefix('az://')}"
    return found or str(path.resolve())


def check(path: Path) -> None:
    """Raises `ResourceError` if the storage that a path mirrors cannot be reached, or has no such bucket."""
    if (place := _place(path)) is None:
        return
    bucket = place[1].split("/")[0]
    with _told(path):
        found = _find(place[0], bucket)
    if found is None:
        raise ResourceError(
            f"{shown(path)}: there is no bucket {bucket}, or it may not be seen; create it, or set "
            f"{_ACCESS[_scheme(path)]} in the environment"
        )


def exists(path: Path) -> bool:
    """Whether there is such a file or folder."""
    if (place := _place(path)) is None:
        return path.exists()
    with _told(path):
        return _find(*place) is not None


def names(folder: Path) -> set[str]:
    """Names of what lies in a folder; none where there is no such folder."""
    if (place := _place(folder)) is None:
        return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    with _told(folder):
        return {info.base_name for info in _list(*place, recursive=False)}


def pull(path: Path, *, last: str = MARKER) -> Path:
    """Downloads a file or a folder, unless the local copy is the same. Removes the local copy of what no longer exists.

    Of a folder that `push` wrote, it downloads the files of the newest version; of any other folder, all files.

    Args:
        path: What to download. A path that mirrors nothing is left as it is.
        last: Name of the folder's marker.

    Returns:
        The path.

    Raises:
        ArtifactError: If a `push` was cut off.
        ResourceError: If the storage cannot be read.
    """
    if (place := _place(path)) is None:
        return path
    store, key = place
    with _told(path):
        if not path.exists() and _find(store, key) is None:  # nothing to do, and no lock to leave behind
            return path
    with _told(path), _alone(path):
        found = _find(store, key)
        if found is None:
            _forget(path)
        elif not found.is_file:
            _pull_folder(store, key, path, last)
        elif not _same(found, path):
            _download(store, found, path)
    return path


def _pull_folder(store: FileSystem, key: str, path: Path, last: str) -> None:
    contents = _read(store, f"{key}/{CONTENTS}")
    if contents is not None:
        if _find(store, f"{key}/{last}") is None:
            raise ArtifactError(f"{shown(path)} is not finished: whoever was writing it has to do so again")
        with suppress(OSError):
            if (path / CONTENTS).read_bytes() == contents:
                return
        (path / CONTENTS).unlink(missing_ok=True)
    there = _files(store, key)
    wanted = there if contents is None else dict.fromkeys(json.loads(contents)["files"])
    if lacking := sorted(wanted.keys() - there.keys()):
        raise ArtifactError(f"{shown(path)} is damaged: {lacking[0]} is missing; delete it to have it made again")
    # objects have their times to the second, so of another version every file comes
    new = [name for name in wanted if contents is not None or not _same(there[name], path / name)]
    _transfer(lambda name: _download(store, there[name], path / name), new)
    for name in _others(_local_files(path), wanted):
        (path / name).unlink(missing_ok=True)
    if contents is not None:
        (path / CONTENTS).write_bytes(contents)


def push(source: Path, target: Path | None = None, *, last: str = MARKER) -> None:
    """Uploads a file or a folder to what its path mirrors.

    A folder with a marker is replaced as a whole: its old marker is removed first, its new one is written last. Folders
    inside it that belong to other stages stay. Of a folder without a marker, only new files are uploaded.

    Args:
        source: What to upload.
        target: The path whose mirror it goes to. Default: `source`.
        last: Name of the folder's marker.

    Raises:
        ResourceError: If the storage cannot be written.
    """
    target = target or source
    if (place := _place(target)) is None:
        return
    store, key = place
    with _told(target):
        if source.is_file():
            _upload(store, source, key)
        elif (source / last).exists():
            _push_finished(store, key, source, last)
        else:
            _push_files(store, key, source, _local_files(source))


def _push_finished(store: FileSystem, key: str, source: Path, last: str) -> None:
    if _find(store, f"{key}/{last}") is not None:
        store.delete_file(f"{key}/{last}")
    (source / CONTENTS).unlink(missing_ok=True)
    files = _local_files(source)
    contents = {"id": uuid.uuid4().hex, "files": sorted(files)}
    (source / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    _upload(store, source / CONTENTS, f"{key}/{CONTENTS}")
    there = _push_files(store, key, source, files - {last})
    _upload(store, source / last, f"{key}/{last}")
    for name in _others(there, files | {CONTENTS}):
        store.delete_file(f"{key}/{name}")


def _push_files(store: FileSystem, key: str, source: Path, files: set[str]) -> set[str]:
    """Uploads the files that are not there already. Returns the names of those that were there before."""
    there = _files(store, key)
    new = [name for name in files if name not in there or not _same(there[name], source / name)]
    _transfer(lambda name: _upload(store, source / name, f"{key}/{name}"), new)
    return set(there)


def remove(path: Path) -> None:
    """Deletes a file or a folder, local and in object storage; the marker of a folder first."""
    if (place := _place(path)) is not None:
        store, key = place
        with _told(path):
            found = _find(store, key)
            if found is not None and found.is_file:
                store.delete_file(key)
            elif found is not None:
                if _find(store, f"{key}/{MARKER}") is not None:
                    store.delete_file(f"{key}/{MARKER}")
                with suppress(FileNotFoundError):  # of the folder itself, which not every kind of storage has
                    store.delete_dir(key)
    _forget(path)


def _forget(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _download(store: FileSystem, found: FileInfo, path: Path) -> None:
    """Puts a file in place whole, with the time of its object, by which a later call knows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_TEMPORARY}")
    try:
        _copy(store, found.path, _here(), str(temporary))
        _set_time(temporary, found)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _upload(store: FileSystem, file: Path, key: str) -> None:
    _copy(_here(), str(file), store, key)
    _set_time(file, store.get_file_info(key))


def _copy(source: FileSystem, origin: str, target: FileSystem, destination: str) -> None:
    from pyarrow.fs import copy_files

    copy_files(origin, destination, source_filesystem=source, destination_filesystem=target, chunk_size=8 * 2**20)


def _here() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


def _set_time(file: Path, found: FileInfo) -> None:
    os.utime(file, ns=(found.mtime_ns, found.mtime_ns))


def _same(found: FileInfo, file: Path) -> bool:
    try:
        stats = file.stat()
    except FileNotFoundError:
        return False
    return (stats.st_size, stats.st_mtime_ns) == (found.size, found.mtime_ns)


def _transfer(each: Any, names: Iterable[str]) -> None:
    with ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="transfer") as pool:
        for _ in pool.map(each, names):
            pass


def _find(store: FileSystem, key: str) -> FileInfo | None:
    found: FileInfo = store.get_file_info(key)
    return found if found.type else None


def _read(store: FileSystem, key: str) -> bytes | None:
    if _find(store, key) is None:
        return None
    with store.open_input_stream(key) as stream:
        return bytes(stream.read())


def _list(store: FileSystem, key: str, *, recursive: bool) -> list[FileInfo]:
    from pyarrow.fs import FileSelector

    found: list[FileInfo] = store.get_file_info(FileSelector(key, allow_not_found=True, recursive=recursive))
    return found


def _files(store: FileSystem, key: str) -> dict[str, FileInfo]:
    """Files below a key, by their names from there on."""
    return {info.path[len(key) + 1 :]: info for info in _list(store, key, recursive=True) if info.is_file}


def _local_files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(_TEMPORARY)
    }


def _others(there: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """What an earlier version of a folder left: files beside those that are wanted, and in folders that hold such."""
    wanted = set(wanted)
    tops = {name.split("/")[0] for name in wanted}
    return [name for name in there if name not in wanted and ("/" not in name or name.split("/")[0] in tops)]


def _scheme(path: Path) -> str:
    return str(uri(path)).split("://")[0]


def _place(path: Path) -> tuple[FileSystem, str] | None:
    """The file system that a path mirrors, and the key there."""
    if (found := uri(path)) is None:
        return None
    scheme, key = found.split("://", 1)
    with _told(path):
        return _filesystem(scheme, key.split("/")[0]), key


@lru_cache
def _filesystem(scheme: str, bucket: str) -> FileSystem:
    """Made once a process: for S3 it asks where the bucket is."""
    from pyarrow import fs

    if scheme == "az":
        return fs.AzureFileSystem(account_name=_account(), account_key=env.AZURE_KEY.get())
    # without the option a small object takes three requests
    found: FileSystem
    found, _ = fs.FileSystem.from_uri(f"{scheme}://{bucket}" + ("?allow_delayed_open=true" if scheme == "s3" else ""))
    return found


def _account() -> str:
    if (account := env.AZURE_ACCOUNT.get()) is None:
        raise ResourceError(f"az:// needs {env.AZURE_ACCOUNT.name} in the environment")
    return account


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What goes wrong with the storage as an error of ours; a full disk here is another matter."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split()).rstrip(".")
        raise ResourceError(
            f"{shown(path)} cannot be used: {reason}. Credentials and endpoint come from the environment of every node "
            f"({_ACCESS[_scheme(path)]})"
        ) from error


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps two processes of a machine from bringing the same thing at the same time."""
    locks = _root() / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with locked(locks / hashlib.sha256(str(path).encode()).hexdigest()[:32]):
        yield
