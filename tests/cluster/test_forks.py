"""A server whose forks become what is asked for; here a script in place of Ray's worker."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemw2s import env
from ensemw2s.cluster import fork_request, forks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")

SERVER = """
import sys
from ensemw2s.cluster import forks
forks.PRELOADED = ("numpy", "there.is.none")
forks.main(int(sys.argv[1]))
"""

WORKER = """
import json, os, random, signal, sys
import numpy
facts = {
    "name": __name__,
    "arguments": sys.argv,
    "first": sys.path[0],
    "variable": os.environ.get("OWN"),
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "folder": os.getcwd(),
    "drawn": [random.random(), numpy.random.rand()],
    "parent": os.getppid(),
    "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
}
print(json.dumps(facts))
print(sys.stdin.read(), file=sys.stderr)
sys.exit(3)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the request beside the socket, and a script with the name of Ray's worker."""
    shutil.copy(fork_request.__file__, tmp_path)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers/default_worker.py").write_text(WORKER, encoding="utf-8")
    return tmp_path


@pytest.fixture
def server(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    monkeypatch.chdir(place)  # paths of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()
        number = listener.fileno()
        started = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(number)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            pass_fds=[number],
            stdin=subprocess.PIPE,
        )
    yield started
    started.kill()
    started.communicate()


def start(place: Path, text: str) -> tuple[dict[str, object], str]:
    """What a worker process wrote to both of its streams."""
    done = subprocess.run(
        [sys.executable, "fork_request.py", str(place / "workers/default_worker.py"), "--startup-token=3"],
        env=os.environ | {"OWN": "value", "OMP_NUM_THREADS": "7"},
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return json.loads(done.stdout), done.stderr


def test_a_fork_is_what_ray_asked_for(place, server):
    facts, errors = start(place, "said")
    script = str(place / "workers/default_worker.py")
    assert facts.pop("drawn")
    assert facts == {
        "name": "__main__",
        "arguments": [script, "--startup-token=3"],
        "first": str(place / "workers"),
        "variable": "value",
        "threads": "7",
        "folder": str(place),
        "parent": server.pid,
        "interrupt": True,
    }
    assert errors.strip() == "said"


def test_no_two_forks_draw_the_same(place, server):
    (one, _), (two, _) = start(place, ""), start(place, "")
    assert one["parent"] == two["parent"] == server.pid
    assert not set(one["drawn"]) & set(two["drawn"])


def test_where_the_server_is_gone_the_process_starts_on_its_own(place, server):
    server.stdin.close()
    assert server.wait(120) == 0
    facts, _ = start(place, "")
    assert facts["parent"] == os.getpid()
    assert facts["arguments"] == [str(place / "workers/default_worker.py"), "--startup-token=3"]


def test_a_block_leaves_ray_and_the_disk_as_they_were(monkeypatch, tmp_path):
    from ray._private import ray_constants

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(forks, "has_gpu", lambda: False)
    with forks.forked_workers():
        script = Path(ray_constants.SETUP_WORKER_FILENAME)
        assert script.is_absolute()
        assert script.name != "setup_worker.py", "Ray would leave it out where there is no runtime environment"
        assert script.read_text(encoding="utf-8") == Path(fork_request.__file__).read_text(encoding="utf-8")
    assert ray_constants.SETUP_WORKER_FILENAME == "setup_worker.py"
    assert list(tmp_path.iterdir()) == []


def test_where_there_is_a_gpu_nothing_is_forked(monkeypatch):
    from ray._private import ray_constants

    monkeypatch.setattr(forks, "has_gpu", lambda: True)
    with forks.forked_workers():
        assert ray_constants.SETUP_WORKER_FILENAME == "setup_worker.py"


@pytest.mark.slow
def test_what_is_imported_for_forks_starts_no_thread_and_leaves_ray_out():
    code = (
        "import importlib, os, sys\n"
        "from ensemw2s.cluster import forks\n"
        "for name in forks.PRELOADED: importlib.import_module(name)\n"
        "print(len(os.listdir('/proc/self/task')), 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env.copy(*forks.ONE_THREAD) | {"DS_ACCELERATOR": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split()[-2:] == ["1", "False"]
