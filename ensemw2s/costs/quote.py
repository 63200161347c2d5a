"""`ensemw2s plan CONFIG --cluster FILE`: a config and a cluster's file in, a plan and what it costs on the terminal.

Apart from `planning` because a cluster that is not there yet is described, not asked, and models need not be here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ensemw2s.config import Config, NodeKind
from ensemw2s.costs import needs
from ensemw2s.costs.estimate import Estimate, estimate
from ensemw2s.costs.hardware import read_cluster
from ensemw2s.costs.lengths import lengths
from ensemw2s.costs.show import print_estimate
from ensemw2s.costs.throughput import read_measured
from ensemw2s.data.sources import check_source
from ensemw2s.pipeline.begun import as_begun
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.plan import Plan, lay_out
from ensemw2s.pipeline.plan_print import print_plan
from ensemw2s.pipeline.survey import survey


@dataclass(frozen=True)
class Costs:
    """A plan for a cluster, with its estimate."""

    plan: Plan
    estimate: Estimate
    path: Path


def prepare(
    config: Config,
    path: Path,
    *,
    prices: Path | None = None,
    measured: Path | None = None,
    tokens: tuple[int | None, int | None] = (None, None),
) -> Costs:
    """Works out what a run would need and cost.

    Args:
        config: The run.
        path: File of Ray's cluster launcher.
        prices: Table of instance types; default: the one beside the file.
        measured: Finished run whose speeds are taken.
        tokens: Mean tokens of prompts and answers; default: those of the data's first rows.

    Raises:
        EnsemW2SError: If the data, a model's config, the cluster's file or the table cannot be used, or something does
            not fit.
    """
    found = read_cluster(path, prices)
    speeds = read_measured(measured) if measured is not None else None
    check_source(config.data)
    graph = build_graph(as_begun(config)[0])
    sizes = needs.shapes(graph)
    plan = lay_out(graph, survey(graph), {name: shape.parameters for name, shape in sizes.items()})
    mean = lengths(config, found.prices.assumptions.characters_a_token, *tokens)
    return Costs(plan, estimate(graph, plan, sizes, found, mean, speeds), path)


def show(costs: Costs, console: Console) -> None:
    """Prints the plan, and below it memory and money."""
    found = costs.estimate
    resources = found.cluster.resources()
    place = f"{costs.path}, at its largest"
    print_plan(costs.plan, console, resources=resources, division=found.division, free_bytes=None, address=place)
    print_estimate(found, console)
    config = costs.plan.config
    asked = {config.training.node_resource, config.labeling.node_resource}
    wanted = [
        NodeKind(cpus=int(node.cpus), gpus=int(node.gpus), nodes=node.most, resources=sorted(node.resources & asked))
        for node in found.cluster.workers
        if node.cpus >= 1
    ]
    if config.cluster.autoscales_to != wanted:
        kinds = ", ".join(map(_in_words, wanted))
        console.print(
            f"\nTo be planned for these nodes there, too, a run needs cluster.autoscales_to: [{kinds}]",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _in_words(kind: NodeKind) -> str:
    """As `--set` takes it."""
    named = f", resources: [{', '.join(kind.resources)}]" if kind.resources else ""
    return f"{{cpus: {kind.cpus}, gpus: {kind.gpus}, nodes: {kind.nodes}{named}}}"
