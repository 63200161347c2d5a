"""A search from its config to its best point: shared stages first, then trials on Ray Tune, then what they found.

Tune decides which points are tried and which trials go on; what a trial does is `trial`'s, what people see `report`'s.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from ensemw2s import env
from ensemw2s.cluster.connect import cluster_address, connect
from ensemw2s.cluster.resources import DRIVER, ResourcePlan, Resources, plan_resources
from ensemw2s.config import Config
from ensemw2s.config.search import SearchConfig
from ensemw2s.errors import ConfigError, SearchError
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Graph, run_directory
from ensemw2s.pipeline.identity import data_tree
from ensemw2s.pipeline.phases import prepare
from ensemw2s.progress import Progress
from ensemw2s.search import report, space
from ensemw2s.search.live import Watcher, live_table, numbered, trial_folder
from ensemw2s.search.records import ITERATION, OBJECTIVE, RESULT, SearchResult, read_result, write_result
from ensemw2s.search.trial import Trial, trial_config
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Description

DRIVER_CPUS = 0.1
"""Of a trial's driver where no resource is set aside for drivers."""

EXPERIMENT = "tune"


def search_directory(config: Config) -> Path:
    """Folder of a config's search."""
    return run_directory(config) / "search"


def run(
    config: Config, *, resume: bool = False, fresh: bool = False, debug: bool = False, progress: Progress | None = None
) -> SearchResult:
    """Runs a search to its end.

    Args:
        config: A config with a section `search`.
        resume: Go on with a search that was stopped.
        fresh: Delete what an earlier search chose, and search anew; stages it made are used again.
        debug: Show Ray's logs.
        progress: Where to show progress; default: the terminal.

    Returns:
        What it found.

    Raises:
        ConfigError: If the space does not fit the config, or the folder holds a search and neither flag is given.
        SearchError: If no trial measured anything.
        EnsemW2SError: If a stage that all trials share fails.
    """
    shown, search, folder = progress or Progress(), space.check(config), search_directory(config)
    shown.run, description = config.name, describe(config)
    with store.only_one(folder):
        if fresh:
            clear(folder)
        found = earlier(folder, description)
        if found == "done":
            shown.say(f"{remote.shown(folder)} is complete: nothing to do")
            result = read_result(folder)
        else:
            if found == "begun" and not resume:
                raise ConfigError(
                    f"{remote.shown(folder)} holds a search that was stopped: --resume goes on, --fresh begins anew"
                )
            store.put_json(folder / "description.json", description.model_dump(exclude={"stage"}))
            with connect(config.cluster, debug=debug) as resources:
                result = _search(config, search, folder, resources, shown, again=found == "begun", debug=debug)
    report.print_trials(result, shown.console)
    shown.say(f"\nensemw2s run {remote.shown(folder / 'best.yaml')}")
    return result


def describe(config: Config) -> Description:
    """Everything that a search depends on; where it runs, and how many trials run at a time, is not among it."""
    tree = config.model_dump(mode="json", exclude={"cluster", "tracking", "evaluation"})
    tree["data"] = data_tree(config.data)
    tree["search"].pop("concurrent")
    return Description(stage="search", settings=tree, inputs={"data": build_graph(config).data.fingerprint})


def earlier(folder: Path, description: Description) -> str:
    """`done`, `begun` or `none`. Raises `ConfigError` if the folder holds another search."""
    if not remote.exists(folder / "description.json"):
        return "none"
    found = Description.model_validate({"stage": "search", **store.read_json(folder / "description.json")})
    if found != description:
        raise ConfigError(
            f"{remote.shown(folder)} holds another search: {store.difference(found, description)}. "
            "Use another name, or --fresh to search anew"
        )
    return "done" if remote.exists(folder / RESULT) else "begun"


def clear(folder: Path) -> None:
    """Removes what a search decided; the stages stay."""
    for name in ("description.json", RESULT, "trials.parquet", "best.yaml"):
        remote.remove(folder / name)
    remote.remove(folder / EXPERIMENT)
    remote.remove(folder / "plots")


def _search(
    config: Config,
    search: SearchConfig,
    folder: Path,
    resources: Resources,
    shown: Progress,
    *,
    again: bool,
    debug: bool,
) -> SearchResult:
    stages = folder / "stages"
    with shown:
        _shared_stages(config, stages, resources, shown)
    plan, count = divide(config, resources)
    shown.say(
        f"{remote.shown(folder)}: {resources}; {search.trials} trials, {count} at a time, each with up to "
        f"{plan.lanes} lanes"
    )
    grid = _tune(config, search, folder, plan, count, shown, again=again, debug=debug)
    results = numbered(grid)
    rows = report.rows(results, config)
    failed = report.failures(results, rows)
    if not len(rows) or not (rows["experts"] > 0).any():
        reasons = list(failed.values()) or ["nothing was tried"]
        raise SearchError(f"no trial measured anything; the first one failed: {reasons[0]}")
    rows.to_parquet(folder / "trials.parquet", index=False)
    remote.push(folder / "trials.parquet")
    points = {number: result.config for number, result in results.items()}
    found = report.summarise(config, rows, failed, points)
    report.write(config, rows, found, folder)
    write_result(folder, found)
    return found


def _shared_stages(config: Config, stages: Path, resources: Resources, shown: Progress) -> None:
    """Data, corpus, pre-trained bases and tokens: no point of the space changes them."""
    from ensemw2s.training.launch import Lanes

    graph: Graph = build_graph(trial_config(config, {}), stages)
    plan = plan_resources(config, resources)
    with Lanes(config.training, plan.lanes, stages / ".ray", keep=False, on_progress=shown.update) as lanes:
        context = Context(graph, plan, shown, lanes, on_stage=lambda *_: None)
        prepare(context)


def divide(config: Config, resources: Resources) -> tuple[ResourcePlan, int]:
    """What each trial gets, and how many run at a time: the most with a lane and actors side by side. Pure."""
    assert config.search is not None
    training, labeling = config.training, config.labeling
    for count in range(min(config.search.concurrent or config.search.trials, config.search.trials), 0, -1):
        if (training.lanes or count) < count or (
            labeling.max_actors or labeling.min_actors * count
        ) < labeling.min_actors * count:
            continue
        where = resources.having(labeling.node_resource)
        if where.fits(labeling.cpus_per_actor, labeling.gpus_per_actor) < labeling.min_actors * count:
            continue
        wanted = labeling.model_copy(update={"min_actors": labeling.min_actors * count})
        plan = plan_resources(config.model_copy(update={"labeling": wanted}), resources)
        if plan.keep_lanes and plan.lanes >= count:
            return ResourcePlan(plan.lanes // count, plan.actors // count, keep_lanes=True), count
    return plan_resources(config, resources), 1


def _tune(
    config: Config,
    search: SearchConfig,
    folder: Path,
    plan: ResourcePlan,
    count: int,
    shown: Progress,
    *,
    again: bool,
    debug: bool,
) -> Any:
    from ray import tune

    trainable = tune.with_resources(
        tune.with_parameters(
            Trial,
            base=config.model_dump(mode="json"),
            folder=str((folder / "stages").resolve()),
            home=str(Path.cwd()),
            lanes=plan.lanes,
            actors=plan.actors,
            keep=plan.keep_lanes,
        ),
        driver_resources(config),
    )
    home = remote.for_ray(folder)
    place = f"{home}/{EXPERIMENT}"
    env.RAY_TUNE_OUTPUT.set_default()  # `verbose` alone does not silence it
    if not debug:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a trial's error is reported with the trial
        warnings.filterwarnings("ignore", message="The reported value is ignored")  # of a trial that began again
    with live_table(shown):
        if again and tune.Tuner.can_restore(place):
            tuner = tune.Tuner.restore(place, trainable, resume_unfinished=True, restart_errored=True)
        else:
            tuner = tune.Tuner(
                trainable,
                tune_config=tune.TuneConfig(
                    search_alg=_searcher(search),
                    scheduler=_scheduler(search, space.sizes(config)[1] + space.passes(config)[1]),
                    num_samples=search.trials,
                    max_concurrent_trials=count,
                    metric=OBJECTIVE,
                    mode=search.mode,
                    trial_dirname_creator=trial_folder,
                ),
                run_config=tune.RunConfig(
                    name=EXPERIMENT,
                    storage_path=home,
                    callbacks=[Watcher()],
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=2),
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                ),
            )
        return tuner.fit()


def driver_resources(config: Config) -> dict[str, float]:
    """What a trial's driver reserves. It only waits, so where Ray is started here it takes no CPU from its workers."""
    if config.cluster.driver_resource is not None:
        return {config.cluster.driver_resource: 1}
    if cluster_address(config.cluster) is None:
        return {DRIVER: 1}
    return {"CPU": DRIVER_CPUS}


def _searcher(search: SearchConfig) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if search.searcher == "random":
        sampler: Any = optuna.samplers.RandomSampler(seed=search.seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=search.seed, n_startup_trials=search.startup_trials)
    return OptunaSearch(partial(space.draw, space=search.space), metric=OBJECTIVE, mode=search.mode, sampler=sampler)


def _scheduler(search: SearchConfig, iterations: int) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule

    if search.scheduler == "none":
        return FIFOScheduler()
    if search.scheduler == "median":
        return MedianStoppingRule(time_attr=ITERATION, grace_period=search.grace_rounds, min_samples_required=3)
    # a trial that reaches the last iteration ends by itself, with all that it reports in the end
    return ASHAScheduler(
        time_attr=ITERATION,
        max_t=max(iterations, search.grace_rounds) + 1,
        grace_period=search.grace_rounds,
        reduction_factor=search.reduction_factor,
    )
