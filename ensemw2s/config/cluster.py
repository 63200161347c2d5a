"""The section `cluster` of the config: which Ray a run uses, and which nodes it may get."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ensemw2s.config.section import PositiveInt, Section


class NodeKind(Section):
    """Nodes of one kind that an autoscaler may start."""

    cpus: PositiveInt = Field(description="CPUs that Ray counts on one.")
    gpus: Annotated[int, Field(ge=0)] = Field(0, description="GPUs on one.")
    nodes: PositiveInt = Field(description="How many there may be at a time, those that live included.")
    resources: list[str] = Field(
        default_factory=list,
        description="Other resources that one has, as `training.node_resource` and `labeling.node_resource` name them.",
    )


class ClusterConfig(Section):
    """Which Ray this runs on."""

    address: str | None = Field(
        None, description="A running cluster's address, or auto; none: RAY_ADDRESS, else start one here."
    )
    cpus: PositiveInt | None = Field(None, description="CPUs of a Ray started here; none: all cores.")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="GPUs of a Ray started here; none: all.")
    object_store_mb: Annotated[int, Field(ge=100)] = Field(
        300, description="Object store of a Ray started here, in MB."
    )
    autoscales_to: list[NodeKind] = Field(
        default_factory=list,
        description="Nodes that the cluster's autoscaler may start (Ray does not report them): what runs at the same "
        "time is planned for them too. Empty: for the nodes that are there.",
    )
    driver_resource: str | None = Field(
        None,
        description="A resource of those nodes only that are never taken away (as `ray start --resources` gives it): "
        "the drivers of a search's trials sit there. None: on any node, for a tenth of a CPU each.",
    )
