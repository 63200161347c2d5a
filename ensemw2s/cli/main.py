"""The command line: arguments in, one call into the package, a table on stdout and an exit code out.

A command imports what it needs when it runs, so that `--help` answers at once. Their docstrings are the manual.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ensemw2s import __version__
from ensemw2s.cli import options
from ensemw2s.cli.outcome import Output, before_work, outcome
from ensemw2s.errors import ArtifactError, ConfigError
from ensemw2s.storage import remote

if TYPE_CHECKING:
    from ensemw2s.labeling.inputs import Settings
    from ensemw2s.labeling.intake import FileSource

app = typer.Typer(
    name="ensemw2s",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 the work failed, for the reason on stderr; 2 bad usage or config; 130 Ctrl-C.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ensemw2s {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Weak-to-strong generalization: boosted weak experts label hard data, and a strong student learns from it.

    One YAML file describes a run. It takes easy examples with answers and hard ones without; trains weak experts on
    the easy ones, each round weighing the tokens that earlier rounds got wrong; combines the experts token by token
    into an ensemble; labels the hard prompts with it; trains a strong student on these labels; and compares all of it
    with baselines. Training and decoding run on Ray, on this machine or on a cluster that the config names.

        ensemw2s plan configs/quickstart.yaml      what would run, and on what
        ensemw2s run configs/quickstart.yaml       run it, or go on with it
        ensemw2s report runs/quickstart            its table and report.html again
    """


@app.command(rich_help_panel="Runs")
def run(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete stages that were made with another config, and redo them.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Run a config to its end, or go on where an earlier run of it stopped.

    Reads the config and the data, models and tokenizers that it names. All of these, and whether the work fits on
    this machine, are checked before anything starts. Leaves the folder STORAGE/NAME with every stage in it, among
    them ensemble/, labels/, students/, results.json, report.html and plots/ (docs/run-directory.md).

    A stage that is done is not done again: the same command continues a run that was killed, and does nothing for
    one that is complete. A stage that was made with another config stops the run and says what changed, unless
    --fresh is given.

        ensemw2s run configs/quickstart.yaml
        ensemw2s run configs/quickstart.yaml --set name=three --set boosting.rounds=3
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config import load_config
        from ensemw2s.pipeline import preflight
        from ensemw2s.pipeline.run import run as run_pipeline
        from ensemw2s.progress import Progress

        loaded = load_config(config, set_)
        with before_work():
            preflight.check(loaded)
        run_pipeline(loaded, fresh=fresh, debug=debug, progress=Progress(Output()))


@app.command(rich_help_panel="Runs")
def plan(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    cluster_file: options.ClusterFile = None,
    prices: options.PricesFile = None,
    measured: options.MeasuredRun = None,
    prompt_tokens: options.PromptTokens = None,
    answer_tokens: options.AnswerTokens = None,
    debug: options.Debug = False,
) -> None:
    """Print what `run` would do: stages, sizes, resources, and what is done already.

    Shows every stage in order as done, to do, or changed (made with another config, and what differs), with examples,
    models, parameters, epochs and optimizer steps where they are known. All that `run` checks before it starts is
    checked here, too. Changes nothing on disk and starts no Ray. The resources are those of this machine; if the
    config or RAY_ADDRESS names a cluster, that cluster is asked for its own.

    With --cluster, a file of `ray up`, the resources are those that this cluster may grow to, and nothing of it needs
    to be there. No weights are looked at: of models config.json is enough. Examples are as long as the first rows of
    the data, counted by the tokenizer of the first weak base or, where that is not at hand, by characters; with both
    --prompt-tokens and --answer-tokens none is looked for. It also prints the memory of each process by ZeRO stage,
    and nodes, GPU-hours and money of each stage (cluster/README.md). What does not fit on the nodes is refused, with
    the nearest settings that do.

        ensemw2s plan configs/quickstart.yaml
        ensemw2s plan configs/quickstart.yaml --set training.workers=2
        ensemw2s plan configs/quickstart.yaml --cluster cluster/aws.yaml \\
            --set training.gpus_per_worker=1 --set labeling.gpus_per_actor=1
    """
    with outcome(debug=debug):
        from ensemw2s.cluster.connect import cluster_address
        from ensemw2s.cluster.resources import plan_resources
        from ensemw2s.config import load_config
        from ensemw2s.pipeline import preflight
        from ensemw2s.pipeline.build import build_graph
        from ensemw2s.pipeline.plan import lay_out, parameters, resources_for, survey
        from ensemw2s.pipeline.plan_print import print_plan

        loaded = load_config(config, set_)
        if cluster_file is not None:
            from ensemw2s.costs import command

            tokens = (prompt_tokens, answer_tokens)
            with before_work():
                found = command.prepare(loaded, cluster_file, prices=prices, measured=measured, tokens=tokens)
            command.show(found, Output())
            return
        given = {"--prices": prices, "--measured": measured, "--prompt-tokens": prompt_tokens}
        given["--answer-tokens"] = answer_tokens
        if alone := [name for name, value in given.items() if value is not None]:
            raise ConfigError(f"{', '.join(alone)}: only with --cluster FILE, whose costs are asked for")
        with before_work():
            preflight.check(loaded)
            graph = build_graph(loaded)
            laid_out = lay_out(graph, survey(graph), parameters(graph))
            resources = resources_for(loaded, debug=debug)
            division = plan_resources(loaded, resources)
        print_plan(
            laid_out,
            Output(),
            resources=resources,
            division=division,
            free_bytes=preflight.free_bytes(graph.root),
            address=cluster_address(loaded.cluster),
        )


@app.command(rich_help_panel="Runs")
def tune(
    config: options.ConfigFile,
    set_: options.Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a search that was stopped.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what an earlier search in this folder found; its stages are reused.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Search ensemble size, learning rates and other keys of a config, on Ray Tune.

    The config's section `search` says which keys vary and how points are chosen (docs/search.md). Each trial boosts as
    many rounds as the search considers; every ensemble size is measured on the way, and a trial that does badly is
    stopped early. Judged by validation examples only: no test example is read. Stages that trials have in common (data,
    pre-training, rounds with the same settings) are made once.

    Leaves STORAGE/NAME/search with best.yaml, a config that `run` takes as it is, trials.parquet, search.json and
    plots/. A search that was stopped goes on with --resume.

        ensemw2s tune configs/quickstart.yaml
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


@app.command(rich_help_panel="Runs")
def study(
    config: Annotated[Path, typer.Argument(metavar="STUDY", show_default=False, help="YAML file; see docs/study.md.")],
    set_: options.Overrides = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only list the cells, and what is done; change nothing.")
    ] = False,
    only_report: Annotated[
        bool, typer.Option("--report", help="Only write the report, of the cells that are done.")
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Run a config over tasks, variants and seeds, and say what holds over all of them.

    The file has a base config, tasks and variants (changes to it, by dotted key), and seeds; each combination is a
    cell, a whole run. Cells run one after another on one Ray and share what they have in common: data, pre-trained
    bases, equal rounds and baselines are made once. Bagging, the best single expert and one with the budget of all
    rounds are part of every cell, whatever its config says.

    Leaves STORAGE/NAME with study.parquet (a row for each cell, system and split), study.json, study.html and cells/.
    The page has means with 95 % intervals over seeds, differences from the baselines with permutation tests, curves
    over rounds, what was recovered of the performance gap, what tokens bought, and how the experts' errors go together.
    The number of rounds is chosen on validation; the one that tests best is never used.

    The same command goes on with a study that was stopped, and does nothing for one that is complete. A cell that fails
    is reported (exit code 1) after all others have run, and tried again the next time. With --set, keys of the base
    config begin with base.

        ensemw2s study configs/studies/tiny.yaml --plan
        ensemw2s study configs/studies/tiny.yaml
        ensemw2s study configs/studies/tiny.yaml --set seeds=[0] --set base.boosting.rounds=2 --set name=small
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.config.study import load_study
        from ensemw2s.progress import Progress
        from ensemw2s.study import study as studies

        loaded = load_study(config, set_)
        with before_work():
            cells = studies.check(loaded)
        if plan:
            from ensemw2s.study.planning import print_plan, survey

            print_plan(survey(cells), Output())
        elif only_report:
            studies.show(studies.write(loaded, cells, {}), loaded, Output())
        else:
            studies.run(loaded, debug=debug, progress=Progress(Output()))


@app.command(rich_help_panel="Runs")
def report(
    run_dir: options.RunFolder,
    debug: options.Debug = False,
) -> None:
    """Print a run's table again, and write its report.html and plots/ again.

    Reads RUN_DIR/results.json and nothing else, so it works on a results.json that was copied from elsewhere, too.

        ensemw2s report runs/quickstart
    """
    with outcome(debug=debug):
        from ensemw2s.evaluation.report import print_table, write_report
        from ensemw2s.storage import store

        path = run_dir / "results.json"
        if not remote.exists(path):
            raise ConfigError(
                f"{remote.shown(run_dir)} has no results.json; a run writes it at its end (ensemw2s run CONFIG)"
            )
        results = store.read_json(path)
        if not isinstance(results, dict) or not isinstance(results.get("systems"), dict):
            raise ArtifactError(f"{remote.shown(path)} is not the results.json of a run: it has no systems")
        html = write_report(results, run_dir)
        print_table(results, Output())
        _say(f"\nreport: {remote.shown(html)}")


@app.command(rich_help_panel="Saved models")
def label(
    ensemble: Annotated[Path, options.folder("--ensemble", "Folder with ensemble.json.")],
    output: Annotated[Path, options.folder("--output", "Folder for the labels; a new one, or to continue.")],
    input_: options.Inputs = None,
    dataset: options.Dataset = None,
    split: options.DatasetSplit = "train",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Delete labels in the folder that were made otherwise, and label again.")
    ] = False,
    debug: options.Debug = False,
    prompt_column: options.PromptColumn = "prompt",
    id_column: options.IdColumn = None,
    max_rejected: options.MaxRejected = None,
    min_agreement: options.MinAgreement = None,
    min_consistency: options.MinConsistency = None,
    keep_fraction: options.KeepFraction = None,
    prompt_template: options.PromptTemplate = None,
    chat_template: options.ChatTemplate = None,
    max_new_tokens: options.MaxNewTokens = None,
    samples: options.Samples = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    soft_top_k: options.SoftTopK = None,
    batch_size: options.BatchSize = None,
    chunk_size: options.ChunkSize = None,
    actors: options.Actors = None,
    cpus_per_actor: options.ActorCpus = None,
    gpus_per_actor: options.ActorGpus = None,
    address: options.Address = None,
    cpus: options.Cpus = None,
) -> None:
    """Label prompts with a saved ensemble.

    Reads rows with a prompt, and streams them through a pool of actors that each hold the ensemble. Leaves
    part-*.parquet in the output folder, each put there whole, so that other programs can read them while it runs: id,
    prompt, answer, token_ids, logprob (of the whole answer), agreement (share of the vote behind each token,
    averaged), vote_entropy, n_tokens, finish_reason (stop or length), token_agreement and token_entropy. With them
    summary.json (counts and histograms) and labels.json (what they were made from). Rows that cannot be labelled go to
    rejected/ with the reason. With a filter (--min-agreement, --min-consistency, --keep-fraction), the labels that pass
    are in kept/ too.

    The same command continues after a stop and labels only what is missing. Labels of another ensemble, input or
    option are never mixed in; another filter, or another number of actors, is no reason to label again.

    Prompts must look as they did in training. Where the ensemble lies in a run's folder, the template and the
    settings of decoding are those of that run's config.yaml; elsewhere give --prompt-template and --max-new-tokens.

        ensemw2s label --ensemble runs/quickstart/ensemble --input prompts.jsonl --output labels
        ensemw2s label --ensemble E --input s3://bucket/prompts --output s3://bucket/labels --min-agreement 0.8
    """
    with outcome(debug=debug, resumable=True):
        from ensemw2s.cluster.connect import check_lasting
        from ensemw2s.config import ClusterConfig, LabelFilter
        from ensemw2s.labeling import command
        from ensemw2s.progress import Progress

        settings = _settings(
            str(ensemble),
            _source(input_, dataset, split, {"prompt": prompt_column, "id": id_column}),
            prompt_template=prompt_template,
            chat_template=chat_template,
            max_new_tokens=max_new_tokens,
            samples=samples,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            soft_top_k=soft_top_k,
            batch_size=batch_size,
            chunk_size=chunk_size,
            max_rejected=max_rejected,
            max_actors=actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
        )
        filters = {
            "min_agreement": min_agreement,
            "min_consistency": min_consistency,
            "keep_fraction": keep_fraction,
        }
        wanted = LabelFilter(**{key: value for key, value in filters.items() if value is not None})
        work = command.LabelWork(ensemble, output, settings, ClusterConfig(address=address, cpus=cpus), wanted)
        with before_work():
            check_lasting(output, "--output")
            waiting = command.prepare(work, fresh=fresh)
        if waiting:
            command.label(work, Progress(Output()), debug=debug)
        kept = command.keep(work)
        _say(command.summary(output, kept) + ("" if waiting else "; nothing to do"))


@app.command(rich_help_panel="Saved models")
def evaluate(
    model: Annotated[
        str, typer.Option(metavar="DIR", show_default=False, help="Ensemble, model or adapters; or a hub id.")
    ],
    input_: options.Inputs = None,
    dataset: options.Dataset = None,
    split: options.DatasetSplit = "train",
    json: Annotated[Path | None, options.file("--json", "Write the figures there, too.")] = None,
    debug: options.Debug = False,
    prompt_column: options.PromptColumn = "prompt",
    answer_column: options.AnswerColumn = "answer",
    choices_column: options.ChoicesColumn = None,
    id_column: options.IdColumn = None,
    prompt_template: options.PromptTemplate = None,
    chat_template: options.ChatTemplate = None,
    max_new_tokens: options.MaxNewTokens = None,
    batch_size: options.BatchSize = None,
    actors: options.Actors = None,
    cpus_per_actor: options.ActorCpus = None,
    gpus_per_actor: options.ActorGpus = None,
    address: options.Address = None,
    cpus: options.Cpus = None,
) -> None:
    """Evaluate a saved ensemble, expert or student on labelled examples.

    Reads rows with a prompt and its true answer. Prints the exact match of greedy answers with its 95 % bootstrap
    interval, and under teacher forcing the token accuracy, the negative log-likelihood a token and, with
    --choices-column, how often the true option is the likeliest. Leaves nothing but the file of --json, beside which
    the converted input lies meanwhile on a cluster, for all nodes to read.

    Where the model lies in a run's folder, template and settings of decoding are those of that run's config.yaml.

        ensemw2s evaluate --model runs/quickstart/ensemble --input test.jsonl
        ensemw2s evaluate --model runs/quickstart/students/student_ensemw2s --input test.jsonl --json student.json
    """
    with outcome(debug=debug):
        from ensemw2s.cluster.connect import check_lasting
        from ensemw2s.config import ClusterConfig
        from ensemw2s.evaluation import saved
        from ensemw2s.progress import Progress
        from ensemw2s.storage import store

        columns = {"prompt": prompt_column, "answer": answer_column, "choices": choices_column, "id": id_column}
        settings = _settings(
            model,
            _source(input_, dataset, split, columns),
            prompt_template=prompt_template,
            chat_template=chat_template,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            max_actors=actors,
            cpus_per_actor=cpus_per_actor,
            gpus_per_actor=gpus_per_actor,
        )
        shared = None if json is None else json.absolute().parent
        work = saved.EvaluateWork(model, settings, ClusterConfig(address=address, cpus=cpus), shared)
        with before_work():
            if json is not None:
                check_lasting(json, "--json")
            if json is not None and not (remote.uri(json) or json.absolute().parent.is_dir()):
                raise ConfigError(f"--json {json}: there is no folder {json.absolute().parent}")
            voter = saved.prepare(work)
        found = saved.evaluate(work, voter, Progress(Output()), debug=debug)
        saved.print_figures(found, Output())
        if json is not None:
            json.parent.mkdir(parents=True, exist_ok=True)  # of a copy
            store.put_json(json, found)


@app.command(rich_help_panel="Saved models")
def models(
    paths: Annotated[
        list[str] | None, typer.Argument(metavar="[MODEL]...", show_default=False, help="Folders or hub ids.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """List the embedded models, or the facts of others.

    Without arguments: the tiny family that a config names as tiny-weak and tiny-strong, for machines with no model
    hub; a run pre-trains them itself. With folders (models, LoRA adapters, ensembles) or hub ids: parameters,
    vocabulary, context, architecture, and a hash of the tokenizer. Models whose hash is equal can vote together.

        ensemw2s models
        ensemw2s models runs/quickstart/ensemble runs/quickstart/students/student_ensemw2s
    """
    with outcome(debug=debug):
        from ensemw2s.cli.models import facts, print_embedded, print_facts

        if paths:
            with before_work():
                found = [one for path in paths for one in facts(path)]
            print_facts(found, Output())
        else:
            print_embedded(Output())


@app.command(rich_help_panel="Serving")
def serve(
    ensemble: Annotated[
        str | None, typer.Option(metavar="DIR", show_default=False, help="Ensemble to host, by the name ensemble.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=DIR", show_default=False, help="Another one, by that name; repeatable."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE", show_default=False, help="YAML with models, limits and the rest."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    slots: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Requests in a forward pass of a replica.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Replicas of a model under load.")
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            "--api-keys", metavar="FILE", show_default=False, help="API keys, one a line; or ENSEMW2S_API_KEYS."
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, show_default=False, help="Look so often whether folders have changed."),
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the replicas' logs.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Leave once it is up; it stays on the cluster until `serve shutdown`.")
    ] = False,
    address: options.Address = None,
    cpus: options.Cpus = None,
    debug: options.Debug = False,
) -> None:
    """Host ensembles, students and experts: the OpenAI API, a page that shows the votes, metrics.

    /v1/completions and /v1/chat/completions answer, as a whole or as a stream; a request with "ensemble": {"votes": 3}
    is told how each expert voted at each token. / is a page for the browser, /docs describes the API, /metrics is for
    Prometheus (docs/serving.md). Runs until Ctrl-C or SIGTERM, and then answers what is under way to its end.

    Where a model lies in a run's folder, chat messages are rendered as in that run. With --watch, a folder whose
    content has changed is loaded beside the old one, and no request is lost. With --detach it is left to a cluster that
    is there already; the same command with other models or options updates it.

        ensemw2s serve --ensemble runs/quickstart/ensemble
        ensemw2s serve --ensemble runs/quickstart/ensemble --model student=runs/quickstart/students/student_ensemw2s
    """
    with outcome(debug=debug):
        from ensemw2s.config import ClusterConfig
        from ensemw2s.serving import command
        from ensemw2s.serving.settings import ServeSettings

        if not (ensemble or model) and (slots or max_replicas):
            raise ConfigError(
                "--slots and --max-replicas are about --ensemble and --model; a file of settings has its own"
            )
        named = command.hosted(ensemble, model, slots=slots, max_replicas=max_replicas)
        wanted = command.read_settings(settings) if settings is not None else None
        models = [*(wanted.models if wanted else []), *named]
        if not models:
            raise ConfigError("nothing to host: give --ensemble DIR, --model NAME=DIR or --settings FILE")
        base = wanted.model_dump() if wanted else {}
        given = {"api_keys_file": api_keys} if api_keys is not None else {}
        merged = {**base, **given, "models": [one.model_dump() for one in models]}
        if log_prompts:
            merged["log_prompts"] = True
        with before_work():
            checked = command.check(ServeSettings.model_validate(merged))
        where = ClusterConfig(address=address, cpus=cpus)
        if detach:
            command.deploy(checked, where, host, port, _say, debug=debug)
        else:
            command.serve(checked, where, host, port, _say, watch=watch, debug=debug)


@app.command(rich_help_panel="Serving")
def ask(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", show_default=False, help="The message.")],
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(show_default=False, help="Which of its models; none: the first.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, show_default=False, help="Longest answer in tokens.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: the likeliest token.")] = 0.0,
    seed: Annotated[int | None, typer.Option(show_default=False, help="Of a drawn answer.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="ENSEMW2S_API_KEY", show_default=False, help="API key.")] = None,
    debug: options.Debug = False,
) -> None:
    """Ask an endpoint, and print the answer as it comes.

    ensemw2s ask "sort up 3 1 2 ="
    """
    with outcome(debug=debug):
        from ensemw2s.serving.command import ask as stream

        body = {
            "messages": [{"role": "user", "content": prompt}],
            "model": model,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        for text in stream(url, body, api_key):
            typer.echo(text, nl=False)
        typer.echo()


def _source(inputs: list[str] | None, dataset: str | None, split: str, columns: dict[str, Any]) -> FileSource:
    """The input that was asked for: files, or a data set."""
    from ensemw2s.config import Columns, FilesSource, HuggingFaceSource

    if bool(inputs) == (dataset is not None):
        raise ConfigError("the input is missing or there are two: give --input PATH, or --dataset NAME")
    if dataset is not None:
        return HuggingFaceSource(path=dataset, split=split, columns=Columns(**columns))
    return FilesSource(paths=inputs or [], columns=Columns(**columns))


def _settings(model: str, source: FileSource, **given: Any) -> Settings:
    """The settings of the run that the model lies in, or defaults, with the options on top; says which."""
    from ensemw2s.labeling.inputs import settings_for

    settings = settings_for(model, source, given)
    origin = "defaults (the model lies in no run's folder)"
    if settings.run is not None:
        origin = f"those of {remote.shown(settings.run / 'config.yaml')}"
    chat = ", chat template" if settings.data.chat_template else ""
    longest = settings.labeling.max_new_tokens
    _say(f"settings: {origin} and options: prompt template {settings.data.prompt_template!r}{chat}, ", end="")
    _say(f"at most {longest} tokens an answer")
    return settings


def _say(text: str, end: str = "\n") -> None:
    Output().print(text, end=end, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the `ensemw2s` command."""
    app()
