"""Ray's worker processes on this machine as forks of one process that has imported what most of them need.

A worker process of Ray starts Python twice and imports torch and transformers: seconds of a core each time, and a run
has a dozen. With `forked_workers` one server imports these once. Ray's workers are forks of it, and share its memory.

The server imports nothing of Ray, whose random ids would be the same in every fork, and nothing that starts threads.
Where it is missing, or a worker needs something else, Ray starts the process in its own way (`fork_request`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ensemw2s import env
from ensemw2s.cluster.resources import has_gpu

PRELOADED = (
    "numpy",
    "jsonschema",
    "requests",
    "aiohttp",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pandas",
    "torch",
    "transformers.models.llama.modeling_llama",
    "peft",
    "deepspeed",
)
"""Modules that take long, start no threads, use no GPU and do not import Ray."""

ONE_THREAD = (env.OMP_THREADS, env.OPENBLAS_THREADS, env.MKL_THREADS, env.ARROW_THREADS)
"""Settings under which importing them starts no thread."""


@dataclass(frozen=True)
class ForkRequest:
    """A worker process that Ray asks for.

    Attributes:
        text: What `fork_request.request` says of it.
        streams: File descriptors of its input, output and error output.
    """

    text: bytes
    streams: tuple[int, ...]


@contextmanager
def forked_workers() -> Iterator[None]:
    """Lets a Ray that is started in this block fork its worker processes; the server is there until the block ends.

    Nothing changes where there is a GPU, which forks cannot share, and outside Linux.
    """
    if sys.platform != "linux" or has_gpu():
        yield
        return
    folder = Path(tempfile.mkdtemp(prefix="ensemw2s-forks-"))
    shutil.copy(Path(__file__).with_name("fork_request.py"), folder / "fork_request.py")
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(folder / "socket"))
        except OSError:  # the path is too long for a socket
            shutil.rmtree(folder)
            yield
            return
        listener.listen(64)
        # one thread: libraries start others when they are imported, and threads do not outlive a fork
        server = subprocess.Popen(
            [sys.executable, "-m", "ensemw2s.cluster.forks", str(listener.fileno())],
            env=env.copy(*ONE_THREAD) | {env.DS_ACCELERATOR.name: "cpu"},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # as all that belongs to this Ray (`own`)
        )
    try:
        with _set_up_by(folder / "fork_request.py"):
            yield
    finally:
        server.kill()
        server.communicate()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _set_up_by(script: Path) -> Iterator[None]:
    """Lets a Ray that is started in this block use another script in place of its `setup_worker.py`.

    Ray leaves its own out where a worker has no runtime environment. It knows it by its name, so this one has another.
    """
    from ray._private import ray_constants

    usual = ray_constants.SETUP_WORKER_FILENAME  # Ray joins it to a folder: an absolute path replaces that
    ray_constants.SETUP_WORKER_FILENAME = str(script)
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = usual


def serve(listener: socket.socket) -> ForkRequest | None:
    """Forks a process for each request, until the process that started this one is gone.

    Args:
        listener: Where requests come in.

    Returns:
        In a fork: what it is to become. In the server: None, at the end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the driver
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that end are not waited for
    gc.disable()
    for name in PRELOADED:
        if not _has_driver():
            return None
        with suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy all that it looks at
    if len(os.listdir("/proc/self/task")) > 1:
        return None  # threads do not outlive a fork
    while True:
        select.select([listener, sys.stdin], [], [])
        if not _has_driver():
            return None
        connection, _ = listener.accept()
        with connection:
            request = _receive(connection)
            if request is None:
                continue
            if os.fork() == 0:
                listener.close()
                return request
            for stream in request.streams:
                os.close(stream)
            with suppress(OSError):
                connection.sendall(b".")


def _has_driver() -> bool:
    """Whether the other end of this process's input is open; nothing ever comes from there."""
    return not select.select([sys.stdin], [], [], 0)[0]


def _receive(connection: socket.socket) -> ForkRequest | None:
    try:
        _, streams, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            text = file.read()
    except OSError:
        return None
    return ForkRequest(text, tuple(streams)) if text else None


def become(request: ForkRequest) -> None:
    """Makes this fork the worker process that Ray asked for, and runs it."""
    wanted = json.loads(request.text)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, wanted["blocked"])
    if wanted["leads"]:
        os.setpgid(0, 0)
    for number, stream in enumerate(request.streams):
        os.dup2(stream, number)
        os.close(stream)
    env.replace(wanted["environment"])
    os.chdir(wanted["folder"])
    # the global generators, which forks would have in common; Python's own knows of forks
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()
    sys.argv = wanted["arguments"]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    gc.enable()
    runpy.run_path(sys.argv[0], run_name="__main__")


def main(descriptor: int) -> None:
    """Serves on an open socket."""
    with socket.socket(fileno=descriptor) as listener:
        request = serve(listener)
    if request is not None:
        become(request)


if __name__ == "__main__":
    main(int(sys.argv[1]))
