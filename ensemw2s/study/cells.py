"""From a study to its cells: every task × variant × seed as a whole config of a run, checked before anything starts.

Pure, so that a plan can list the cells and a test can count them without running any.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ensemw2s.config import Config, parse_config
from ensemw2s.config.messages import nearest
from ensemw2s.config.study import DEFAULT, Changes, StudyConfig
from ensemw2s.config.systems import STUDENT_EASY_ONLY, TABLE
from ensemw2s.config.tree import set_value
from ensemw2s.errors import ConfigError
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.graph import Graph
from ensemw2s.storage import remote


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        config: Its whole config.
        folder: The study's folder.
    """

    task: str
    variant: str
    seed: int
    config: Config
    folder: Path

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return f"{self.task}, {self.variant}, seed {self.seed}"

    @property
    def slug(self) -> str:
        """Name of its file."""
        return re.sub(r"[^A-Za-z0-9_.=-]+", "-", f"{self.task}.{self.variant}.{self.seed}")

    @cached_property
    def graph(self) -> Graph:
        """Its stages, in folders that the study's cells share."""
        return build_graph(self.config, self.folder / "stages")


def study_directory(study: StudyConfig) -> Path:
    """Folder of a study."""
    return remote.local(study.storage) / study.name


def variants(study: StudyConfig) -> dict[str, Changes]:
    """All variants by name: the default, named ones, one factor at a time, then the grid.

    Raises:
        ConfigError: If two have one name.
    """
    found: list[tuple[str, Changes]] = [(DEFAULT, {}), *study.variants.items()]
    found += [(f"{key}={_short(value)}", {key: value}) for key, values in study.factors.items() for value in values]
    if study.grid:
        for values in itertools.product(*study.grid.values()):
            point: Changes = dict(zip(study.grid, values, strict=True))
            found.append((",".join(f"{key}={_short(value)}" for key, value in point.items()), point))
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"study {study.name} has variants of one name: {', '.join(twice)}; give them others")
    named = {f"only.{name}": name for name in study.only}
    named |= {f"against.{name}": name for name in study.against}
    named |= {f"against.{name}: {other}": other for name, other in study.against.items()}
    if unknown := next((where for where, name in named.items() if name not in names), None):
        raise ConfigError(f"study {study.name}: {unknown} is no variant{nearest(named[unknown], names)}")
    changes = dict(found)
    for name, other in study.against.items():
        tasks = set(study.only.get(name, study.tasks)) & set(study.only.get(other, study.tasks))
        if name == other or not tasks or any(_changes_data(changes[variant]) for variant in (name, other)):
            raise ConfigError(
                f"study {study.name}: against.{name}: {other} compares nothing; expected two variants that share a "
                "task and leave data as it is"
            )
    return changes


def _changes_data(changes: Changes) -> bool:
    return any(key.split(".")[0] == "data" for key in changes)


def with_other_data(study: StudyConfig) -> set[str]:
    """Variants that change `data`: their examples are not the default's, for validation and tests neither."""
    return {name for name, changes in variants(study).items() if _changes_data(changes)}


def expand(study: StudyConfig) -> list[Cell]:
    """All cells, seeds outermost: a study that was stopped has whole replications.

    Raises:
        ConfigError: If the config of a cell is wrong; names the cell.
    """
    cells = [
        _cell(study, task, changes, name, variant, seed)
        for seed in study.seeds
        for task, changes in study.tasks.items()
        for name, variant in variants(study).items()
        if task in study.only.get(name, study.tasks)
    ]
    slugs = [cell.slug for cell in cells]
    if twice := next((cell for cell in cells if slugs.count(cell.slug) > 1), None):
        raise ConfigError(f"study {study.name}: two cells would be called {twice.slug}; rename a task or a variant")
    return cells


def _cell(study: StudyConfig, task: str, changes: Changes, name: str, variant: Changes, seed: int) -> Cell:
    tree: dict[str, Any] = copy.deepcopy(study.base)
    for origin, values in (("set", study.set), (f"task {task}", changes), (f"variant {name}", variant)):
        for key, value in values.items():
            set_value(tree, key, copy.deepcopy(value), origin=f"study {study.name}, {origin}: {key}")
    tree.pop("search", None)
    tree |= {"name": study.name, "storage": study.storage, "seed": seed, "tracking": "none"}
    config = parse_config(tree, origin=f"study {study.name}, cell {task}, {name}, seed {seed}:")
    evaluation = config.evaluation.model_copy(update={"systems": systems(config.evaluation.systems)})
    config = config.model_copy(update={"evaluation": evaluation})
    return Cell(task, name, seed, config, study_directory(study))


def systems(asked: list[str]) -> list[str]:
    """What a config asks for, what a study never leaves out, and the rivals that each of these is held against."""
    needed: set[str] = set()
    waiting = [*asked, *(name for name, system in TABLE.items() if system.in_every_study)]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [rival for rival in TABLE[name].claims_over if TABLE[rival].by_default]
            if TABLE[name].learns_from == "pseudo":  # labels that do harm show beside easy data alone
                waiting.append(STUDENT_EASY_ONLY)
    return [name for name in TABLE if name in needed]


def _short(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
