"""The section `cluster` of the config: which Ray a run uses, and which nodes it may get."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ensemw2s.config.section import PositiveInt, Section


class NodeKind(Section):
    """One kind of node that an autoscaler may start."""

    cpus: PositiveInt = Field(description="CPUs of a node, as Ray counts them.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs of a node.")
    nodes: PositiveInt = Field(description="Most nodes of this kind at a time, including those that are up.")
    resources: list[str] = Field(
        default_factory=list,
        description="Other resources of a node, as named by `training.node_resource` and `labeling.node_resource`.",
    )


class ClusterConfig(Section):
    """Which Ray the run uses."""

    address: str | None = Field(
        None, description="Address of a running cluster, or auto. Default: RAY_ADDRESS, else a Ray started here."
    )
    cpus: PositiveInt | None = Field(None, description="CPUs of a Ray started here. Default: all cores.")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="GPUs of a Ray started here. Default: all.")
    object_store_mb: Annotated[int, Field(ge=100)] = Field(
        300, description="Object store of a Ray started here, in MB."
    )
    autoscales_to: list[NodeKind] = Field(
        default_factory=list,
        description="Nodes that the cluster's autoscaler may start, because Ray does not report them. The plan counts "
        "them when it decides what runs at the same time. Empty: only the nodes that are up count.",
    )
    driver_resource: str | None = Field(
        None,
        description="A Ray resource (`ray start --resources`) that only nodes have which are never taken away. The "
        "drivers of a search's trials run there. Default: on any node, each with a tenth of a CPU.",
    )
