"""Configs and studies that come with the package: a name goes in, a file comes out, to run or to edit.

Its own module because the command line, `load_config` and `load_study` all take a recipe's name in place of a file.
"""

from __future__ import annotations

import re
from pathlib import Path

from rich.console import Console

from ensemw2s.config.messages import nearest
from ensemw2s.config.section import NAME
from ensemw2s.errors import ConfigError

FOLDER = Path(__file__).parents[1] / "recipes"
STUDIES = "studies"
"""Folder of the recipes of studies, inside that of the others."""

DEFAULT = "quickstart"
"""The recipe that a config is written from where none is named."""


def names() -> list[str]:
    """All recipes: `quickstart`, ..., then `studies/tiny`, ..."""
    runs, studies = (sorted(path.stem for path in (FOLDER / kind).glob("*.yaml")) for kind in ("", STUDIES))
    return [*runs, *(f"{STUDIES}/{name}" for name in studies)]


def find(given: str | Path, kind: str = "") -> Path:
    """The file that a person means: a name without a folder and an ending is a recipe, all else is a path.

    Args:
        given: `quickstart`, `mine.yaml`, `configs/mine.yaml`, ...
        kind: Empty for configs of runs, `STUDIES` for studies.

    Raises:
        ConfigError: If there is no recipe, and no file, of this name.
    """
    path = Path(given)
    if path.name != str(given) or path.suffix in (".yaml", ".yml"):
        return path
    known = {name.rpartition("/")[2]: FOLDER / f"{name}.yaml" for name in names() if (STUDIES in name) == bool(kind)}
    if path.name in known:
        return known[path.name]
    if path.is_file():
        return path
    what = "study" if kind else "recipe"
    raise ConfigError(
        f"there is no {what} {path.name}{nearest(path.name, known)}. A file of yours is named with its ending: "
        f"{path.name}.yaml"
    )


def summary(name: str) -> str:
    """The first sentence of a recipe's comment."""
    lines = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:4] if line.startswith("#"))
    return re.split(r"(?<=\.) ", comment)[0]


def print_all(console: Console) -> None:
    """Prints the recipes, each with its summary."""
    for heading, studies in (("Runs, for `plan`, `run` and `tune`:", False), ("Studies, for `study`:", True)):
        console.print(heading, highlight=False)
        for name in names():
            if name.startswith(STUDIES) == studies:
                said = f"  {name.removeprefix(f'{STUDIES}/'):<16}{summary(name)}"
                console.print(said, highlight=False, markup=False, soft_wrap=True)
    how = "To edit one, write a copy: ensemw2s init NAME --recipe RECIPE (for a study: studies/tiny)"
    console.print(how, highlight=False, soft_wrap=True)


def write(name: str, recipe: str, output: Path | None = None) -> tuple[Path, str]:
    """Writes a recipe as a file to edit, comments included.

    Args:
        name: The name that the run or study gets.
        recipe: One of `names`.
        output: The file. Default: the name with `.yaml`, in the current folder.

    Returns:
        The file, and the command that takes it: `plan`, or `study` for a study.

    Raises:
        ConfigError: If there is no such recipe, no run can have this name, or the file is there already.
    """
    if recipe not in names():
        raise ConfigError(f"there is no recipe {recipe}{nearest(recipe, names())}")
    called = name.rpartition("/")[2] if name in names() else name
    if not re.fullmatch(NAME, called):
        raise ConfigError(f"{name} cannot be a run's name: use letters, digits, and . _ - after the first one")
    file = Path(f"{called}.yaml") if output is None else output
    text = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    try:
        with file.open("x", encoding="utf-8") as new:
            new.write(re.sub(r"(?m)^name: .*$", f"name: {called}", text, count=1))
    except FileExistsError:
        raise ConfigError(f"{file} is there already: name another file with --output FILE") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    return file, "study" if recipe.startswith(STUDIES) else "plan"
