"""The file of a study, which `ensemw2s study` reads: one base config, what varies of it (tasks, variants), the seeds.

A study is a tree of its own and no section of the run's config, because it is about many configs. What a cell of it is
(a base config with the changes of a task, a variant and a seed) is worked out by `study.cells`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator, model_validator

from ensemw2s.config import recipes
from ensemw2s.config.messages import explain, nearest
from ensemw2s.config.section import NAME, Section, raise_all
from ensemw2s.config.tree import apply_override, read_tree
from ensemw2s.errors import ConfigError

Changes = dict[str, object]
"""Dotted config key → value."""

DEFAULT = "default"
"""The variant without changes, in every study: what the others are compared with."""

FIXED = ("name", "storage", "seed", "search", "cluster", "tracking")
"""Keys of a run's config that a study decides itself, or that are the same for all of its cells."""


class StudyConfig(Section):
    """Tasks × variants × seeds of one config, run on one Ray."""

    name: str = Field(pattern=NAME, description="Name of the study; its folder's name.")
    storage: str = Field("runs", description="Folder with the study's folder and the cache of pre-trained models.")
    base: dict[str, object] = Field(
        description="A run's config: its keys, a recipe's name, or a path relative to this file."
    )
    set: Changes = Field(default_factory=dict, description="Changes to the base for all cells, by dotted key.")
    tasks: dict[str, Changes] = Field(
        {"base": {}},
        min_length=1,
        description="Name of a task → its changes to the base, by dotted key, such as data.source.",
    )
    variants: dict[str, Changes] = Field(
        default_factory=dict,
        description="Name of a variant → its changes. The variant default, with no changes, is always there.",
    )
    factors: dict[str, list[object]] = Field(
        default_factory=dict,
        description="Dotted key → values. Each value is a variant, called key=value.",
    )
    grid: dict[str, list[object]] = Field(
        default_factory=dict, description="Dotted key → values. Each combination of values is a variant."
    )
    only: dict[str, list[str]] = Field(
        default_factory=dict, description="Variant → the tasks on which it runs. Default: all."
    )
    against: dict[str, str] = Field(
        default_factory=dict, description="Variant → another variant with which it is also compared."
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(
        [0, 1, 2, 3, 4],
        min_length=1,
        description="Every task and variant runs once with each seed, which changes data, pre-training and all "
        "trainings.",
    )
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = Field(
        20_000, description="Sign flips per permutation test. With fewer possible ones, the test is exact."
    )

    @field_validator("seeds")
    @classmethod
    def _different(cls, value: list[int]) -> list[int]:
        if twice := sorted({seed for seed in value if value.count(seed) > 1}):
            raise ValueError(f"seeds must differ, but {', '.join(map(str, twice))} is there more than once")
        return value

    @model_validator(mode="after")
    def _own_keys(self) -> StudyConfig:
        wrong = []
        wrong += [f"set: {key} {_WHY}" for key in self.set if key.split(".")[0] in FIXED]
        groups = {"tasks": self.tasks, "variants": self.variants}
        for group, entries in groups.items():
            for name, changes in entries.items():
                wrong += [f"{group}.{name}: {key} {_WHY}" for key in changes if key.split(".")[0] in FIXED]
        for group, keys in (("factors", self.factors), ("grid", self.grid)):
            wrong += [f"{group}: {key} {_WHY}" for key in keys if key.split(".")[0] in FIXED]
            wrong += [f"{group}.{key}: has no values" for key, values in keys.items() if not values]
        for variant, tasks in self.only.items():
            wrong += [
                f"only.{variant}: {task} is no task{nearest(task, self.tasks)}"
                for task in tasks
                if task not in self.tasks
            ]
        if DEFAULT in self.variants:
            wrong.append(
                f"variants.{DEFAULT}: is the base without changes, and always there; give this one another name"
            )
        raise_all(wrong)
        return self


_WHY = f"cannot vary: the study itself sets {', '.join(FIXED)}, the same for all cells"


def load_study(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Reads a study's file, and the base config that it may name, and validates the former.

    Args:
        path: The YAML file, or the name of a study that comes with the package. A base that is text is a recipe's name,
            or a path relative to this file.
        overrides: `dotted.key=value` strings; keys of the base config begin with `base.`.

    Raises:
        ConfigError: With every mistake of the file, each with its dotted key.
    """
    file = recipes.find(path, recipes.STUDIES)
    tree = read_tree(file)
    if isinstance(tree.get("base"), str):
        base = recipes.find(tree["base"])
        tree["base"] = read_tree(base if base.is_absolute() else file.parent / base)
    for override in overrides or []:
        apply_override(tree, override)
    try:
        return StudyConfig.model_validate(tree)
    except ValidationError as error:
        lines = list(dict.fromkeys(line for item in error.errors() for line in explain(item, StudyConfig)))
        raise ConfigError("\n".join([f"study {path} is wrong:", *(f"  {line}" for line in lines)])) from None
