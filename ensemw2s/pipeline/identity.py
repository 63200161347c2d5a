"""What identifies a base model that exists already, so that another model under the same name is noticed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from ensemw2s.config import ModelConfig
from ensemw2s.storage import remote
from ensemw2s.storage.store import file_hash

KINDS = (".json", ".safetensors", ".model", ".txt", ".jinja")
"""Files that decide what a model computes."""


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
