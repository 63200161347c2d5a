"""Writes what the commands of docs/costs.md print below them, so that no figure there is typed.

    python docs/refresh_costs.py

Blocks between `<!-- output: COMMAND -->` and `<!-- end of output -->` are replaced by what the command prints, from the
table of memory on, or by its error. Commands run in a folder with the files that the page's own code makes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from typer.testing import CliRunner

from ensemw2s.cli.main import app

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "costs.md"
BLOCK = re.compile(r"<!-- output: (.*?) -->\n```text\n(.*?)```\n<!-- end of output -->", re.DOTALL)


@contextlib.contextmanager
def example(text: str) -> Iterator[None]:
    """A working folder with what the page's blocks make: its Python is run, its cluster is written to a file."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("cluster").symlink_to(ROOT / "cluster")
            for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
                exec(compile(code, str(PAGE), "exec"), {})
            for name, content in re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, re.DOTALL):
                Path(name).write_text(content, encoding="utf-8")
            yield
        finally:
            os.chdir(before)


def printed(command: str) -> str:
    """What a command prints, without spaces at the ends of lines; of a plan the costs alone."""
    program, *arguments = shlex.split(command)
    assert program == "ensemw2s", command
    environment = {"COLUMNS": "118", "NO_COLOR": "1", "TERM": "dumb", "RAY_ADDRESS": None}
    result = CliRunner().invoke(app, arguments, env=environment)
    text = result.stderr if result.exit_code else result.stdout[result.stdout.index("Memory of a process") :]
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"


def outputs(text: str) -> dict[str, tuple[str, str]]:
    """Every command of the page, with what stands there and what it prints."""
    with example(text):
        return {command: (shown, printed(command)) for command, shown in BLOCK.findall(text)}


def main() -> None:
    """Refreshes the page."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = outputs(page)
    page = BLOCK.sub(lambda m: f"<!-- output: {m[1]} -->\n```text\n{fresh[m[1]][1]}```\n<!-- end of output -->", page)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
