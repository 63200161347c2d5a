"""What a Ray that is started on this machine keeps to itself: its folder, its token, and a session of processes.

So it has nothing to do with another Ray here, alive or dead, whoever it belongs to, and leaves nothing in the home
folder. Signals to the process group of a command reach the command alone, which then ends its Ray in order.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemw2s import env
from ensemw2s.errors import ConfigError

LONGEST = 40
"""Characters of the folder's path, at most: sockets lie in it, whose paths have 107."""


def temporary_folder() -> str | None:
    """Folder for the logs and sockets of a Ray that is started here; None: Ray's choice, which RAY_TMPDIR decides.

    Raises:
        ConfigError: If it cannot be written.
    """
    chosen = env.RAY_TMPDIR.get()
    if chosen is not None:
        folder = Path(chosen) / "ray"
    else:
        folder = Path(tempfile.gettempdir()) / f"ensemw2s-ray-{os.getuid()}"
        if len(str(folder)) > LONGEST:
            folder = Path("/tmp") / folder.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        allowed = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        allowed = False
    if not allowed:
        raise ConfigError(
            f"the folder for Ray's temporary files, {folder}, cannot be written: set {env.RAY_TMPDIR.name} to another"
        )
    return None if chosen is not None else str(folder)


@contextmanager
def own_token() -> Iterator[None]:
    """Gives a Ray that is started in this block a token of its own, which only this process and its children know.

    Ray would write one into the home folder, which may be missing or full, and which other clusters would then ask for.
    Nothing changes where the environment says what Ray shall do.
    """
    given = any(variable.get() for variable in (env.RAY_AUTH_TOKEN, env.RAY_AUTH_TOKEN_PATH))
    if given or (env.RAY_AUTH_MODE.get() or "token").lower() != "token":
        yield
        return
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    def reload() -> None:
        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")

    try:
        with env.kept(env.RAY_AUTH_MODE, env.RAY_AUTH_TOKEN):
            env.RAY_AUTH_TOKEN.set_default(secrets.token_hex(32))
            reload()
            yield
    finally:
        reload()


@contextmanager
def own_session() -> Iterator[None]:
    """Lets the processes of a Ray that is started in this block lead sessions of their own, with their usual logs."""
    from ray._private import services

    usual, level = services.ConsolePopen, env.RAY_LOG_LEVEL.get()

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        options["env"] = _with_usual_logs(options.get("env"), level)
        return usual(*arguments, start_new_session=True, **options)

    services.ConsolePopen = start  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        services.ConsolePopen = usual  # type: ignore[misc]


def _with_usual_logs(given: Mapping[str, str] | None, level: str | None) -> dict[str, str]:
    """An environment with the log level that the user chose, and not the one of `quiet_core`."""
    values = env.copy() if given is None else dict(given)
    values.pop(env.RAY_LOG_LEVEL.name, None)
    return values if level is None else values | {env.RAY_LOG_LEVEL.name: level}


@contextmanager
def quiet_core() -> Iterator[None]:
    """Lets Ray's core in this process, if it starts in this block, log fatal errors alone.

    Else its note that an actor could not be restarted without its arguments stands between the lines of every run and
    looks like a crash. The level is the only way to choose what this core writes to standard error.
    Ray's other processes log as usual if they are started in `own_session`. The core's line that says which level was
    chosen is left out.
    """
    with env.kept(env.RAY_LOG_LEVEL), _without(f"from environment variable {env.RAY_LOG_LEVEL.name}".encode()):
        env.RAY_LOG_LEVEL.set_default()
        yield


@contextmanager
def _without(words: bytes) -> Iterator[None]:
    """Holds back what is written to standard error, from C++ too; at the end all but lines with these words come."""
    with tempfile.TemporaryFile() as held:
        usual = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(usual, 2)
            os.close(usual)
            held.seek(0)
            for line in held:
                if words not in line:
                    os.write(2, line)
