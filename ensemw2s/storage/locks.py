"""Locks between processes: a file comes in, and whoever holds its lock keeps others out until it ends, however it ends.

Some file systems (of networks, of containers) have no locks. There the work goes on without, and a line says so.
"""

from __future__ import annotations

import errno
import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Numbers of the errors that a file system without locks gives."""

_said: set[Path] = set()
"""Folders of which a line has been said."""


@contextmanager
def locked(file: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock of a file, which is made if it is not there.

    Args:
        file: The file. Its folder is there.
        wait: Wait for whoever has it.

    Raises:
        BlockingIOError: If somebody has it and `wait` is not set.
    """
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            _say_once(file.parent)
        yield


def _say_once(folder: Path) -> None:
    if folder not in _said:
        _said.add(folder)
        print(
            f"warning: the file system of {folder} has no locks: start no second command that writes there meanwhile",
            file=sys.stderr,
        )
