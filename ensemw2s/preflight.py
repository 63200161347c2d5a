"""Everything that can be wrong and be found without Ray: data, models, tokenizers, the folder, the resources here."""

from __future__ import annotations

import os
from pathlib import Path

from ensemw2s import cluster
from ensemw2s.config import Config, ModelConfig
from ensemw2s.data.sources import check_source
from ensemw2s.errors import ConfigError, ModelError, ResourceError
from ensemw2s.models.loading import check_same_tokenizer, load_tokenizer, model_info, tokenizer_hash
from ensemw2s.stages import run_directory


def check(config: Config) -> None:
    """Checks a config against the world.

    Raises:
        ConfigError: If models do not fit together.
        DataError: If a source cannot be used.
        ModelError: If a model cannot be found or tokenizers differ.
        ResourceError: If this machine can never hold the work (when Ray is to be started here), or the run's folder
            cannot be written.
    """
    check_storage(config)
    check_source(config.data)
    check_models(config)
    if cluster.address(config.cluster) is None:
        cluster.plan_resources(config, cluster.local_resources(config.cluster))


def check_storage(config: Config) -> None:
    """Raises `ResourceError` if the run's folder cannot be written."""
    folder = run_directory(config)
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise ResourceError(f"storage {config.storage}: {existing} is not a folder that can be written; choose another")


def check_models(config: Config) -> None:
    """Raises `ModelError` or `ConfigError` if a model is missing or models cannot work together."""
    weak, names = config.models.weak, config.models.weak_names
    mixed = {model.is_tiny for model in weak}
    if len(mixed) > 1:
        raise ConfigError(
            "models.weak: embedded tiny models and others have different tokenizers; use one kind for all weak bases"
        )
    ready = [(name, model) for name, model in zip(names, weak, strict=True) if not model.is_tiny]
    tokenizers = []
    for name, model in [*ready, *([] if config.models.strong.is_tiny else [("strong", config.models.strong)])]:
        _check_model(name, model)
        tokenizers.append((name, load_tokenizer(model.base, model.revision)))
    check_same_tokenizer([pair for pair in tokenizers if pair[0] != "strong"])
    if config.student.objective == "soft":
        _check_soft(config, dict(tokenizers))


def _check_model(name: str, model: ModelConfig) -> None:
    try:
        model_info(model.base, model.revision)
    except ModelError as error:
        raise ModelError(f"models: {name}: {error}") from error


def _check_soft(config: Config, tokenizers: dict[str, object]) -> None:
    """Soft labels are distributions over the weak models' tokens, so the student must have the same ones."""
    strong, weak = tokenizers.get("strong"), tokenizers.get(config.models.weak_names[0])
    same = strong is None and weak is None
    if strong is not None and weak is not None:
        same = tokenizer_hash(strong) == tokenizer_hash(weak)  # type: ignore[arg-type]
    if not same:
        raise ConfigError(
            "student.objective soft needs weak and strong models of one tokenizer, but models.strong has another: use "
            "logconf or xent"
        )


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a folder or of its nearest parent that exists."""
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    stats = os.statvfs(existing)
    return stats.f_bavail * stats.f_frsize
