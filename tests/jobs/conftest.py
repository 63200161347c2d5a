"""A Ray cluster as people have one: started with `ray start`, behind a token, and spoken to with `ray job submit`."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
import yaml

ROOT = Path(__file__).parents[2]
LIMIT = 300.0


class Head:
    """The head node; `address` is that of its dashboard, which takes jobs."""

    def __init__(self, place, free_port: Callable[[], int], options: list[str], autoscaling: Path | None) -> None:
        self.folder, port, dashboard = place.folder, free_port(), free_port()
        self.address, self.gcs = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTEST_"))}
        self.environment = kept | {
            "RAY_AUTH_MODE": "token",
            "RAY_worker_niceness": "0",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": str(place.ray),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_metrics_report_interval_ms": "1000",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "160",
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            **place.faults.environment,
        }
        ports = [
            f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}",
        ]  # fmt: skip
        options = ["--object-store-memory=150000000", *options]
        if autoscaling:
            options.append(f"--autoscaling-config={self._own_address_in(autoscaling)}")
        self.log = self.folder / "head.txt"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", *ports, *options],
                env=self.environment | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._wait_until_up()

    def _own_address_in(self, autoscaling: Path) -> Path:
        """A copy of the cluster's file in which `fake_multinode` reads where the head is; it takes port 6379 for it."""
        config = yaml.safe_load(autoscaling.read_text())
        config["provider"]["gcs_address"] = self.gcs
        own = self.folder / autoscaling.name
        own.write_text(yaml.safe_dump(config))
        return own

    def _wait_until_up(self) -> None:
        until = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < until, self.log.read_text()
            with contextlib.suppress(requests.RequestException):
                if self.ask("/api/jobs/").ok:
                    return
            time.sleep(0.2)

    def ask(self, path: str) -> requests.Response:
        """What the dashboard answers whoever has the token."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        return requests.get(f"{self.address}{path}", headers=token, timeout=5)

    def metrics(self, path: str) -> str:
        """Metrics of all nodes, found as Prometheus finds them: `path` is where the dashboard lists them."""
        targets = {target for group in self.ask(path).json() for target in group["targets"]}
        return "\n".join(requests.get(f"http://{target}/metrics", timeout=5).text for target in sorted(targets))

    def start(self, *entrypoint: str | Path, upload: bool = True, **environment: str) -> subprocess.Popen[str]:
        """Submits a job, with a copy of the repository or without, and follows its output until it ends."""
        options = ["--address", self.address, *(["--working-dir", str(ROOT)] if upload else [])]
        return subprocess.Popen(
            ["ray", "job", "submit", *options, "--", *map(str, entrypoint)],
            env=self.environment | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, cwd=self.folder,
        )  # fmt: skip

    def command(self, *words: str | Path) -> str:
        """Output of a command that speaks to the dashboard."""
        done = subprocess.run(
            [*map(str, words), "--address", self.address], env=self.environment, text=True, timeout=90,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=self.folder, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def wait_until_reached(self, faults, point: str, count: int, job: subprocess.Popen[str]) -> None:
        """Waits until a process of a job has reached a point this often."""
        until = time.monotonic() + LIMIT
        while not faults.process(point, count):
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < until, f"{point}@{count} was not reached"
            time.sleep(0.05)

    def submit(self, *entrypoint: str | Path, upload: bool = True) -> tuple[int, str]:
        """Exit code and output of a job."""
        process = self.start(*entrypoint, upload=upload)
        output, _ = process.communicate(timeout=LIMIT)
        return process.returncode, output

    def done(self, *entrypoint: str | Path, upload: bool = True) -> str:
        """Output of a job that must end well."""
        code, output = self.submit(*entrypoint, upload=upload)
        assert code == 0, output[-4000:]
        return output

    def processes(self, title: str) -> list[psutil.Process]:
        """Processes of the cluster with this in their command line."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True) + _orphans():
            with contextlib.suppress(psutil.Error):
                if title in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self, title: str) -> None:
        """SIGKILL for its processes with this in their command line; some go as soon as others have gone."""
        for process in self.processes(title):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def end(self) -> None:
        """Ends it with Ctrl-C (at SIGTERM a node waits for its actors); what does not go then is killed.

        Nodes that its autoscaler started have nobody to end them.
        """
        started = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _orphans() -> list[psutil.Process]:
    """Children of dead parents are this process's (`become_subreaper`)."""
    return psutil.Process().children(recursive=True)


@pytest.fixture(scope="module")
def start_head(module_workplace, free_port) -> Iterator[Callable[..., Head]]:
    """Starts a cluster's head with these options of `ray start`."""
    started: list[Head] = []

    def start(*options: str, autoscaling: Path | None = None) -> Head:
        started.append(Head(module_workplace, free_port, list(options), autoscaling))
        return started[-1]

    yield start
    for head in started:
        head.end()
