"""Arguments and options that several commands share: their names, bounds and help, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ensemw2s.errors import ConfigError
from ensemw2s.storage import remote


def option(name: str, text: str, panel: str | None = None, **rest: Any) -> Any:
    """An option that shows its default only where asked to: for most, the help says what happens without it."""
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=rest.pop("show_default", False), **rest)


def _place(text: str) -> Path:
    """A path or a URI, as a path."""
    try:
        return remote.local(text)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def folder(name: str, text: str) -> Any:
    """A folder, here or in object storage."""
    return option(name, text, metavar="DIR", parser=_place)


def file(name: str, text: str) -> Any:
    """A file, here or in object storage."""
    return option(name, text, metavar="PATH", parser=_place)


CONFIG_HELP = "Name of a recipe (`ensemw2s init` lists them), or a YAML file (docs/config.md has every key)."

RunFolder = Annotated[
    Path,
    typer.Argument(metavar="RUN_DIR", show_default=False, help="Folder of a finished run.", parser=_place),
]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", show_default=False, help=CONFIG_HELP, parser=_place)]
ConfigOption = Annotated[Path, option("--config", CONFIG_HELP, metavar="CONFIG", parser=_place)]
StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        show_default=False,
        help="Name of a study recipe (`ensemw2s init` lists them), or a YAML file (docs/study.md).",
        parser=_place,
    ),
]
Overrides = Annotated[
    list[str] | None,
    option("--set", "Replace a value of the config, as in boosting.rounds=3. Repeatable.", metavar="KEY=VALUE"),
]
Results = Annotated[
    list[Path] | None,
    option(
        "--from",
        "Do not run cells whose rows are in these results: a study.parquet, or the folder that has it. Repeatable.",
        metavar="FILE",
        parser=_place,
    ),
]
Fresh = Annotated[bool, option("--fresh", "Delete what was made with another config, and start anew.")]
Debug = Annotated[bool, option("--debug", "Show stack traces, and the logs of Ray and its workers.")]
Json = Annotated[bool, option("--json", "Print JSON, for programs, in place of tables.")]

Address = Annotated[
    str | None,
    option(
        "--address",
        "Ray cluster to join, or auto. Default: RAY_ADDRESS, else a Ray started here.",
        "Resources",
    ),
]
Cpus = Annotated[int | None, option("--cpus", "CPUs of a Ray started here. Default: all.", "Resources", min=1)]
