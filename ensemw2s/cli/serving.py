"""Commands on an endpoint: host models, and ask one."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ensemw2s import env
from ensemw2s.cli import options
from ensemw2s.cli.options import option
from ensemw2s.cli.outcome import before_work, outcome, say
from ensemw2s.errors import ConfigError, ResourceError

if TYPE_CHECKING:
    from ensemw2s.serving.settings import ServeSettings


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What `serve` is told."""

    ensemble: Annotated[
        str | None, option("--ensemble", "Ensemble to host, under the name ensemble.", metavar="DIR")
    ] = None
    model: Annotated[
        list[str] | None, option("--model", "Model to host under NAME. Repeatable.", metavar="NAME=DIR")
    ] = None
    settings_file: Annotated[
        Path | None, option("--settings", "YAML file with models, limits and more.", metavar="FILE")
    ] = None
    host: Annotated[str, option("--host", "Address to listen on.", show_default=True)] = "127.0.0.1"
    port: Annotated[int, option("--port", "Port to listen on.", min=1, max=65535, show_default=True)] = 8000
    slots: Annotated[int | None, option("--slots", "Requests per forward pass of a replica.", min=1)] = None
    max_replicas: Annotated[int | None, option("--max-replicas", "Most replicas of a model under load.", min=1)] = None
    api_keys: Annotated[
        str | None,
        option(
            "--api-keys",
            f"File with one API key per line, beside those in {env.API_KEYS.name}. Default: no key is needed.",
            metavar="FILE",
        ),
    ] = None
    insecure: Annotated[bool, option("--insecure", "Let everybody in who can reach the address, without keys.")] = False
    watch: Annotated[
        float | None, option("--watch", "How often to look for changed model folders.", metavar="SECONDS", min=1)
    ] = None
    log_prompts: Annotated[bool, option("--log-prompts", "Write prompts into the replicas' logs.")] = False
    detach: Annotated[
        bool, option("--detach", "Exit when it is up. It stays on the cluster until `serve shutdown`.")
    ] = False
    address: options.Address = None
    cpus: options.Cpus = None

    def settings(self) -> ServeSettings:
        """The settings of the file, if there is one, with the options on top."""
        from ensemw2s.serving import endpoint
        from ensemw2s.serving.settings import ServeSettings

        if not (self.ensemble or self.model) and (self.slots or self.max_replicas):
            raise ConfigError(
                "--slots and --max-replicas go with --ensemble and --model; in a settings file, set them for each model"
            )
        named = endpoint.hosted(self.ensemble, self.model, slots=self.slots, max_replicas=self.max_replicas)
        wanted = endpoint.read_settings(self.settings_file) if self.settings_file is not None else None
        models = [*(wanted.models if wanted else []), *named]
        if not models:
            raise ConfigError("nothing to host: give --ensemble DIR, --model NAME=DIR or --settings FILE")
        merged = wanted.model_dump() if wanted else {}
        merged["models"] = [one.model_dump() for one in models]
        if self.api_keys is not None:
            merged["api_keys_file"] = self.api_keys
        if self.insecure:
            merged["insecure"] = True
        if self.log_prompts:
            merged["log_prompts"] = True
        return ServeSettings.model_validate(merged)


def serve(given: ServeOptions, debug: options.Debug = False) -> None:
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

        settings = given.settings()
        with before_work():
            checked = endpoint.check(settings)
        where = ClusterConfig(address=given.address, cpus=given.cpus)
        if given.detach:
            endpoint.deploy(checked, where, given.host, given.port, say, debug=debug)
        else:
            endpoint.serve(checked, where, given.host, given.port, say, watch=given.watch, debug=debug)


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


def chat(
    url: Annotated[str, typer.Option(help="The endpoint.")] = "http://127.0.0.1:8000",
    model: Annotated[
        str | None, typer.Option(show_default=False, help="Which model to talk to. Default: the endpoint's first.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(show_default=False, help="Instruction before the first message.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Longest answer, in tokens.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 takes the likeliest token.")] = 0.0,
    api_key: Annotated[str | None, typer.Option(envvar=env.API_KEY.name, show_default=False, help="API key.")] = None,
    debug: options.Debug = False,
) -> None:
    """Talk to a model of a running endpoint, in turns.

    Needs a model whose tokenizer has a chat template. Each line that you enter is a message, and the answer is printed
    as it comes. Ctrl-D ends the conversation.

        ensemw2s chat --model student --system "Answer in one sentence."
    """
    with outcome(debug=debug):
        from ensemw2s.serving.endpoint import ask as stream
        from ensemw2s.serving.endpoint import model_card

        card = model_card(url, model, api_key)
        if not card["chat_template"]:
            raise ConfigError(
                f"model {card['id']} has no chat template, so it answers one message at a time: use `ensemw2s ask`"
            )
        messages = [{"role": "system", "content": system}] if system else []
        while (line := _line()) is not None:
            if not line.strip():
                continue
            messages.append({"role": "user", "content": line})
            body = {"messages": messages, "model": model, "max_tokens": max_tokens, "temperature": temperature}
            answer = ""
            try:
                for text in stream(url, body, api_key):
                    typer.echo(text, nl=False)
                    answer += text
            except ResourceError as error:
                if not _is_terminal():
                    raise
                typer.echo(f"{error}\nThe message is not part of the conversation.", err=True)
                messages.pop()
                continue
            typer.echo()
            messages.append({"role": "assistant", "content": answer})


def _line() -> str | None:
    """What the user enters; None at the end."""
    with suppress(ImportError):
        import readline  # noqa: F401  # `input` then knows the arrow keys
    try:
        return input("> ")
    except EOFError:
        typer.echo()
        return None


def _is_terminal() -> bool:
    return sys.stdin.isatty()
