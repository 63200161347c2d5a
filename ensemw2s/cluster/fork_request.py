"""Ray's setup of a worker process, where `forks` serves: asks for a fork in place of a start from nothing.

A copy of this file stands in for Ray's `setup_worker.py` and runs beside the server's socket. It imports no package, so
that it takes some milliseconds. What it cannot ask for, it starts as Ray does.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

_CONTEXT = "--serialized-runtime-env-context="
_LANGUAGE = "--language="
_BEFORE_START = ("LD_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "CUDA_", "MALLOC_")
"""Variables that are read when a process starts, or when torch is imported."""


def request(arguments: list[str]) -> bytes | None:
    """What the server has to know of a worker process.

    Args:
        arguments: Those that Ray gives `setup_worker.py`.

    Returns:
        A JSON object; none if a fork would not be what Ray asks for.
    """
    given = {flag: [a for a in arguments if a.startswith(flag)] for flag in (_CONTEXT, _LANGUAGE)}
    context = json.loads(given[_CONTEXT][0].removeprefix(_CONTEXT)) if given[_CONTEXT] else {}
    variables = context.get("env_vars") or {}
    plain = (
        given[_LANGUAGE] in ([], [_LANGUAGE + "PYTHON"])
        and arguments[0].endswith("default_worker.py")
        and not context.get("command_prefix")
        and not context.get("override_worker_entrypoint")
        and context.get("py_executable") in (None, sys.executable)
        and not any(name.startswith(_BEFORE_START) or "$" in value for name, value in variables.items())
    )
    if not plain:
        return None
    what = {
        "arguments": [a for a in arguments if not a.startswith((_CONTEXT, _LANGUAGE))],
        "environment": _environment() | variables,
        "folder": os.getcwd(),
        "leads": os.getpgid(0) == os.getpid(),
        "blocked": [int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    return json.dumps(what).encode()


def _environment() -> dict[str, str]:
    """The environment that Ray gave this process."""
    pairs = os.fsdecode(Path("/proc/self/environ").read_bytes()).split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def main(arguments: list[str]) -> None:
    """Leaves when the fork runs; else becomes Ray's own setup of the worker."""
    try:
        wanted = request(arguments)
        if wanted is not None:
            with socket.socket(socket.AF_UNIX) as server:
                server.connect(str(Path(__file__).with_name("socket")))
                socket.send_fds(server, [b"."], [0, 1, 2])
                server.sendall(wanted)
                server.shutdown(socket.SHUT_WR)
                if server.recv(1):
                    return
    except (OSError, ValueError):
        pass  # no server, or none that answers
    has_environment = any(one.startswith(_CONTEXT) for one in arguments)
    setup = [str(Path(arguments[0]).with_name("setup_worker.py"))] if has_environment else []
    os.execv(sys.executable, [sys.executable, *setup, *arguments])


if __name__ == "__main__":
    main(sys.argv[1:])
