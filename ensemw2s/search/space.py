"""The search space: which keys of the config may vary, whether the values fit them, and a point of it as a config."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ensemw2s.config import (
    BoostingConfig,
    Config,
    ConsensusConfig,
    EnsembleConfig,
    Lora,
    Recipe,
    StudentConfig,
    parse_config,
)
from ensemw2s.config.messages import nearest
from ensemw2s.config.search import Parameter, SearchConfig
from ensemw2s.errors import ConfigError

if TYPE_CHECKING:
    from optuna import Trial

Point = dict[str, object]
"""Dotted config key → value, as JSON has it."""

ROUNDS = "boosting.rounds"
PASSES = "consensus.passes"
NESTED = (ROUNDS, PASSES)
"""Keys that are never drawn: a trial of the most measures all smaller numbers on its way."""

FITTED_VOTES = (
    "ensemble.weights stacked and ensemble.calibration temperature are fitted on examples that a search judges by: "
    "search without them, and set them when best.yaml is run"
)

TUNABLE = (
    *(f"expert.{key}" for key in Recipe.model_fields),
    *(f"boosting.{key}" for key in BoostingConfig.model_fields if key != "members"),
    *(f"ensemble.{key}" for key in EnsembleConfig.model_fields),
    *(f"consensus.{key}" for key in ConsensusConfig.model_fields),
    *(f"models.{role}.lora.{key}" for role in ("weak.*", "strong") for key in Lora.model_fields),
    *(f"student.{key}" for key in StudentConfig.model_fields),
)
"""Keys that a search may vary; `*` is every weak base. None of them changes data, corpus or pre-training, which all
trials share."""


def check(config: Config) -> SearchConfig:
    """Checks the search of a config against the rest of it.

    Returns:
        The search.

    Raises:
        ConfigError: With every mistake, each with its dotted key.
    """
    if config.search is None:
        raise ConfigError("the config has no section search, which says what to tune (docs/search.md)")
    wrong = [
        f"search.space.{line}"
        for key, parameter in config.search.space.items()
        for line in _wrong(config, key, parameter)
    ]
    if config.ensemble.fitted:
        wrong.append(FITTED_VOTES)
    if config.search.validation == "hard" and not config.data.sizes.hard_validation:
        wrong.append("search.validation hard needs data.sizes.hard_validation of at least 1")
    if wrong:
        raise ConfigError("\n".join(["the search has mistakes:", *(f"  {line}" for line in wrong)]))
    return config.search


def _wrong(config: Config, key: str, parameter: Parameter) -> Iterator[str]:
    assert config.search is not None
    if key not in TUNABLE:
        yield f"{key}: cannot be tuned{nearest(key, TUNABLE)}"
        return
    if key in NESTED and parameter.integer is None:
        yield f"{key}: needs integer: [LEAST, MOST]; all sizes between are measured in every trial"
        return
    if key.startswith("consensus.") and key != PASSES and not passes(config)[1]:
        yield f"{key}: changes nothing without passes; set consensus.passes, or search it"
    if key.startswith(("student.", "models.strong.")) and config.search.objective == "ensemble":
        yield f"{key}: changes the student alone; set search.objective to student"
    if key.startswith("models.weak.") and not any(model.lora for model in config.models.weak):
        yield f"{key}: no weak base has lora"
        return
    if key.startswith("models.strong.") and config.models.strong.lora is None:
        yield f"{key}: the strong base has no lora"
        return
    conditions = {other: values[0] for other, values in parameter.conditions.items()}
    for value in parameter.extremes:
        try:
            applied = apply(config, {**conditions, key: value})
        except ConfigError as error:
            yield from (line.strip() for line in str(error).splitlines()[1:])
        else:
            if applied.ensemble.fitted and not config.ensemble.fitted:
                yield f"{key}: {value} cannot be tuned; {FITTED_VOTES}"


def apply(config: Config, point: Point) -> Config:
    """A config with the values of a point.

    Raises:
        ConfigError: If they do not fit the rest of it.
    """
    tree = config.model_dump(mode="json")
    for key, value in point.items():
        *parents, last = key.split(".")
        for node in _nodes(tree, parents):
            node[last] = value
    return parse_config(tree, origin="this point of the search space")


def _nodes(tree: Any, parents: list[str]) -> Iterator[dict[str, object]]:
    """The mappings under a key; models without adapters have none."""
    if not parents:
        if tree is not None:
            yield tree
        return
    first, *rest = parents
    for child in tree if first == "*" else [tree[first]]:
        yield from _nodes(child, rest)


def sizes(config: Config) -> tuple[int, int]:
    """The least and the largest number of rounds that the search considers."""
    assert config.search is not None
    parameter = config.search.space.get(ROUNDS)
    if parameter is None or parameter.integer is None:
        return 1, config.boosting.rounds
    return parameter.integer


def searches_passes(config: Config) -> bool:
    """Whether a key of consensus passes is in the space. Otherwise trials make no passes, whatever the config says."""
    assert config.search is not None
    return any(key.startswith("consensus.") for key in config.search.space)


def passes(config: Config) -> tuple[int, int]:
    """The least and the largest number of consensus passes that the search considers."""
    if not searches_passes(config):
        return 0, 0
    assert config.search is not None
    parameter = config.search.space.get(PASSES)
    if parameter is None or parameter.integer is None:
        return config.consensus.passes, config.consensus.passes
    return parameter.integer


def draw(trial: Trial, space: dict[str, Parameter]) -> Point:
    """Draws a point, one parameter after the other, those only whose conditions hold (Optuna's define-by-run)."""
    point: Point = {}
    for key, parameter in space.items():
        if key in NESTED or any(point.get(other) not in values for other, values in parameter.conditions.items()):
            continue
        if parameter.choice is not None:
            point[key] = _chosen(trial, key, parameter.choice)
        elif parameter.integer is not None:
            point[key] = trial.suggest_int(key, *parameter.integer)
        else:
            low, high = parameter.log_uniform or parameter.uniform or (0.0, 0.0)
            point[key] = trial.suggest_float(key, low, high, log=parameter.log_uniform is not None)
    return point


def _chosen(trial: Trial, key: str, values: list[Any]) -> Any:
    if all(value is None or isinstance(value, bool | int | float | str) for value in values):
        return trial.suggest_categorical(key, values)
    return values[trial.suggest_int(key, 0, len(values) - 1)]  # Optuna has no lists as values
