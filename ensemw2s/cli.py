"""The command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.callback()
def root() -> None:
    pass


@app.command()
def run(
    config: Path,
    set_: Annotated[list[str] | None, typer.Option("--set")] = None,
    fresh: bool = False,
    debug: bool = False,
) -> None:
    from ensemw2s import pipeline
    from ensemw2s.config import load_config

    pipeline.run(load_config(config, set_), fresh=fresh, debug=debug)


def main() -> None:
    app()
