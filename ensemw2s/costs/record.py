"""A plan for a cluster with its estimate as a record: what `ensemw2s plan --cluster FILE --json` prints."""

from __future__ import annotations

from ensemw2s.costs.estimate import HOUR
from ensemw2s.costs.quote import Costs
from ensemw2s.pipeline.plan_record import PlanRecord
from ensemw2s.storage.record import Record


class StageCost(Record):
    """What a stage that is left takes.

    Attributes:
        name: Its name.
        nodes: The kind of node that it is on; how the cluster's file calls it.
        seconds: How long it takes.
        gpu_hours: Of all GPUs together, while they work.
        money: For the part of the nodes that it uses, in the currency of the table.
    """

    name: str
    nodes: str
    seconds: float
    gpu_hours: float
    money: float


class NodeCost(Record):
    """What a kind of node costs over the whole run.

    Attributes:
        nodes: The kind; how the cluster's file calls it.
        instance: Its instance type.
        most: The most nodes at a time.
        hours: Node-hours that are paid.
        money: At the price that the cluster asks for.
        on_demand: At the on-demand price.
    """

    nodes: str
    instance: str
    most: int
    hours: float
    money: float
    on_demand: float


class CostsRecord(Record):
    """A plan and what it costs.

    Attributes:
        plan: The plan.
        stages: What each stage takes.
        bills: What each kind of node costs.
        seconds: From the start of the run to its end.
        money: In all.
        on_demand: In all, at on-demand prices.
    """

    plan: PlanRecord
    stages: tuple[StageCost, ...]
    bills: tuple[NodeCost, ...]
    seconds: float
    money: float
    on_demand: float

    @classmethod
    def of(cls, costs: Costs) -> CostsRecord:
        """Writes an estimate down."""
        found = costs.estimate
        return cls(
            plan=PlanRecord.of(
                costs.plan,
                resources=found.cluster.resources(),
                division=found.division,
                free_bytes=None,
                address=str(costs.path),
            ),
            stages=tuple(
                StageCost(
                    name=row.name,
                    nodes=row.node.name,
                    seconds=row.seconds,
                    gpu_hours=row.gpu_seconds / HOUR,
                    money=row.money,
                )
                for row in found.rows
            ),
            bills=tuple(
                NodeCost(
                    nodes=bill.node.name,
                    instance=bill.node.kind,
                    most=bill.nodes,
                    hours=bill.hours,
                    money=bill.money,
                    on_demand=bill.on_demand,
                )
                for bill in found.bills
            ),
            seconds=found.seconds,
            money=found.money,
            on_demand=found.on_demand,
        )
