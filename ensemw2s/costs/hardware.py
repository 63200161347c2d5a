"""From a file of Ray's cluster launcher and a table of instance types to the nodes that a run can have.

The cluster's file says which instance types there are and how many of each; the table, which the user edits, says what
one of them holds and costs. Nothing is asked of a cloud.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ensemw2s.cluster.resources import Node, Resources
from ensemw2s.config.messages import explain, nearest
from ensemw2s.config.section import Fraction, PositiveInt, Section
from ensemw2s.config.tree import read_tree
from ensemw2s.errors import ConfigError, ResourceError

PRICES = "prices.yaml"
"""Name of the table beside a cluster's file."""

MAX_WORKERS = 2
"""Nodes beside the head where a cluster's file does not say how many: Ray's own default, on AWS and Google Cloud."""

Positive = Annotated[float, Field(gt=0)]


class Processor(Section):
    """What a GPU (or the CPUs of a node that has none) can do at its peak."""

    memory_gib: Positive = Field(description="Memory of one GPU that programs can use; of a CPU the table's own.")
    bf16_tflops: Positive | None = Field(None, description="Dense bfloat16; leave it out for a processor without.")
    fp32_tflops: Positive = Field(description="float32, without TF32.")
    gb_per_second: Positive = Field(description="Bandwidth of its memory.")


class Instance(Section):
    """An instance type of a cloud."""

    cloud: str | None = Field(None, description="The provider; advice keeps to it.")
    gpu: str | None = Field(None, description="Name of its GPUs in the table; leave it out for a node without.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="How many.")
    cpus: PositiveInt = Field(description="vCPUs.")
    memory_gib: Positive = Field(description="Memory of the machine.")
    processor: str | None = Field(None, description="Of one without GPUs: name of its CPUs in the table, if known.")
    on_demand: Annotated[float, Field(ge=0)] = Field(description="Price per hour.")
    spot: Annotated[float, Field(ge=0)] | None = Field(
        None, description="Spot price per hour; default: spot_share of the on-demand price."
    )


class Assumptions(Section):
    """What the model of time and memory takes for granted, all of it for the user to measure and correct."""

    training_mfu: Fraction = Field(description="Share of a processor's peak that training reaches, waiting included.")
    reading_mfu: Fraction = Field(description="The same for reading prompts and for scoring.")
    decoding_bandwidth: Fraction = Field(description="Share of the memory's speed that decoding reads weights with.")
    seconds_a_layer: Annotated[float, Field(ge=0)] = Field(
        description="Time of a decoding step for starting a layer's operations, whatever the batch."
    )
    overhead_gib: Annotated[float, Field(ge=0)] = Field(
        description="Memory of a GPU that a process takes for CUDA, its libraries and fragmentation."
    )
    startup_minutes: Annotated[float, Field(ge=0)] = Field(description="From the wish for a node to its first work.")
    spot_share: Fraction = Field(description="Spot price as a share of the on-demand price, where it is not given.")
    characters_a_token: Positive = Field(description="Where no tokenizer is at hand.")
    seconds_a_step: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Time of a training step beside its arithmetic, whatever the batch."
    )
    seconds_a_training: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Time of a training beside its steps: loading, saving and starting."
    )


class Prices(Section):
    """The table: prices, instance types, processors and assumptions."""

    as_of: str = Field(description="When and where the prices are from.")
    currency: str = Field("USD", description="Of the prices.")
    assumptions: Assumptions
    processors: dict[str, Processor]
    instances: dict[str, Instance]

    @field_validator("as_of", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return str(value)  # YAML makes a date of 2026-01-31

    @model_validator(mode="after")
    def _known(self) -> Prices:
        for name, instance in self.instances.items():
            for used in (instance.gpu, instance.processor):
                if used is not None and used not in self.processors:
                    raise ValueError(f"instances.{name}: {used} is no processor{nearest(used, self.processors)}")
            if (instance.gpu is None) != (instance.gpus == 0):
                raise ValueError(f"instances.{name}: gpu is {instance.gpu} and gpus is {instance.gpus}; give both")
        return self


class _Launcher(BaseModel):
    """A part of the file of Ray's cluster launcher; what costs do not depend on is skipped."""

    model_config = ConfigDict(frozen=True)


class _Market(_Launcher):
    kind: str | None = Field(None, alias="MarketType")


class _Scheduling(_Launcher):
    preemptible: bool = False
    model: str | None = Field(None, alias="provisioningModel")


class LauncherSettings(_Launcher):
    """`node_config` of a kind of node, in the words of AWS or of Google Cloud."""

    aws_type: str | None = Field(None, alias="InstanceType")
    google_type: str | None = Field(None, alias="machineType")
    market: _Market | None = Field(None, alias="InstanceMarketOptions")
    scheduling: list[_Scheduling] | _Scheduling | None = None

    @property
    def is_spot(self) -> bool:
        """Whether nodes are asked for at the spot price."""
        parts = self.scheduling if isinstance(self.scheduling, list) else [self.scheduling]
        google = any(part is not None and (part.preemptible or part.model == "SPOT") for part in parts)
        return google or (self.market is not None and self.market.kind == "spot")


class LauncherNode(_Launcher):
    """A kind of node: its settings, the resources that Ray counts on it by name, and how many there may be."""

    node_config: LauncherSettings | None = None
    resources: dict[str, float] | None = None
    max_workers: int | None = None


class LauncherFile(_Launcher):
    """A file of `ray up`; defaults are Ray's."""

    cluster_name: str | None = None
    max_workers: int = MAX_WORKERS
    idle_timeout_minutes: float = 5
    head_node_type: str | None = None
    available_node_types: dict[str, LauncherNode | None]


@dataclass(frozen=True)
class PricedNode:
    """A kind of node of a cluster, with what the table says of its instance type.

    Attributes:
        name: In the cluster's file.
        kind: The instance type.
        instance: What it holds and costs.
        processor: What computes there: its GPUs, else its CPUs; None where the table does not know the CPUs.
        cpus: CPUs that Ray counts on it.
        gpus: GPUs that Ray counts on it.
        most: How many there may be at a time.
        spot: Billed at the spot price.
        is_head: The head node's type.
        resources: Resources of its own that a node has, by name.
    """

    name: str
    kind: str
    instance: Instance
    processor: Processor | None
    cpus: float
    gpus: float
    most: int
    spot: bool
    is_head: bool
    resources: frozenset[str] = frozenset()

    def price(self, prices: Prices, *, spot: bool | None = None) -> float:
        """Price per hour of one node, in the market that the cluster asks for or that is given."""
        if not (self.spot if spot is None else spot):
            return self.instance.on_demand
        own = self.instance.spot
        return own if own is not None else self.instance.on_demand * prices.assumptions.spot_share


@dataclass(frozen=True)
class Cluster:
    """What a cluster may grow to.

    Attributes:
        name: Its name.
        nodes: Its kinds of node.
        limit: How many nodes there may be at a time, the head among them.
        idle_minutes: Minutes without work after which a node goes.
        prices: The table.
    """

    name: str
    nodes: tuple[PricedNode, ...]
    limit: int
    idle_minutes: float
    prices: Prices

    @property
    def workers(self) -> tuple[PricedNode, ...]:
        """The kinds that experts and actors may run on."""
        return tuple(node for node in self.nodes if node.most and (node.cpus or node.gpus))

    def within_limit(self, used: Collection[str]) -> Cluster:
        """The cluster with as many nodes as there may be at a time.

        Nodes of kinds without work go first, then those of the kind that has most.

        Args:
            used: Names of the kinds that work is planned on; one node of each stays.

        Raises:
            ResourceError: If there may not be one of each.
        """
        least = {node.name: max(int(node.is_head), int(node.name in used)) for node in self.nodes}
        if sum(least.values()) > self.limit:
            kinds = " and ".join(sorted(used))
            raise ResourceError(f"work is planned on {kinds}, but max_workers of {self.name} is {self.limit - 1}")
        most = {node.name: node.most for node in self.nodes}
        while sum(most.values()) > self.limit:
            spare = [name for name, count in most.items() if count > least[name]]
            most[max(spare, key=lambda name: (name not in used, most[name]))] -= 1
        return replace(self, nodes=tuple(replace(node, most=most[node.name]) for node in self.nodes))

    def resources(self) -> Resources:
        """All nodes that there can be, as `plan_resources` sees them."""
        return Resources(
            tuple(Node(node.cpus, node.gpus, node.resources) for node in self.workers for _ in range(node.most))
        )


def read_prices(path: Path) -> Prices:
    """Reads a table of prices.

    Raises:
        ConfigError: If it cannot be read or is wrong; says every mistake.
    """
    try:
        return Prices.model_validate(read_tree(path))
    except ValidationError as error:
        lines = dict.fromkeys(line for item in error.errors() for line in explain(item, Prices))
        raise ConfigError("\n".join([f"{path} is no table of prices:", *(f"  {line}" for line in lines)])) from None


def read_cluster(path: Path, prices: Path | None = None) -> Cluster:
    """Reads a file of `ray up`, and what its instance types are.

    Args:
        path: The file.
        prices: The table; default: `prices.yaml` beside the file.

    Raises:
        ConfigError: If one of them cannot be read, or an instance type is not in the table.
    """
    tree = read_tree(path)
    if not tree.get("available_node_types"):
        raise ConfigError(f"{path} is no file of Ray's cluster launcher: it has no available_node_types")
    try:
        file = LauncherFile.model_validate(tree)
    except ValidationError as error:
        lines = dict.fromkeys(line for item in error.errors() for line in explain(item, LauncherFile))
        said = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(f"{path} is no file of Ray's cluster launcher:\n{said}") from None
    table = prices or path.parent / PRICES
    if not table.exists():
        raise ConfigError(f"there is no table of prices {table}: give one with --prices FILE (cluster/{PRICES} is one)")
    known = read_prices(table)
    nodes = [
        _node(path, name, entry or LauncherNode(), file, known, table)
        for name, entry in file.available_node_types.items()
    ]
    return Cluster(file.cluster_name or path.stem, tuple(nodes), file.max_workers + 1, file.idle_timeout_minutes, known)


def _node(path: Path, name: str, entry: LauncherNode, file: LauncherFile, prices: Prices, table: Path) -> PricedNode:
    settings = entry.node_config or LauncherSettings()
    kind = (settings.aws_type or settings.google_type or name).rsplit("/", 1)[-1]
    if kind not in prices.instances:
        raise ConfigError(
            f"{path}: node type {name} is {kind}, which {table} does not know{nearest(kind, prices.instances)}. Add "
            "what it holds and costs"
        )
    instance = prices.instances[kind]
    counted = entry.resources or {}
    is_head = name == file.head_node_type
    # beside the head itself no more of its kind, unless the file says so
    more = entry.max_workers if entry.max_workers is not None else (0 if is_head else file.max_workers)
    most = more + is_head
    return PricedNode(
        name=name,
        kind=kind,
        instance=instance,
        processor=prices.processors.get(instance.gpu or instance.processor or ""),
        cpus=float(counted.get("CPU", instance.cpus)),
        gpus=float(counted.get("GPU", instance.gpus)),
        most=min(most, file.max_workers + is_head),
        spot=settings.is_spot,
        is_head=is_head,
        resources=frozenset(resource for resource, amount in counted.items() if amount),
    )
