"""Writes the figures of a finished run into README.md and docs/index.md and copies its picture: no number is typed.

    python docs/refresh_readme.py runs/quickstart

Everything between `<!-- figures: NAME -->` and `<!-- end of figures -->` is replaced, NAME being the run's name.
"""

from __future__ import annotations

import io
import re
import shutil
import sys
from pathlib import Path

from rich.console import Console

from ensemw2s.evaluation.records import RESULTS, RunResults
from ensemw2s.evaluation.report import print_table
from ensemw2s.evaluation.wording import seconds

ROOT = Path(__file__).parent.parent


def block(results: RunResults, picture: str) -> str:
    """The figures as Markdown: the picture, what the terminal showed, and how it came about."""
    console = Console(file=io.StringIO(), width=100, no_color=True)
    print_table(results.model_copy(update={"stages": None}), console)
    assert isinstance(console.file, io.StringIO)
    shown = "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    versions, stages = results.versions or {}, results.stages or ()
    built = ", ".join(f"{name} {versions[name].split('+')[0]}" for name in ("torch", "ray", "deepspeed"))
    fresh = all(stage.status == "ran" for stage in stages)
    took = f" It took {seconds(results.total_seconds)}." if fresh else ""
    return (
        f"```text\n{shown}\n```\n\n"
        f'<img src="{picture}" width="560" alt="Exact match of every system on easy (ID) and hard (OOD) examples">\n\n'
        f"One run, seed {results.seed}, {(results.created or '')[:10]}, with {built}.{took}"
    )


def main(run: Path) -> None:
    """Refreshes the figures of one run on both pages."""
    results = RunResults.read(run / RESULTS)
    marks = rf"(<!-- figures: {re.escape(results.name)} -->\n)(?:.*?\n)?(<!-- end of figures -->)"
    docs = ROOT / "docs"
    for page, picture in ((ROOT / "README.md", "docs/images/systems.png"), (docs / "index.md", "images/systems.png")):
        figures = block(results, picture)
        text = page.read_text(encoding="utf-8")
        text, found = re.subn(marks, lambda m, new=figures: f"{m[1]}{new}\n{m[2]}", text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"{page} has {found} blocks for {results.name}, expected one")
        page.write_text(text, encoding="utf-8")
    images = docs / "images"
    images.mkdir(exist_ok=True)
    shutil.copyfile(run / "plots" / "systems.png", images / "systems.png")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
