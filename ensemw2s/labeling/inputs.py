"""Options of a person who labels or evaluates with a saved model go in, settings of rendering and decoding come out.

Its own module because both commands find the run that a model comes from, and its settings, the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ensemw2s.cluster.connect import cluster_address
from ensemw2s.cluster.resources import Resources, local_resources
from ensemw2s.config import ClusterConfig, DataConfig, LabelingConfig, SplitConfig
from ensemw2s.config.tree import read_tree
from ensemw2s.data.shots import with_template
from ensemw2s.errors import ConfigError, ResourceError
from ensemw2s.labeling.intake import FileSource
from ensemw2s.storage import remote

RENDERING = (
    "prompt_template", "answer_prefix", "chat_template", "add_bos", "answer_match", "max_prompt_tokens",
    "max_answer_tokens", "system_prompt",
)  # fmt: skip
"""Keys of `data` that decide how a prompt and its answer become tokens, and how answers are compared."""

SectionT = TypeVar("SectionT", DataConfig, LabelingConfig)


@dataclass(frozen=True)
class Settings:
    """How prompts are rendered and decoded.

    Attributes:
        data: Template, answer prefix, limits; its source is the input.
        labeling: Pool of actors and decoding.
        run: Folder of the run whose config these come from. None: they are defaults and options.
    """

    data: DataConfig
    labeling: LabelingConfig
    run: Path | None

    @property
    def source(self) -> FileSource:
        assert isinstance(self.data.source, FileSource)
        return self.data.source


def settings_for(model: str, source: FileSource, options: Mapping[str, object]) -> Settings:
    """The settings of the run that a model lies in, or the defaults, with the options that were given on top.

    Args:
        model: Folder of a model or ensemble, or a hub id.
        source: The input.
        options: Values for keys of `data` and `labeling`; None where not given.

    Raises:
        ConfigError: If the run's config.yaml cannot be read, or an option has a value that it cannot have.
    """
    run = run_of(remote.local(model))
    data = DataConfig(source=source, split=SplitConfig(mode="random"))
    labeling = LabelingConfig()
    if run is not None:  # only what is needed: an older run may have other keys elsewhere
        tree = read_tree(remote.pull(run / "config.yaml"))
        older = {"add_bos": True}  # their config does not say it: a BOS wherever the tokenizer had one
        data = _with(data, {key: (older | tree.get("data", {})).get(key) for key in RENDERING})
        data = with_template(data, run / "data")
        labeling = _with(labeling, {**tree.get("labeling", {}), "soft_top_k": 0})
    if options.get("max_actors") is not None:
        labeling = labeling.model_copy(update={"min_actors": 1})
    of_data = {key: value for key, value in options.items() if key in RENDERING}
    of_labeling = {key: value for key, value in options.items() if key not in RENDERING}
    return Settings(_with(data, of_data), _with(labeling, of_labeling), run)


def _with(section: SectionT, options: Mapping[str, object]) -> SectionT:
    """A config section with the options that are not None."""
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return type(section).model_validate(section.model_dump() | given)
    except ValidationError as error:
        meant = _deepest(error)
        said = meant["msg"].removeprefix("Value error, ")
        keys = [str(meant["loc"][0])] if meant["loc"] else [key for key in given if key in said]  # a rule of several
        named = ", ".join(f"--{key}".replace("_", "-") for key in keys)
        raise ConfigError(f"{named}: {said}" if keys else said) from None


def _deepest(error: ValidationError) -> ErrorDetails:
    """The error that lies deepest: where a value can be of several kinds, that of the kind which was meant."""
    return max(error.errors(), key=lambda found: len(found["loc"]))


def run_of(folder: Path) -> Path | None:
    """The run directory that a folder lies in: the nearest one above it with config.yaml and manifest.json."""
    if not remote.exists(folder):
        return None
    resolved = folder.resolve()
    needed = ("config.yaml", "manifest.json")
    return next((p for p in (resolved, *resolved.parents) if all(remote.exists(p / name) for name in needed)), None)


def refuse_run(option: str, folder: Path) -> None:
    """Raises `ConfigError` where a folder is a whole run in place of a model in it; names what is meant."""
    if not (remote.exists(folder / "ensemble/ensemble.json") and not remote.exists(folder / "ensemble.json")):
        return
    inside, others = remote.shown(folder / "ensemble"), remote.shown(folder / "students")
    raise ConfigError(
        f"{option} {remote.shown(folder)} is a run; its ensemble is {inside}, its students are {others}/*"
    )


def pool_size(resources: Resources, labeling: LabelingConfig) -> int:
    """Largest number of actors that fit.

    Raises:
        ResourceError: If fewer than `labeling.min_actors` fit.
    """
    where, kind = resources.having(labeling.node_resource), labeling.node_resource
    fit = where.fits(labeling.cpus_per_actor, labeling.gpus_per_actor)
    if fit < labeling.min_actors:
        said = f" with the resource {kind} (labeling.node_resource of the run's config.yaml)" if kind else ""
        other = ", join a cluster that has such nodes, or copy the model out of the run's folder" if kind else ""
        raise ResourceError(
            f"{fit} actors of {labeling.cpus_per_actor:g} CPUs and {labeling.gpus_per_actor:g} GPUs fit on "
            f"{where}{said}, and it takes {labeling.min_actors}: lower --cpus-per-actor or --gpus-per-actor{other}"
        )
    return fit if labeling.max_actors is None else min(fit, labeling.max_actors)


def check_resources(where: ClusterConfig, labeling: LabelingConfig) -> None:
    """Raises `ResourceError` if a Ray is to be started here and no actor would ever fit."""
    if cluster_address(where) is None:
        pool_size(local_resources(where), labeling)
