"""MkDocs hook: writes two pages of the reference while the site is built.

The commands of `ensemw2s.cli.main` become cli.md, the variables of `ensemw2s.env` become environment.md. They are not
stored, so they cannot be out of date.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from ensemw2s import env
from ensemw2s.cli.main import app

INTRODUCTION = """\
# Command line

`ensemw2s --help` and `ensemw2s COMMAND --help` print the same text in a terminal. `python -m ensemw2s` is the same
command.

| Exit code | Meaning |
|---|---|
| 0 | The work is done. |
| 1 | The work failed. stderr says why; `--debug` adds the trace. |
| 2 | Wrong usage, or a mistake in the config, the data or the models. Nothing was started. |
| 130 | You pressed Ctrl-C. |
| 143 | Somebody sent SIGTERM. |
"""


VARIABLES = """\
# Environment variables

A run is described by its config. Environment variables are for secrets, for what differs from node to node, and for
settings of libraries. Credentials of object storage, `HF_HOME`, `CUDA_VISIBLE_DEVICES` and the like are read by the
libraries themselves.

"""


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the generated pages to those on disk."""
    files.append(File.generated(config, "cli.md", content=page()))
    files.append(File.generated(config, "environment.md", content=VARIABLES + env.table()))
    return files


def page() -> str:
    """The whole page as Markdown."""
    commands = get_command(app).commands.values()
    return "\n".join([INTRODUCTION, *(line for command in commands for line in _section(command))])


def _section(command: typer.core.TyperCommand) -> Iterator[str]:
    """One command: its manual, then a table of its arguments and options."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = ["ensemw2s", command.name or "", *(_argument(param) for param in arguments), "[OPTIONS]"]
    yield f"## `ensemw2s {command.name}`\n"
    yield f"```text\n{' '.join(usage)}\n```\n"
    yield inspect.cleandoc(command.help or "") + "\n"
    yield "| Option | Value | Default | |\n|---|---|---|---|"
    for param in [*arguments, *options]:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in _row(param))} |"
    yield ""


def _argument(param: typer.core.TyperArgument) -> str:
    """How an argument is written in a usage line."""
    return param.metavar or (param.name or "").upper()


def _row(param: typer.core.TyperOption | typer.core.TyperArgument) -> tuple[str, str, str, str]:
    """Name, kind of value, default and description of one argument or option."""
    text = " ".join((param.help or "").split())
    default = f"`{param.default}`" if param.show_default and param.default else ""
    default = "required" if param.required else default
    if param.param_type_name == "argument":
        return f"`{_argument(param)}`", "", default, text
    kind = param.type_descriptor.annotation
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    if kind is bool:
        return names, "", "", text
    value = param.metavar or getattr(kind, "__name__", str(kind))
    return names, f"`{value}`", default, text
