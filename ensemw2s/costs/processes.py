"""Training workers and decoding actors as Ray sees them, and the kinds of node that may run them.

A config and a cluster go in, candidates come out, the cheapest first. Apart from `needs` because nothing here is about
memory: what Ray looks at is CPUs, GPUs and the resource that stands for a kind of node.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ensemw2s.cluster.resources import pieces
from ensemw2s.config import LabelingConfig, TrainingConfig
from ensemw2s.costs.hardware import Cluster, PricedNode
from ensemw2s.errors import ResourceError

Work = TrainingConfig | LabelingConfig


@dataclass(frozen=True)
class Process:
    """What Ray gives a training worker or a decoding actor.

    Attributes:
        section: Where the config says so.
        name: `worker` or `actor`.
        cpus: CPUs of one.
        gpus: GPUs of one.
        least: How many there have to be at a time.
        resource: What a node has to have; None: any node will do.
    """

    section: str
    name: str
    cpus: float
    gpus: float
    least: int
    resource: str | None

    @classmethod
    def of(cls, work: Work) -> Process:
        """That of `training` or of `labeling`."""
        if isinstance(work, TrainingConfig):
            sizes = (work.cpus_per_worker, work.gpus_per_worker, work.workers.min)
            return cls("training", "worker", *sizes, work.node_resource)
        return cls("labeling", "actor", work.cpus_per_actor, work.gpus_per_actor, work.min_actors, work.node_resource)

    def on(self, node: PricedNode) -> int:
        """How many a node has room for."""
        return pieces((node.cpus, node.gpus), self.cpus, self.gpus)


def candidates(found: Cluster, work: Work) -> list[PricedNode]:
    """Kinds of node that may run a process and have room for one, the cheapest room first.

    Like Ray's autoscaler, this leaves nodes with GPUs to those who ask for some, as long as there are others.

    Raises:
        ResourceError: If there is none, or there are too few of them.
    """
    process = Process.of(work)
    key = f"{process.section}.node_resource {process.resource}"
    nodes = [node for node in found.workers if process.resource is None or process.resource in node.resources]
    if not nodes:
        named = sorted({resource for node in found.workers for resource in node.resources} - {"CPU", "GPU"})
        raise ResourceError(
            f"{key}: no node type of {found.name} has it in its resources, which are {', '.join(named) or 'none'}"
        )
    room = [(node, process.on(node)) for node in nodes if process.on(node)]
    if not process.gpus:
        room = [pair for pair in room if not pair[0].gpus] or room
    if not room:
        whose = f" with {process.resource}" if process.resource else ""
        raise ResourceError(
            f"no node type of {found.name}{whose} has {process.cpus:g} CPUs and {process.gpus:g} GPUs for a process"
        )
    most = sum(node.most * n for node, n in room)
    if process.resource and most < process.least:
        raise ResourceError(f"{key}: there is room for {most} {process.name}s on such nodes, not for {process.least}")
    return [node for node, n in sorted(room, key=lambda pair: pair[0].price(found.prices) / pair[1])]


def check_speed(found: Cluster, works: Iterable[Work]) -> None:
    """Refuses processes without GPUs where the table does not know how fast the CPUs are: those of GPU nodes above all.

    Raises:
        ResourceError: With the settings that give them GPUs, where the cluster has some.
    """
    slow = []
    for work in works:
        node = candidates(found, work)[0]
        if not Process.of(work).gpus and (node.gpus or node.processor is None):
            slow.append((node, Process.of(work)))
    if not slow:
        return
    settings = " ".join(f"--set {process.section}.gpus_per_{process.name}=1" for _, process in slow)
    node = slow[0][0]
    ways = [f"ask for some with {settings}"] if any(other.gpus for other in found.workers) else []
    ways += [] if node.gpus else ["give it a processor there"]
    raise ResourceError(
        f"the table of prices does not say how fast {node.kind} is for what has no GPU: "
        f"{', or '.join([*ways, 'take the speeds of a finished run with --measured RUN'])}"
    )
