"""What a cluster has, and how a run divides it: lanes that train, and actors that score, label and evaluate.

Config and resources go in, a plan comes out. All of it is pure, so that an impossible config is refused before
anything starts.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ensemw2s.config import ClusterConfig, Config, NodeKind
from ensemw2s.errors import ResourceError

DRIVER = "driver"
"""A resource of the Ray that is started here: room for drivers, which take no CPU from what they drive."""


NODE_SHARE = 0.001
"""What a worker or actor takes of a resource that stands for a kind of node, so that one such node holds many."""


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


def local_resources(config: ClusterConfig) -> Resources:
    """What a Ray started on this machine would have."""
    cpus = config.cpus if config.cpus is not None else usable_cpus()
    gpus = config.gpus if config.gpus is not None else _count_gpus()
    return Resources((Node(float(cpus), float(gpus), frozenset({DRIVER})),))


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs that this process may use: those that it may run on, but no more than its quota, rounded up.

    Args:
        root: Where /proc and /sys are.
    """
    allowed = len(os.sched_getaffinity(0))
    return min([allowed, *(max(1, math.ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """CPU quotas of the control groups that this process is in, of version 1 and 2; inside a container, of its root."""
    mounts = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        controllers, path = line.split(":", 2)[1:]
        names = controllers.split(",")
        if controllers and "cpu" not in names:
            continue
        for mount in (mounts,) if not controllers else (mounts / controllers, mounts / "cpu"):
            group = mount / path.strip("/")
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(mount))):
                yield from _quota(folder)


def _quota(group: Path) -> Iterator[float]:
    """CPUs that a control group allows; nothing where it sets no limit."""
    for files in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            words = [word for name in files for word in (group / name).read_text(encoding="ascii").split()]
            quota, period = float(words[0]), float(words[1])
            if quota > 0 and period > 0:
                yield quota / period


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch may find; a look at /dev, as torch takes a second to import."""
    devices = Path("/dev")
    return any(devices.glob("nvidia[0-9]*")) or any((devices / name).exists() for name in ("kfd", "dxg"))


def _count_gpus() -> int:
    if not has_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


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
