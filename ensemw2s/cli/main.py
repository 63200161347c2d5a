"""The command line: arguments in, one call into the package, a table on stdout and an exit code out.

The commands stand in `runs`, `saved`, `publishing` and `serving`; here they are put together. A command imports what
it needs when it runs, so that `--help` answers at once. Their docstrings are the manual.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ensemw2s import __version__
from ensemw2s.cli import publishing, runs, saved, serving, studies
from ensemw2s.cli.parameters import spread

app = typer.Typer(
    name="ensemw2s",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done; 1 the work failed, for the reason on stderr; 2 bad usage or config; 130 Ctrl-C; "
    "143 SIGTERM.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ensemw2s {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Weak-to-strong generalization: a boosted ensemble of weak experts labels hard data for a strong student.

    One YAML file describes a run. The run starts from easy examples with answers and hard examples without. It trains
    weak experts on the easy examples; each round gives more weight to the tokens that earlier rounds got wrong. The
    experts vote on every token, and this ensemble labels the hard prompts. A strong student is trained on those
    labels. All of them are compared with baselines. Training and decoding run on Ray, on this machine or on a cluster
    that the config names.

        ensemw2s plan quickstart       show what would run, and on what
        ensemw2s run quickstart        run it, or continue it
        ensemw2s init mine             write mine.yaml, a config to edit

    With `ensemw2s --install-completion`, your shell completes commands and options.
    """


PANELS = {
    "Runs": (
        runs.init,
        runs.plan,
        runs.pilot,
        runs.run,
        runs.report,
        runs.compare,
        runs.tune,
        studies.study,
        runs.clean,
    ),
    "Saved models": (saved.label, saved.evaluate, saved.models),
    "Publishing": (publishing.export, publishing.push),
    "Serving": (serving.serve, serving.ask, serving.chat),
}

for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(spread(command))


def main() -> None:
    """Entry point of the `ensemw2s` command."""
    app()
