"""Commands on configs: write one, plan it, run it, search it, and report on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemw2s.cli import options
from ensemw2s.cli.options import option
from ensemw2s.cli.outcome import Output, before_work, outcome, say
from ensemw2s.errors import ConfigError
from ensemw2s.storage import remote

if TYPE_CHECKING:
    from ensemw2s.config import Config


def init(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", show_default=False, help="Name of your run. Without it, recipes are listed."),
    ] = None,
    output: Annotated[Path | None, option("--output", "File to write. Default: NAME.yaml.", metavar="FILE")] = None,
    recipe: Annotated[
        str | None,
        option(
            "--recipe",
            "Recipe to begin with. Default: the one that is called NAME, else quickstart.",
            metavar="RECIPE",
        ),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Write a config to edit, or list the recipes.

    A recipe is a config that comes with the package. `plan`, `run` and `tune` take its name in place of a file, and
    `study` takes the name of a study. To change more than --set can, write a copy and edit it. A file that is there
    already is never overwritten.

        ensemw2s init                               list all recipes
        ensemw2s init mine                          write mine.yaml from quickstart
        ensemw2s init mine --recipe my-data         for examples of your own
        ensemw2s init tasks --recipe studies/tiny   write a study
    """
    with outcome(debug=debug):
        from ensemw2s.config import recipes

        if name is None:
            recipes.print_all(Output())
            return
        chosen = recipe or (name if name in recipes.names() else recipes.DEFAULT)
        file, command = recipes.write(name, chosen, output)
        say(f"wrote {file}, from the recipe {chosen}. Edit it; then: ensemw2s {command} {file}")


def run(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete stages that were made with another config, and make them again.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Run a config to its end, or continue an earlier run of it.

    Before anything starts, it checks the config, every row of the data, the models and tokenizers that it names, and
    whether the work fits on this machine. Results go to the folder STORAGE/NAME: ensemble/, labels/, students/,
    results.json, report.html, plots/ and the other stages (docs/run-directory.md).

    Finished stages are never repeated. The same command continues a run that was killed, and does nothing for a
    complete one. If a stage was made with another config, the run stops and says what changed; --fresh deletes that
    stage and makes it again.

        ensemw2s run quickstart
        ensemw2s run quickstart --set name=three --set boosting.rounds=3
        ensemw2s run mine.yaml
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config import load_config
        from ensemw2s.pipeline import preflight
        from ensemw2s.pipeline.run import run as run_pipeline
        from ensemw2s.progress import Progress

        loaded = load_config(config, set_)
        with before_work():
            preflight.check(loaded)
        run_pipeline(loaded, fresh=fresh, debug=debug, progress=Progress(Output()), checked=True)


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What `plan` is told about a cluster that need not be up."""

    cluster: Annotated[
        Path | None,
        option("--cluster", "Cluster file of `ray up`. Shows what the run would need and cost there.", metavar="FILE"),
    ] = None
    prices: Annotated[
        Path | None,
        option("--prices", "Table of instance types. Default: prices.yaml beside the cluster file.", metavar="FILE"),
    ] = None
    measured: Annotated[
        Path | None,
        option("--measured", "A finished run. Its measured speeds replace estimated ones.", metavar="RUN_DIR"),
    ] = None
    prompt_tokens: Annotated[
        int | None,
        option("--prompt-tokens", "Mean tokens per prompt. Default: from the first rows of the data.", min=1),
    ] = None
    answer_tokens: Annotated[
        int | None,
        option("--answer-tokens", "Mean tokens per answer. Default: from the first rows of the data.", min=1),
    ] = None

    def without_cluster(self) -> list[str]:
        """The options that were given and mean nothing without --cluster."""
        return [
            f"--{name.replace('_', '-')}"
            for name, value in vars(self).items()
            if name != "cluster" and value is not None
        ]


def plan(
    config: options.ConfigFile,
    costs: CostOptions,
    set_: options.Overrides = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what `run` would do: stages, sizes, resources, and what is done already.

    Lists every stage in order as done, to do, or changed (made with another config, and what differs). Each has its
    examples, models, parameters, epochs and optimizer steps where they are known. It makes the same checks as `run`:
    it reads all rows, at most 100,000 of a source, with every tokenizer that is here, and says how far it came. It
    changes nothing on disk and starts no Ray. The resources are those of this machine; if the config or RAY_ADDRESS
    names a cluster, that cluster is asked.

    For this machine it also estimates time and memory, from finished trainings in the same storage or from a
    matrix product that it times (docs/costs.md says how far off that was).

    With --cluster, the resources are those that the cluster file allows, and nothing of the cluster needs to be up. The
    plan then also has the memory of each process by ZeRO stage, and the nodes, GPU-hours and money of each stage
    (docs/costs.md). Settings that do not fit are refused, with the nearest ones that do. No weights are read: a
    model's config.json is enough. Prompts and answers count as long as the first rows of the data, in tokens of the
    first weak base, or from characters if its tokenizer is not here. --prompt-tokens and --answer-tokens replace both.

        ensemw2s plan quickstart
        ensemw2s plan quickstart --set training.workers=2
        ensemw2s plan quickstart --json
        ensemw2s plan quickstart --cluster cluster/aws.yaml \\
            --set training.gpus_per_worker=1 --set labeling.gpus_per_actor=1
    """
    with outcome(debug=debug):
        from ensemw2s.config import load_config

        loaded = load_config(config, set_)
        if costs.cluster is not None:
            from ensemw2s.costs import quote

            tokens = (costs.prompt_tokens, costs.answer_tokens)
            with before_work():
                found = quote.prepare(
                    loaded, costs.cluster, prices=costs.prices, measured=costs.measured, tokens=tokens
                )
            if json:
                from ensemw2s.costs.record import CostsRecord

                say(CostsRecord.of(found).model_dump_json(indent=2))
            else:
                quote.show(found, Output())
            return
        if alone := costs.without_cluster():
            raise ConfigError(f"{', '.join(alone)}: give --cluster FILE, too; these options are about its costs")
        _plan_here(loaded, as_json=json, debug=debug)


def _plan_here(loaded: Config, *, as_json: bool, debug: bool) -> None:
    """Prints the plan for this machine, or for the cluster that the config names."""
    from ensemw2s.cluster.connect import cluster_address
    from ensemw2s.cluster.resources import plan_resources
    from ensemw2s.costs.disk import disk
    from ensemw2s.costs.here import on_this_machine
    from ensemw2s.costs.needs import shapes
    from ensemw2s.pipeline import preflight
    from ensemw2s.pipeline.begun import as_begun
    from ensemw2s.pipeline.build import build_graph
    from ensemw2s.pipeline.plan import lay_out, parameters, resources_for
    from ensemw2s.pipeline.plan_print import print_plan
    from ensemw2s.pipeline.survey import survey

    with before_work():
        scan = preflight.check(loaded)
        loaded, said = as_begun(loaded)
        graph = build_graph(loaded)
        laid_out = lay_out(graph, survey(graph), parameters(graph))
        resources = resources_for(loaded, debug=debug)
        division = plan_resources(loaded, resources)
        address = cluster_address(loaded.cluster)
        here = on_this_machine(graph, laid_out, resources) if address is None else None
        takes = disk(graph, shapes(graph), division.lanes)
    free = preflight.free_bytes(graph.root)
    if as_json:
        from ensemw2s.costs.here import PlanHere
        from ensemw2s.pipeline.plan_record import PlanRecord

        plan_record = PlanRecord.of(laid_out, resources=resources, division=division, free_bytes=free, address=address)
        say(PlanHere(**dict(plan_record), rows=scan, here=here, disk=takes).model_dump_json(indent=2))
        return
    if said:
        say(said)
    print_plan(
        laid_out,
        Output(),
        resources=resources,
        division=division,
        free_bytes=free,
        address=address,
        more={"Rows": scan.words()} | (here.lines() if here is not None else {}) | {"Disk": takes.words()},
    )


def tune(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a search that was stopped.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget the trials of an earlier search in this folder; keep its stages.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Search the ensemble size, learning rates and other keys of a config with Ray Tune.

    The config's section `search` says which keys vary and how values are chosen (docs/search.md). Each trial boosts
    for the largest number of rounds considered, and is measured at every ensemble size on the way. Trials that do badly
    are stopped early. Only validation examples judge; test examples are never read. Stages that trials share are made
    once: data, pre-training, and rounds with equal settings.

    Results go to STORAGE/NAME/search: best.yaml, a config for `run`; trials.parquet, search.json and plots/.

        ensemw2s tune quickstart
        ensemw2s run runs/quickstart/search/best.yaml
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config import load_config
        from ensemw2s.pipeline import preflight
        from ensemw2s.progress import Progress
        from ensemw2s.search import space

        loaded = load_config(config, set_)
        with before_work():
            space.check(loaded)
            preflight.check(loaded)
        from ensemw2s.search import search

        search.run(loaded, resume=resume, fresh=fresh, debug=debug, progress=Progress(Output()))


def pilot(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    rows: Annotated[
        int, option("--rows", "Most examples that a model learns from.", min=20, max=100_000, show_default=True)
    ] = 200,
    fresh: options.Fresh = False,
    json: Annotated[bool, option("--json", "Print the figures as JSON, for programs, at the end.")] = False,
    debug: options.Debug = False,
) -> None:
    """Try a config on a few examples: is there a gap to recover, do the weak models agree, how long will it take?

    Makes a small run of it, in STORAGE/NAME-pilot: an expert for each weak base, at least two, and the strong model on
    easy examples alone and, where enough true answers to hard prompts are known, on these. It ends in a paragraph on
    what to expect of the whole run, and leaves its figures in pilot.json. The same command continues a pilot that was
    stopped. The small run's test examples may be those of the whole run: settings that were chosen after many pilots
    are chosen on them.

        ensemw2s pilot qa.yaml
        ensemw2s pilot qa.yaml --rows 100 --set models.strong.base=FOLDER
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config import load_config
        from ensemw2s.pilot import pilot as piloting
        from ensemw2s.pilot.words import paragraph
        from ensemw2s.pipeline import preflight
        from ensemw2s.progress import Progress

        loaded = load_config(config, set_)
        with before_work():
            preflight.check(loaded)
        found = piloting.run(loaded, rows, fresh=fresh, debug=debug, progress=Progress(Output()))
        say(f"\n{paragraph(found)}")
        if json:
            say(found.model_dump_json(indent=2))


def report(
    run_dir: options.RunFolder,
    debug: options.Debug = False,
) -> None:
    """Print a run's table again, and write its report.html and plots/ again.

    Reads only RUN_DIR/results.json, so a results.json that was copied from elsewhere is enough.

        ensemw2s report runs/quickstart
    """
    with outcome(debug=debug):
        from ensemw2s.evaluation.compare import read_results
        from ensemw2s.evaluation.report import print_table, write_report

        results = read_results(run_dir)
        html = write_report(results, run_dir)
        print_table(results, Output())
        say(f"\nreport: {remote.shown(html)}")


def compare(
    first: options.RunFolder,
    second: options.RunFolder,
    system: Annotated[
        str | None,
        option("--system", "System whose examples are shown. Default: the ensemble, else the first one."),
    ] = None,
    examples: Annotated[int, option("--examples", "Examples of each split to show.", min=0, show_default=True)] = 5,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Compare two runs: their systems side by side, and the examples on which they differ.

    Shows the exact match of every system that both runs have, on easy (ID) and hard (OOD) test examples, and the
    difference, second − first, with its 95 % bootstrap interval over the examples. It also counts the examples that a
    system answers in one run only, and shows some of them. With --json: all of this, with all such examples.

    Both runs must have the same test examples: the same `data`, and the same `seed` where examples are drawn. A
    comparison of two runs is one of two trainings. To compare settings over seeds, use `study`.

        ensemw2s compare runs/quickstart runs/mine
        ensemw2s compare runs/quickstart runs/mine --system student_ensemw2s --examples 20
        ensemw2s compare runs/quickstart runs/mine --json > difference.json
    """
    with outcome(debug=debug):
        from ensemw2s.config.systems import ENSEMW2S
        from ensemw2s.evaluation import compare as comparing

        found = comparing.compare(comparing.read(first), comparing.read(second))
        names = list(dict.fromkeys(row.system for row in found.systems))
        if system is not None and system not in names:
            raise ConfigError(f"--system {system}: both runs have {', '.join(names)}")
        if json:
            say(found.model_dump_json(indent=2))
            return
        chosen = system or (ENSEMW2S if ENSEMW2S in names else names[0])
        comparing.print_comparison(found, Output(), system=chosen, shown=examples)


def clean(
    run_dir: options.RunFolder,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be freed.")] = False,
    debug: options.Debug = False,
) -> None:
    """Free the disk of a finished run from weights that nobody needs any more.

    Deletes the weights of experts below rounds/, consensus/, baselines/ and generations/, which are needed only on the
    way to the figures. The ensemble has copies of its members. The ensemble, students, labels, records, figures and
    the cache of pre-trained models are kept. So the run can still be served and reported, and `run` with the same
    config has nothing to do. With another config, `run` trains again what it needs.

        ensemw2s clean runs/quickstart --dry-run
        ensemw2s clean runs/quickstart
    """
    with outcome(debug=debug):
        from ensemw2s.pipeline import clean as cleaning

        parts = cleaning.superfluous(run_dir) if dry_run else cleaning.clean(run_dir)
        for part in parts:
            say(f"{part.name}/  {part.size / 1e6:,.1f} MB  {part.what}")
        total = sum(part.size for part in parts)
        say(f"{'would free' if dry_run else 'freed'} {total / 1e6:,.1f} MB in {remote.shown(run_dir)}")
