"""Whole runs of the command line for tests: a small study, processes that are watched, and what a run left to compare.

Tests that start Ray do it in processes of their own, each with a Ray folder of its own, and no process may outlive its
test: orphans come back to this process (it is their subreaper), so that none is missed.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import fcntl
import gc
import hashlib
import itertools
import json
import logging
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
import yaml

from ensemw2s.faults import VARIABLE, reached, read_plan

hypothesis.settings.register_profile("ensemw2s", deadline=None)  # a busy machine is no reason to fail
hypothesis.settings.load_profile("ensemw2s")

OLDER_RUN = Path(__file__).parent / "older_run"
"""Files of a run that version 0.1 made."""

LIMIT = 480.0
"""Seconds that anything may take before a test gives up; on two quiet cores nothing takes a sixth of it."""

GONE = 60.0
"""Seconds in which the processes of a run that ended, or was killed, must be gone."""

AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Idle helpers of Ray that look for their killed node for a minute before they go; they hold nothing of a run."""

AGENTS_GONE = 100.0
"""Seconds in which these must be gone."""

AS_IMPORTANT = {"RAY_worker_niceness": "0"}
"""Ray's workers get as much of the processors as others do: at Ray's own 15, what else runs here would starve them."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of several processes wait for each other by spinning

Tree = dict[str, Any]


# The smallest study that still has everything: two weak bases, two rounds, three chunks of pseudo-labels.
STUDY: Tree = {
    "name": "small",
    "seed": 1,
    "data": {
        "source": {
            "kind": "files",
            "columns": {"prompt": "question", "answer": "reply", "difficulty": "level"},
        },
        "split": {"mode": "difficulty", "difficulty_from": "column", "easy_max": 3},
        "sizes": {"easy_train": 120, "easy_validation": 40, "id_test": 40, "hard_unlabelled": 60, "ood_test": 40},
    },
    "models": {
        "weak": [
            {"base": "tiny-weak", "pretraining_seed": 0},
            {"base": "tiny-weak", "pretraining_seed": 1},
        ],
        "strong": {"base": "tiny-strong"},
        "pretraining": {
            "vocabulary": 64,
            "corpus": {"weak_documents": 600, "strong_documents": 600},
            "weak": {"epochs": 3, "learning_rate": 0.005, "batch_size": 32},
            "strong": {"epochs": 3, "learning_rate": 0.005, "batch_size": 32},
        },
    },
    # a second lane, or decoding actor, takes seconds of both cores to start; `undisturbed` has two of each
    "training": {"cpus_per_worker": 0.5, "lanes": 1},
    "expert": {"epochs": 8, "learning_rate": 0.005, "batch_size": 16},
    "boosting": {"rounds": 2},
    # one chunk at a time, so that batches do not depend on timing and labels can be compared to the byte
    "labeling": {
        "cpus_per_actor": 0.5,
        "max_new_tokens": 12,
        "batch_size": 32,
        "chunk_size": 25,
        "chunks_per_actor": 1,
        "max_actors": 1,
    },
    "student": {"epochs": 4, "learning_rate": 0.005, "batch_size": 32},
    "evaluation": {"bootstrap_samples": 200, "examples": 3},
    "cluster": {"cpus": 2, "object_store_mb": 100},
}


def changed(tree: Tree, values: Tree) -> Tree:
    """A copy of a tree with other values under dotted keys; None takes a key away."""
    tree = copy.deepcopy(tree)
    for key, value in values.items():
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return tree


def questions() -> list[Tree]:
    """Rows of a jsonl file of one's own: three digits to sort (level 3), or four (level 4)."""
    import reasoning_gym

    rows, rng = {}, random.Random(0)
    for level, count in ((3, 260), (4, 160)):
        setting = {"min_numbers": level, "max_numbers": level, "min_value": 0, "max_value": 9}
        data = reasoning_gym.create_dataset(
            "number_sorting", seed=rng.randrange(2**31), size=2 * count, min_decimals=0, max_decimals=0, **setting
        )
        for row in data:
            facts = row["metadata"]
            numbers, answer = (
                " ".join(f"{float(n):g}" for n in facts[key]) for key in ("original_numbers", "sorted_numbers")
            )
            question = f"{'up' if facts['direction'] == 'ascending' else 'down'} {numbers} ="
            rows[question] = {"question": question, "reply": answer, "level": level}
    return list(rows.values())


def write_jsonl(path: Path, rows: list[Tree]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Finished:
    """A command that ended."""

    code: int
    output: str
    seconds: float

    @property
    def text(self) -> str:
        """The output with single spaces, as terminals wrap lines where they like."""
        return " ".join(self.output.split())


@dataclass
class Running:
    """A command that runs in a process group of its own, its output in a file.

    Attributes:
        process: The command.
        log: Its output.
        known: Processes that were there before.
        began: When it was started.
    """

    process: subprocess.Popen[bytes]
    log: Path
    known: set[int]
    began: float = field(default_factory=time.monotonic)

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, what: str, happened: Callable[[], Any], limit: float = LIMIT) -> Any:
        """Looks many times a second whether something happened that stays so; gives back what `happened` did."""
        while not (found := happened()):
            if self.process.poll() is not None:
                found = happened()
                assert found, f"ended before: {what}\n{self.tail()}"
                return found
            assert time.monotonic() - self.began < limit, f"not within {limit:.0f} s: {what}\n{self.tail()}"
            time.sleep(0.01)
        return found

    def wait_until_reached(self, faults: Faults, point: str, count: int = 1) -> int:
        """Waits until a point was reached this often, and gives back the process that did. It may be over by then."""
        return int(self.wait_for(f"{point}@{count}", lambda: faults.process(point, count)))

    def wait_for_text(self, text: str) -> None:
        self.wait_for(f"output of {text!r}", lambda: text in self.output)

    def wait(self, limit: float = LIMIT) -> Finished:
        """Waits for the end."""
        try:
            self.process.wait(max(1.0, limit - (time.monotonic() - self.began)))
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {limit:.0f} s\n{self.tail()}")
        return Finished(self.process.returncode, self.output, time.monotonic() - self.began)

    def descendants(self, name: str) -> list[psutil.Process]:
        """Its living processes with this in their title."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def interrupt(self, meanwhile: Callable[[], object] = lambda: None) -> Finished:
        """Ctrl-C; no process may be left. `meanwhile` happens between the signal and the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        meanwhile()
        finished = self.wait()
        assert time.monotonic() - began < 60, self.tail()
        assert (left := survivors(self.known, but=AGENTS)) == [], f"outlived their driver: {left}\n{self.tail()}"
        return finished

    def killed(self) -> None:
        """Waits for the driver's death by a fault; what it started must go by itself."""
        assert self.wait().code == -signal.SIGKILL, self.tail()
        assert (left := survivors(self.known, but=AGENTS)) == [], f"outlived their driver: {left}\n{self.tail()}"
        survivors(self.known, 0.0)  # these would go within a minute

    def kill(self) -> None:
        """SIGKILL for the driver alone, as the kernel or a cloud would do it; what it started must go by itself."""
        self.process.kill()
        self.killed()

    def tail(self, lines: int = 60) -> str:
        return "\n".join(["the end of its output:", *self.output.splitlines()[-lines:]])


class Faults:
    """Plans what happens to processes at which point, and sees that it has happened (`ensemw2s.faults`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes need that the plans are for."""
        return {VARIABLE: str(self.folder)}

    def plan(self, text: str) -> None:
        """Takes the place of the plan before; reaches are counted from one. What still waits at a point ends."""
        read_plan(text)
        (self.folder / "plan").unlink(missing_ok=True)
        shutil.rmtree(self.folder / "reached", ignore_errors=True)
        (self.folder / "new").write_text(text, encoding="utf-8")
        (self.folder / "new").rename(self.folder / "plan")

    def count(self, point: str) -> int:
        """How often a point of the plan was reached."""
        return sum(1 for _ in (self.folder / "reached").glob(reached(self.folder, point, 0).name[:-1] + "*"))

    def process(self, point: str, count: int) -> int:
        """The number of the process that reached a point the n-th time; 0 if none has."""
        file = reached(self.folder, point, count)
        return int(file.read_text()) if file.exists() else 0

    def gate(self, name: str) -> Path:
        """A file to wait for; `touch` it to let those go on who do."""
        return self.folder / name


class Workplace:
    """A folder in which commands run, and all that they leave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = folder / "runs"
        self.ray = Path(tempfile.mkdtemp(prefix="ew-", dir="/tmp"))  # paths of sockets must be short
        self.faults = Faults(folder / "faults")
        self._started: list[Running] = []

    @property
    def run_folder(self) -> Path:
        return self.storage / "small"

    def study(self, source: Path, **values: Any) -> Path:
        """Writes a config: `STUDY` on a jsonl file, with other values under dotted keys."""
        own = {"storage": str(self.storage), "data.source.paths": [str(source)], **values}
        return self.config(changed(STUDY, own))

    def config(self, tree: Tree) -> Path:
        path = self.folder / f"config-{len(list(self.folder.glob('config-*')))}.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return path

    def start(self, *arguments: str | Path) -> Running:
        """Starts `ensemw2s` with these arguments."""
        script = Path(sys.executable).with_name("ensemw2s")
        command = [str(script)] if script.exists() else [sys.executable, "-m", "ensemw2s"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))}
        environment |= {
            "RAY_AUTH_MODE": "disabled",
            **AS_IMPORTANT,
            "RAY_TMPDIR": str(self.ray),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "160",
            **self.faults.environment,
        }
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background, and inherited
            signal.signal(signal.SIGINT, signal.default_int_handler)
        log = self.folder / f"output-{len(self._started)}.txt"
        known = known_processes()
        with log.open("wb") as handle:
            process = subprocess.Popen(
                [*command, *map(str, arguments)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=handle,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.append(Running(process, log, known))
        return self._started[-1]

    def run(self, *arguments: str | Path, limit: float = LIMIT) -> Finished:
        """Runs `ensemw2s` to its end."""
        return self.start(*arguments).wait(limit)

    def done(self, *arguments: str | Path, limit: float = LIMIT) -> Finished:
        """Runs `ensemw2s` to its end, which must be a good one."""
        running = self.start(*arguments)
        finished = running.wait(limit)
        assert finished.code == 0, running.tail()
        return finished

    def take_storage(self, other: Workplace, *, only_cache: bool = False) -> None:
        """Copies another workplace's runs, or its pre-trained bases alone."""
        part = "cache" if only_cache else ""
        shutil.copytree(other.storage / part, self.storage / part)

    def files(self, *patterns: str, without: tuple[str, ...] = ()) -> dict[str, str]:
        """Relative path → SHA-256 of files of the run's folder."""
        return {
            path.relative_to(self.run_folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for pattern in patterns
            for path in sorted(self.run_folder.glob(pattern))
            if path.is_file() and path.name not in without
        }

    def json(self, name: str) -> Any:
        """A JSON file of the run's folder."""
        return json.loads((self.run_folder / name).read_text(encoding="utf-8"))

    def sessions(self) -> list[str]:
        """Names of the Rays that were started here."""
        return sorted(path.name for path in self.ray.glob("ray/session_2*"))

    def end(self) -> None:
        """Ends what a failed test left, by process group."""
        for running in self._started:
            if running.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.process.pid, signal.SIGKILL)
                running.process.wait()


def survivors(known: set[int], limit: float = GONE, *, but: tuple[str, ...] = ()) -> list[str]:
    """Waits until this process has no other descendants than the known; those that stay are killed and named."""
    until = time.monotonic() + limit
    while left := [process for process, title in _descendants(known) if not title.startswith(but or "\0")]:
        if time.monotonic() > until:
            names = []
            for process in left:
                with contextlib.suppress(psutil.Error):
                    names.append(f"{process.pid} {' '.join(process.cmdline())[:120].rstrip()}")
                    process.kill()
            psutil.wait_procs(left, 5)
            _descendants(known)
            return names
        time.sleep(0.05)
    return []


def _descendants(known: set[int]) -> list[tuple[psutil.Process, str]]:
    """Living descendants and their command lines; dead orphans are reaped on the way."""
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid in known:
                continue
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append((process, " ".join(process.cmdline())))
            elif process.ppid() == os.getpid():
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
    return living


def become_subreaper() -> None:
    """Orphans of this process's children become its own children (on Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def known_processes() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@contextlib.contextmanager
def workplace_in(folder: Path) -> Iterator[Workplace]:
    """A workplace that leaves no process behind."""
    become_subreaper()
    known = known_processes()
    place = Workplace(folder)
    try:
        yield place
    finally:
        place.end()
        left = survivors(known, but=AGENTS) + survivors(known, AGENTS_GONE)
        shutil.rmtree(place.ray, ignore_errors=True)
    assert left == [], f"outlived the test: {left}"


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    """Plans for this process, and for the Ray that a module starts in it after this."""
    made = Faults(tmp_path_factory.mktemp("faults"))
    with pytest.MonkeyPatch.context() as patch:
        for key, value in made.environment.items():
            patch.setenv(key, value)
        yield made


@pytest.fixture(scope="module")
def ray_environment() -> Iterator[None]:
    """For modules that start a Ray in this process: settings of their own, and nothing left when it was stopped."""
    become_subreaper()
    known = known_processes()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ew-", dir="/tmp") as folder:
        for key in [key for key in os.environ if key.startswith("RAY_")]:
            patch.delenv(key)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        for key, value in AS_IMPORTANT.items():
            patch.setenv(key, value)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
        assert (left := survivors(known)) == [], f"outlived their Ray: {left}"


@pytest.fixture(scope="module")
def quiet_process() -> Iterator[None]:
    """Takes back what training sets for its process: environment, process group, threads."""
    import torch

    from ensemw2s.training import group

    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ["DS_ACCELERATOR"] = "cpu"
    yield
    group.leave()
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(before)


class Nodes:
    """More nodes of the cluster that this process is connected to, each a process that can be killed."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._nodes: list[subprocess.Popen[bytes]] = []

    def add(self, cpus: int) -> subprocess.Popen[bytes]:
        """Starts a node and waits until the cluster counts it."""
        import ray

        before = _living_nodes()  # a node that was killed just before may be among them for a while
        address = ray.get_runtime_context().gcs_address
        options = ["--address", address, f"--num-cpus={cpus}", "--object-store-memory=80000000", "--block"]
        command = [str(Path(sys.executable).with_name("ray")), "start", *options, "--disable-usage-stats"]
        with self._log.open("ab") as log:
            self._nodes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
        until = time.monotonic() + GONE
        while not _living_nodes() - before:
            assert time.monotonic() < until, self._log.read_text()
            time.sleep(0.05)
        return self._nodes[-1]

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kills a node and all of its workers at once, as a machine does that is switched off."""
        if node.poll() is None:
            processes = psutil.Process(node.pid).children(recursive=True)
            for process in [psutil.Process(node.pid), *processes]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            node.wait()

    def end(self) -> None:
        """Kills those that still live."""
        for node in self._nodes:
            self.kill(node)


def _living_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """To add nodes to the Ray of this process."""
    found = Nodes(tmp_path / "nodes.log")
    yield found
    found.end()


@pytest.fixture
def workplace(tmp_path: Path) -> Iterator[Workplace]:
    """A folder of this test's own in which commands run."""
    with workplace_in(tmp_path) as place:
        yield place


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port of loopback on which nobody listens."""

    def find() -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            return int(free.getsockname()[1])

    return find


@pytest.fixture(scope="module")
def module_workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A folder for commands that several tests of a module look at."""
    with workplace_in(tmp_path_factory.mktemp("place")) as place:
        yield place


@dataclass(frozen=True)
class Bucket:
    """A bucket of an S3 server on loopback.

    Attributes:
        name: Its name.
        environment: What a process needs to get at it.
        client: Of boto3, to look at it by other means than the package's own.
    """

    name: str
    environment: dict[str, str]
    client: Any

    def objects(self) -> dict[str, bytes]:
        """Keys and contents; what stands for empty folders is left out."""
        listed = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name).search("Contents[].Key")
        keys = [key for key in listed if key is not None and not key.endswith("/")]
        return {key: self.client.get_object(Bucket=self.name, Key=key)["Body"].read() for key in keys}


@pytest.fixture(scope="session")
def make_bucket() -> Iterator[Callable[[], Bucket]]:
    """Makes empty buckets on an S3 server of this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "anybody",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="anybody",
        aws_secret_access_key="anything",
        region_name="us-east-1",
    )
    numbers = itertools.count()

    def make() -> Bucket:
        name = f"bucket-{os.getpid()}-{next(numbers)}"  # what a process knows of a bucket it knows by its name
        client.create_bucket(Bucket=name)
        return Bucket(name, environment, client)

    yield make
    server.stop()


@pytest.fixture
def bucket(make_bucket: Callable[[], Bucket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket that this process can get at, with a scratch folder of this test's own."""
    made = make_bucket()
    for key, value in made.environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("ENSEMW2S_SCRATCH", str(tmp_path / "scratch"))
    return made


HEAVY = {"processes", "ray", "e2e", "faults", "cluster", "browser"}
"""Marks of tests that start processes of their own."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first, then those with slow tests, so that quick ones fill the end. Where several
    processes test, one makes the `undisturbed` run for all; while it does, the others have files that can do without.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)

    def heavy(tests: list[pytest.Item]) -> bool:
        return any(HEAVY & {mark.name for mark in test.iter_markers()} for test in tests)

    def waits(tests: list[pytest.Item]) -> bool:
        return any("undisturbed" in getattr(test, "fixturenames", ()) for test in tests)

    def slow(tests: list[pytest.Item]) -> int:
        return sum(any(mark.name == "slow" for mark in test.iter_markers()) for test in tests)

    quick = sorted((tests for tests in files.values() if not heavy(tests)), key=slow, reverse=True)
    waiting = [tests for tests in files.values() if heavy(tests) and waits(tests)]
    others = [tests for tests in files.values() if heavy(tests) and not waits(tests)]
    items[:] = [test for tests in (*waiting[:1], *others, *waiting[1:], *quick) for test in tests]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A file is not imported where its `pytestmark` has a mark that `-m` says no to: imports take seconds."""
    unwanted = re.fullmatch(r"not \w+( and not \w+)*", config.option.markexpr)
    if unwanted is None or collection_path.suffix != ".py":
        return None
    [*marks] = re.findall(r"^pytestmark = (.*)$", collection_path.read_text(encoding="utf-8"), re.MULTILINE)
    found = re.findall(r"pytest\.mark\.(\w+)", " ".join(marks))
    return True if set(found) & set(re.findall(r"not (\w+)", unwanted[0])) else None


def pytest_collection_finish(session: pytest.Session) -> None:
    """A full garbage collection, of which every training makes one, passes over what has been imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that test at the same time."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextlib.contextmanager
def first_in(folder: Path) -> Iterator[bool]:
    """Whether this process is the first that comes to a folder; others wait until it is done with it."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        finished = folder / "finished"
        if first := not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
        yield first
        finished.touch()


@pytest.fixture(scope="session")
def own_jsonl(shared: Path) -> Path:
    """A jsonl file of one's own with two levels of difficulty."""
    file = shared / "data" / "own.jsonl"  # a run knows its input by its path, too
    with first_in(file.parent) as first:
        return write_jsonl(file, questions()) if first else file


@pytest.fixture(scope="session")
def undisturbed(shared: Path, own_jsonl: Path) -> Iterator[Workplace]:
    """A finished run of all systems that nobody disturbed. Read it; copy its storage to change anything."""
    folder = shared / "undisturbed"
    with first_in(folder) as first:
        if first:
            with workplace_in(folder) as place:
                place.done("run", place.study(own_jsonl, **{"training.lanes": 2, "labeling.max_actors": 2}))
    yield (place := Workplace(folder))
    shutil.rmtree(place.ray, ignore_errors=True)


@pytest.fixture(scope="session")
def older_training() -> Any:
    """What a run of version 0.1 says of the training of an expert."""
    from ensemw2s.training.records import TrainRecord

    return TrainRecord.read(OLDER_RUN / "rounds/1/experts/0")
