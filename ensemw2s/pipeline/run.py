"""A whole run: a config goes in, a finished run directory comes out, with manifest, results and report.

Every stage that is done already is skipped, so the same command continues a run that was killed, and does nothing for
one that is complete.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

from ensemw2s.cluster.connect import connect
from ensemw2s.cluster.resources import plan_resources
from ensemw2s.config import Config, dump_config
from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.records import RESULTS, RunResults
from ensemw2s.evaluation.report import REPORT, is_written, print_table, write_report
from ensemw2s.evaluation.task import Task
from ensemw2s.pipeline import preflight
from ensemw2s.pipeline.begun import BEGUN, as_begun
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.manifest import Logbook, versions
from ensemw2s.pipeline.outlook import outlook
from ensemw2s.pipeline.phases import evaluate, run_stages
from ensemw2s.pipeline.scan import remember
from ensemw2s.progress import Progress
from ensemw2s.storage import remote, store


def run(
    config: Config,
    *,
    fresh: bool = False,
    debug: bool = False,
    progress: Progress | None = None,
    checked: bool = False,
) -> RunResults:
    """Runs a config to its end, or goes on where an earlier run of it stopped.

    Args:
        config: What to run.
        fresh: Delete stages that were made with another config, and redo them.
        debug: Show the logs of Ray and of all workers.
        progress: Where to show progress; default: the terminal.
        checked: `preflight.check` has passed already. The command line calls it by itself, because what it raises
            there is a mistake of the config and not a failure of the work.

    Returns:
        The run's figures, as in its results.json.

    Raises:
        EnsemW2SError: Whatever stops it; what is finished stays and is used next time.
    """
    shown = progress or Progress()
    shown.run = config.name
    if not checked:
        preflight.check(config)
    if not fresh:
        config, said = as_begun(config)
        if said:
            shown.say(said)
    graph = build_graph(config)
    with store.only_one(graph.root):
        status = check_stages(graph, fresh=fresh)
        remember(config)
        (graph.root / BEGUN).write_text(dump_config(config), encoding="utf-8")
        remote.push(graph.root / BEGUN)
        if status[graph.evaluation.name] and remote.exists(graph.root / RESULTS):
            shown.say(f"{remote.shown(graph.root)} is complete: nothing to do")
            results = RunResults.read(graph.root / RESULTS)
            if not is_written(graph.root):
                write_report(results, graph.root)
        else:
            with shown:
                results = _work(graph, status, shown, debug)
    print_table(results, shown.console)
    shown.say(f"\nreport: {remote.shown(graph.root / REPORT)}")
    return results


def check_stages(graph: Graph, *, fresh: bool = False) -> dict[str, bool]:
    """Which stages are done.

    Args:
        graph: The stages.
        fresh: Delete those that were made with another config.

    Raises:
        ArtifactError: If a stage was made, or begun, with another config and `fresh` is not set.
    """
    from ensemw2s.training import checkpoints

    status = {}
    second_tries = [expert.stage for r in graph.all_rounds for expert in r.retries]
    for stage in (*graph.stages(), *second_tries):
        begun = checkpoints.folder_of(stage.path)
        for folder, check in ((stage.path, store.is_done), (begun, checkpoints.check)):
            try:
                check(folder, stage.description)
            except ArtifactError:
                if not fresh:
                    raise
                remote.remove(folder)
        status[stage.name] = store.is_done(stage.path, stage.description)
        if status[stage.name]:
            checkpoints.discard(begun)
    return {name: done for name, done in status.items() if name not in {stage.name for stage in second_tries}}


def _work(graph: Graph, status: dict[str, bool], progress: Progress, debug: bool) -> RunResults:
    """Does everything that needs Ray, and writes the results and the report."""
    from ensemw2s.training.launch import Lanes

    began = time.time()
    logbook = Logbook(graph)
    with connect(graph.config.cluster, debug=debug) as resources:
        plan = plan_resources(graph.config, resources)
        progress.say(
            f"{remote.shown(graph.root)}: {resources}; {plan.lanes} training lanes, up to {plan.actors} decoding actors"
        )
        training, scratch = graph.config.training, graph.root / ".ray"
        with Lanes(training, plan.lanes, scratch, keep=plan.keep_lanes, on_progress=progress.update) as lanes:
            lanes.start(
                sum(not done for name, done in status.items() if name.startswith(("models/", "rounds/", "consensus/")))
            )
            context = Context(graph, plan, progress, lanes, on_stage=logbook.add)
            progress.expect(*outlook(graph, status))
            run_stages(context)
            lanes.close()
            evaluate(context)
        remote.remove(scratch)
    logbook.save()
    evaluated = RunResults.read(graph.evaluation.path / RESULTS)
    results = evaluated.model_copy(
        update={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "task": _task(graph),
            "versions": versions(),
            "stages": logbook.stages,
            "total_seconds": round(time.time() - began, 1),
        }
    )
    results.put_file(graph.root / RESULTS)
    write_report(results, graph.root)
    return results


def _task(graph: Graph) -> Task:
    """What the report says of the task: from the config, and from the splits as they came out."""
    folder, sizes = graph.data.path, graph.config.data.sizes
    names = [name for name, n in sizes.model_dump().items() if n]
    return Task.of(graph.config.data, {name: store.read_table(folder / f"{name}.parquet") for name in names})
