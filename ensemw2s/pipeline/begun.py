"""A config whose run began when other values were the default: what it leaves open stays as it was in that run."""

from __future__ import annotations

from collections.abc import Mapping

from ensemw2s.config import Config
from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, SYSTEMS_BEFORE
from ensemw2s.config.tree import read_tree
from ensemw2s.errors import ConfigError
from ensemw2s.pipeline.graph import run_directory
from ensemw2s.storage import remote

BEGUN = "config.yaml"
"""The whole config of a run, in its folder."""


def as_begun(config: Config) -> tuple[Config, str]:
    """The config with former defaults where it names none and its run began with them.

    Returns:
        The config, and a sentence for people if anything in it is a former default, else an empty one.
    """
    file = run_directory(config) / BEGUN
    try:
        begun = read_tree(file).get("evaluation") if remote.exists(file) else None
    except ConfigError:  # the run writes it anew
        begun = None
    kept = _former(config, begun) if isinstance(begun, Mapping) else {}
    if not kept:
        return config, ""
    evaluation = config.evaluation.model_copy(update=kept)
    said = " and ".join(f"evaluation.{key}" for key in kept)
    return config.model_copy(update={"evaluation": evaluation}), (
        f"this run began with the former default of {said} and goes on with it; for the default of today, use --fresh"
    )


def _former(config: Config, begun: Mapping[str, object]) -> dict[str, object]:
    """Key → former default of the section `evaluation`, where the run began with it and the config leaves it open."""
    named, kept = config.evaluation.model_fields_set, dict[str, object]()
    systems = begun.get("systems")
    if not isinstance(systems, list):
        return kept
    if "systems" not in named:
        wanted = {*SYSTEMS_BEFORE, *({GENERATIONS} & set(config.evaluation.systems))}
        if set(systems) - {GENERATIONS} == set(SYSTEMS_BEFORE):
            kept["systems"] = [name for name in ALL_SYSTEMS if name in wanted]
    several = len(config.models.weak) > 1
    if several and "single_base" not in named and begun.get("single_base", "first") == "first":
        kept["single_base"] = "first"
    return kept
