"""The Ray that a run uses. It joins the one that the config or the environment names, or starts one on this machine.

A config goes in; a connection comes out, with what its nodes have.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

import psutil

from ensemw2s import env
from ensemw2s.cluster import join
from ensemw2s.cluster.forks import forked_workers
from ensemw2s.cluster.own import own_session, own_token, quiet_core, temporary_folder
from ensemw2s.cluster.resources import DRIVER, Node, Resources, local_resources, with_autoscaling
from ensemw2s.config import ClusterConfig
from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.storage import remote

TOO_SLOW = "timed out during startup"
"""What Ray says of a node that took too long. It raises a plain `Exception`."""


def cluster_address(config: ClusterConfig) -> str | None:
    """Address of the cluster to join. None: start a Ray on this machine."""
    return config.address or env.RAY_ADDRESS.get()


def is_job() -> bool:
    """Whether this process is the driver of a Ray job, whose working folder is a copy that other nodes do not see."""
    return env.RAY_JOB.get() is not None


def check_lasting(path: str | Path, name: str) -> None:
    """Checks that what a Ray job writes outlives it: its working folder is deleted after it.

    Args:
        path: Where it is to be written.
        name: The option or key that says so.

    Raises:
        ConfigError: If this is a Ray job, and the path is relative.
    """
    if is_job() and not remote.local(path).is_absolute():
        raise ConfigError(
            f"{name} {path} is relative, and the working folder of a Ray job goes away with it; give an absolute path "
            "that every node can reach, or a URI of object storage"
        )


@contextmanager
def connect(config: ClusterConfig, *, forks: bool = True, debug: bool = False) -> Iterator[Resources]:
    """Joins the configured cluster, or starts a Ray on this machine and stops it at the end.

    Args:
        config: Where.
        forks: Whether a Ray that is started forks its processes (`forks`). Whoever computes with torch in one has to
            say how many threads it takes.
        debug: Show the logs of Ray and of all workers.

    Raises:
        ConfigError: If no Ray answers at the address.
        ResourceError: If the cluster cannot be used.
    """
    _quiet(debug)
    import ray

    joined = ray.is_initialized()
    where = cluster_address(config)
    with ExitStack() as open_:
        if not joined and where is None and forks:
            open_.enter_context(forked_workers())
        if not joined and where is None:
            open_.enter_context(own_token())
        elif not joined and where is not None:
            open_.enter_context(env.kept(env.RAY_AUTH_MODE))
            join.check(where)
        if not joined:
            with _own_sigterm():
                _start(config, where, debug)
            open_.callback(ray.shutdown)
        _quiet_data(debug)
        yield current_resources(config)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this process's answer to SIGTERM: that of Ray ends it at once, with a trace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _start(config: ClusterConfig, where: str | None, debug: bool) -> None:
    import ray

    # Else a task whose actor cannot be reached is tried again at once, and has no tries left (`pool.RETRIES`)
    # by the time that the cluster knows its node to be dead.
    env.RAY_RETRY_DELAY.set_default()
    level = logging.INFO if debug else logging.ERROR
    start = partial(ray.init, log_to_driver=debug, logging_level=level)
    try:
        if where is not None:
            with nullcontext() if debug else quiet_core():
                start(address=where)
        else:
            local = local_resources(config)
            for setting in (env.RAY_WATCHER, env.RAY_STARTS, env.RAY_IDLE):
                setting.set_default()
            start_here = partial(
                start,
                address="local",  # whatever another Ray has left in the environment and on the disk
                _temp_dir=temporary_folder(),
                num_cpus=int(local.cpus),
                num_gpus=int(local.gpus),
                object_store_memory=config.object_store_mb * 2**20,
                resources={DRIVER: 1000},
                include_dashboard=False,
            )
            with own_session(), nullcontext() if debug else quiet_core():
                _patiently(start_here)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(f"Ray at {where or 'this machine'} cannot be used: {error}") from error


def _patiently(start: Callable[[], object], tries: int = 4) -> None:
    """Starts a Ray on this machine; again where its node took longer than the half minute that Ray gives it.

    Args:
        start: Does it.
        tries: How often, at most.

    Raises:
        ResourceError: If no try was quick enough.
    """
    before = {process.pid for process in psutil.Process().children()}
    for _ in range(tries):
        try:
            start()
            return
        except Exception as error:
            if TOO_SLOW not in str(error):
                raise
        late = [process for process in psutil.Process().children() if process.pid not in before]
        for process in late:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(late, 10)
    raise ResourceError(f"Ray did not start in {tries} tries of 30 seconds: this machine is too busy; try again later")


def current_resources(config: ClusterConfig) -> Resources:
    """What the nodes of the connected cluster have, and those that its autoscaler may still start."""
    import ray

    living = [
        Node(float(r.get("CPU", 0)), float(r.get("GPU", 0)), frozenset(name for name, amount in r.items() if amount))
        for r in (node["Resources"] for node in ray.nodes() if node["Alive"])
    ]
    return with_autoscaling(living, config.autoscales_to)


def _quiet(debug: bool) -> None:
    """Settings that Ray reads from the environment, before it is imported."""
    for setting in (env.RAY_NO_GPU, env.RAY_STATE, env.RAY_METRICS, env.RAY_USAGE):
        setting.set_default()
    if not debug:
        warnings.filterwarnings("ignore", category=FutureWarning)


def _quiet_data(debug: bool) -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = debug
    context.print_on_execution_start = debug
    if not debug:
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        logging.getLogger("ray.train").setLevel(logging.ERROR)
