"""The Ray that a run uses, and whether what the config asks for can ever fit on it.

Config and resources go in; a connection and a plan (how many lanes, how many actors) come out. The plan is a pure
function, so that an impossible config is refused before anything starts.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ensemw2s import remote
from ensemw2s.config import ClusterConfig, Config, NodeKind
from ensemw2s.errors import ConfigError, ResourceError


class Node(NamedTuple):
    """What Ray counts on a node.

    Attributes:
        cpus: CPUs.
        gpus: GPUs.
        resources: Names of its other resources, those among them that stand for a kind of node.
    """

    cpus: float
    gpus: float
    resources: frozenset[str] = frozenset()

    def has(self, resource: str | None) -> bool:
        """Whether what asks for a resource may run here; None: it asks for none."""
        return resource is None or resource in self.resources


@dataclass(frozen=True)
class Resources:
    """What each node of the cluster has, those included that an autoscaler may still start."""

    nodes: tuple[Node, ...]

    @property
    def cpus(self) -> float:
        return sum(node.cpus for node in self.nodes)

    @property
    def gpus(self) -> float:
        return sum(node.gpus for node in self.nodes)

    def having(self, resource: str | None) -> Resources:
        """The nodes on which what asks for a resource may run."""
        return Resources(tuple(node for node in self.nodes if node.has(resource)))

    def fits(self, cpus: float, gpus: float) -> int:
        """How many pieces of this size fit on all nodes together."""
        return sum(pieces((node.cpus, node.gpus), cpus, gpus) for node in self.nodes)

    def __str__(self) -> str:
        return f"{len(self.nodes)} node{'s' if len(self.nodes) != 1 else ''}, {self.cpus:g} CPUs, {self.gpus:g} GPUs"


def pieces(node: tuple[float, float], cpus: float, gpus: float) -> int:
    """How many pieces of so many CPUs and GPUs a node has room for."""
    by_cpu = int(node[0] / cpus + 1e-9)
    return by_cpu if gpus == 0 else min(by_cpu, int(node[1] / gpus + 1e-9))


@dataclass(frozen=True)
class ResourcePlan:
    """How much runs at the same time.

    Attributes:
        lanes: Ray Train runs side by side.
        actors: Largest size of the pool of decoding actors.
        keep_lanes: Lanes stay up while actors work: there is room for both. Else they take turns.
    """

    lanes: int
    actors: int
    keep_lanes: bool


def plan_resources(config: Config, resources: Resources) -> ResourcePlan:
    """Divides the cluster. Pure.

    Raises:
        ResourceError: If one training run or one actor can never be placed; says what is missing.
    """
    t, d = config.training, config.labeling
    where = resources.having(t.node_resource)
    workers = where.fits(t.cpus_per_worker, t.gpus_per_worker)
    if workers < t.workers.min:
        kind, advice = _of_kind("training", t.node_resource)
        raise ResourceError(
            f"training.workers asks for {t.workers.min} workers of {t.cpus_per_worker:g} CPUs and "
            f"{t.gpus_per_worker:g} GPUs, but only {workers} fit on {where}{kind}: lower training.workers or "
            f"what a worker takes{advice}"
        )
    where = resources.having(d.node_resource)
    actors = where.fits(d.cpus_per_actor, d.gpus_per_actor)
    if actors < d.min_actors:
        kind, advice = _of_kind("labeling", d.node_resource)
        raise ResourceError(
            f"labeling.min_actors asks for {d.min_actors} actors of {d.cpus_per_actor:g} CPUs and {d.gpus_per_actor:g} "
            f"GPUs, but only {actors} fit on {where}{kind}: lower labeling.min_actors or what an actor takes{advice}"
        )
    most = actors if d.max_actors is None else min(actors, d.max_actors)
    each = _workers_of_a_lane(config, workers)
    lanes = min(workers // each, t.lanes or workers)
    # Where nobody said how many lanes, half of the cluster trains and half decodes.
    half = [] if t.lanes is not None else [max(d.min_actors, most // 2)]
    for enough in (*half, d.min_actors):
        for kept in range(lanes, 0, -1):
            left = _actors_beside(config, resources, kept * each)
            if left >= enough:
                return ResourcePlan(lanes=kept, actors=min(most, left), keep_lanes=True)
    return ResourcePlan(lanes=lanes, actors=most, keep_lanes=False)


def _workers_of_a_lane(config: Config, fit: int) -> int:
    """Workers that a lane is given room for: the most that it may grow to, if so many fit at all."""
    wanted = config.training.workers
    return max(wanted.min, min(wanted.max, fit))


def _of_kind(section: str, resource: str | None) -> tuple[str, str]:
    """What an error says of nodes that have to have a resource, and what else can be done there."""
    if resource is None:
        return "", ""
    return (
        f" with the resource {resource} ({section}.node_resource)",
        f"; nodes that an autoscaler may start have it if cluster.autoscales_to.N.resources says {resource}",
    )


def _actors_beside(config: Config, resources: Resources, workers: int) -> int:
    """How many actors fit beside so many workers, which are packed onto the first nodes that hold them.

    Nodes that actors may use come first: where Ray may put workers onto these, it may put all of them there, and actors
    would wait for lanes that stay up.
    """
    t, d = config.training, config.labeling
    left = []
    for node in sorted(resources.having(t.node_resource).nodes, key=lambda node: not node.has(d.node_resource)):
        here = min(workers, pieces((node.cpus, node.gpus), t.cpus_per_worker, t.gpus_per_worker))
        workers -= here
        left.append(node._replace(cpus=node.cpus - here * t.cpus_per_worker, gpus=node.gpus - here * t.gpus_per_worker))
    left += [node for node in resources.nodes if not node.has(t.node_resource)]
    return Resources(tuple(left)).having(d.node_resource).fits(d.cpus_per_actor, d.gpus_per_actor)


def address(config: ClusterConfig) -> str | None:
    """Address of the cluster to join; none: start a Ray here."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


def is_job() -> bool:
    """Whether this process is the driver of a Ray job, whose working folder is a copy that other nodes do not see."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


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


def local_resources(config: ClusterConfig) -> Resources:
    """What a Ray started on this machine would have."""
    import torch

    cpus = config.cpus if config.cpus is not None else len(os.sched_getaffinity(0))
    gpus = config.gpus if config.gpus is not None else torch.cuda.device_count()
    return Resources((Node(float(cpus), float(gpus), frozenset({DRIVER})),))


DRIVER = "driver"
"""A resource of the Ray that is started here: room for drivers, which take no CPU from what they drive."""

NODE_SHARE = 0.001
"""What a worker or actor takes of a resource that stands for a kind of node, so that one such node holds many."""

RETRY_DELAY_MS = 3000
"""Time between two tries of a task; with `stream.RETRIES` more than Ray takes to give up a node that is silent."""


@contextmanager
def connect(config: ClusterConfig, *, debug: bool = False) -> Iterator[Resources]:
    """Joins the configured cluster, or starts a Ray on this machine and stops it at the end.

    Args:
        config: Where.
        debug: Show the logs of Ray and of all workers.

    Raises:
        ResourceError: If the cluster cannot be reached.
    """
    _quiet(debug)
    import ray

    joined = ray.is_initialized()
    if not joined:
        # A task whose actor cannot be reached is tried again at once, and has no tries left by the time that the
        # cluster knows its node to be dead.
        os.environ.setdefault("RAY_task_retry_delay_ms", str(RETRY_DELAY_MS))
        where = address(config)
        common: dict[str, Any] = {
            "log_to_driver": debug,
            "logging_level": logging.INFO if debug else logging.ERROR,
        }
        try:
            if where is not None:
                ray.init(address=where, **common)
            else:
                local = local_resources(config)
                # a process for each training run that looks out for notices which a lone machine never gets
                os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
                # a lane is five small processes: no warning about that on a machine with two cores
                os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "16")
                # pooled processes that have imported what decodes outlive the training between two rounds
                os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
                ray.init(
                    num_cpus=int(local.cpus),
                    num_gpus=int(local.gpus),
                    object_store_memory=config.object_store_mb * 2**20,
                    resources={DRIVER: 1000},
                    include_dashboard=False,
                    **common,
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ResourceError(f"Ray at {where or 'this machine'} cannot be used: {error}") from error
    _quiet_data(debug)
    try:
        yield current_resources(config)
    finally:
        if not joined:
            ray.shutdown()


def current_resources(config: ClusterConfig) -> Resources:
    """What the nodes of the connected cluster have, and those that its autoscaler may still start."""
    import ray

    living = [
        Node(float(r.get("CPU", 0)), float(r.get("GPU", 0)), frozenset(name for name, amount in r.items() if amount))
        for r in (node["Resources"] for node in ray.nodes() if node["Alive"])
    ]
    return with_autoscaling(living, config.autoscales_to)


def with_autoscaling(living: Iterable[Node], kinds: Iterable[NodeKind]) -> Resources:
    """The nodes that a cluster can have at the same time: those that live, and of each kind as many as there may be.

    A living node is one of a kind if it has the kind's size and all of its resources.
    """
    nodes = list(living)
    unknown = list(nodes)
    for kind in sorted(kinds, key=lambda kind: -len(kind.resources)):  # the kinds that fewest nodes are of first
        node = Node(float(kind.cpus), float(kind.gpus), frozenset(kind.resources))
        of_it = [n for n in unknown if n[:2] == node[:2] and n.resources >= node.resources][: kind.nodes]
        for found in of_it:
            unknown.remove(found)
        nodes += [node] * (kind.nodes - len(of_it))
    return Resources(tuple(nodes))


def share_of(node_resource: str | None) -> dict[str, float]:
    """What keeps a worker or an actor on nodes of a kind, as Ray's `resources`; empty: any node will do."""
    return {node_resource: NODE_SHARE} if node_resource is not None else {}


def _quiet(debug: bool) -> None:
    """Settings that Ray reads from the environment, before it is imported."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "0")
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
