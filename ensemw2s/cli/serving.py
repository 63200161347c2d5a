"""Commands on an endpoint: host models, and ask one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ensemw2s import env
from ensemw2s.cli import options
from ensemw2s.cli.outcome import before_work, outcome, say
from ensemw2s.errors import ConfigError


def serve(
    ensemble: Annotated[
        str | None, typer.Option(metavar="DIR", show_default=False, help="Ensemble to host, under the name ensemble.")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME=DIR", show_default=False, help="Model to host under NAME. Repeatable."),
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option("--settings", metavar="FILE", show_default=False, help="YAML file with models, limits and more."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    slots: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Requests per forward pass of a replica.")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Most replicas of a model under load.")
    ] = None,
    api_keys: Annotated[
        str | None,
        typer.Option(
            "--api-keys",
            metavar="FILE",
            show_default=False,
            help="File with one API key per line, beside those in ENSEMW2S_API_KEYS. Default: no key is needed.",
        ),
    ] = None,
    watch: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=1, show_default=False, help="How often to look for changed model folders."),
    ] = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts into the replicas' logs.")] = False,
    detach: Annotated[
        bool, typer.Option("--detach", help="Exit when it is up. It stays on the cluster until `serve shutdown`.")
    ] = False,
    address: options.Address = None,
    cpus: options.Cpus = None,
    debug: options.Debug = False,
) -> None:
    """Host ensembles, students and experts: the OpenAI API, a page that shows the votes, metrics.

    /v1/completions and /v1/chat/completions answer as a whole or as a stream. A request with
    "ensemble": {"votes": 3} also gets the vote of each expert on each token. / is a page for the browser, /docs
    describes the API, /metrics is for Prometheus (docs/serving.md). The endpoint runs until Ctrl-C or SIGTERM, and
    finishes the requests under way.

    For a model in a run's folder, chat messages are rendered as in that run. With --watch, a folder that has changed is
    loaded beside the old one, and no request is lost. --detach leaves the endpoint on a running cluster; the same
    command with other models or options updates it.

        ensemw2s serve --ensemble runs/quickstart/ensemble
        ensemw2s serve --ensemble runs/quickstart/ensemble --model student=runs/quickstart/students/student_ensemw2s
    """
    with outcome(debug=debug):
        from ensemw2s.config import ClusterConfig
        from ensemw2s.serving import endpoint
        from ensemw2s.serving.settings import ServeSettings

        if not (ensemble or model) and (slots or max_replicas):
            raise ConfigError(
                "--slots and --max-replicas go with --ensemble and --model; in a settings file, set them for each model"
            )
        named = endpoint.hosted(ensemble, model, slots=slots, max_replicas=max_replicas)
        wanted = endpoint.read_settings(settings) if settings is not None else None
        models = [*(wanted.models if wanted else []), *named]
        if not models:
            raise ConfigError("nothing to host: give --ensemble DIR, --model NAME=DIR or --settings FILE")
        base = wanted.model_dump() if wanted else {}
        given = {"api_keys_file": api_keys} if api_keys is not None else {}
        merged = {**base, **given, "models": [one.model_dump() for one in models]}
        if log_prompts:
            merged["log_prompts"] = True
        with before_work():
            checked = endpoint.check(ServeSettings.model_validate(merged))
        where = ClusterConfig(address=address, cpus=cpus)
        if detach:
            endpoint.deploy(checked, where, host, port, say, debug=debug)
        else:
            endpoint.serve(checked, where, host, port, say, watch=watch, debug=debug)


def ask(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", show_default=False, help="Your message.")],
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(show_default=False, help="Which model to ask. Default: the endpoint's first.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[
        int | None, typer.Option(show_default=False, help="Seed of the sampling, to get the same answer again.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(envvar=env.API_KEY.name, show_default=False, help="API key.")] = None,
    debug: options.Debug = False,
) -> None:
    """Ask a running endpoint, and print the answer as it comes.

    Sends PROMPT as one chat message to an endpoint that `ensemw2s serve` has started. The answer is printed token by
    token as the model decodes it. By default the likeliest token is taken each time; a --temperature above 0 samples.

        ensemw2s ask "sort up 3 1 2 ="
        ensemw2s ask "sort up 3 1 2 =" --model student --temperature 0.7 --seed 1
    """
    with outcome(debug=debug):
        from ensemw2s.serving.endpoint import ask as stream

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
