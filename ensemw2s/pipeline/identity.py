"""What fingerprints are made of: sections of the config as settings, and the identity of a base that exists already."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from pydantic import BaseModel

from ensemw2s.config import ModelConfig
from ensemw2s.storage import remote
from ensemw2s.storage.store import file_hash

KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files that decide what a model computes."""

FIRST_ROUND = ("unit", "window", "weighting", "bootstrap")
"""Settings of boosting that an expert of the first round depends on."""

WHO_COMPUTES = (
    "workers", "cpus_per_worker", "gpus_per_worker", "node_resource", "lanes", "max_failures", "checkpoint_seconds",
    "gradient_checkpointing",
)  # fmt: skip
"""Settings of training that change who computes and when, but not what comes out."""


def settings_of(section: BaseModel, prefix: str, *, without: tuple[str, ...] = ()) -> dict[str, object]:
    """A config section as dotted key → plain value."""
    return {f"{prefix}.{key}": value for key, value in section.model_dump(mode="json").items() if key not in without}


def model_identity(model: ModelConfig) -> dict[str, object]:
    """Hub id and revision, or a folder with the hashes of its files."""
    folder = remote.pull(remote.local(model.base))
    if not folder.is_dir():
        return {"base": model.base, "revision": model.revision}
    files = sorted(p for p in folder.iterdir() if p.suffix in KINDS)
    return {"base": model.base, "files": {p.name: _hash(p, p.stat().st_size, p.stat().st_mtime_ns) for p in files}}


@cache
def _hash(file: Path, size: int, changed_ns: int) -> str:
    """Hash of a file. Cells of a study share their bases, so a file that did not change is read once per process."""
    return file_hash(file)
