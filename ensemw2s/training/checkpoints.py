"""Checkpoints inside a training: tensors and facts of a moment go in, the newest that is whole comes out.

They lie beside the output of a training until that is there. What they hold is not divided among workers, so a training
goes on with another number of them. Each is put in place by one rename with the checksums of its files inside, and the
one before it stays: whatever a crash leaves, there is one to go on from.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ensemw2s import faults
from ensemw2s.errors import ArtifactError, ResourceError
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Description
from ensemw2s.training.records import CheckpointRecord, SoFar

if TYPE_CHECKING:  # a driver only looks for checkpoints, and torch takes seconds to import
    import torch

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
KEPT = 2
SHARD = 2**30
"""Bytes of tensors in a file: what is gathered on one worker's CPU at a time."""


@dataclass(frozen=True)
class Checkpoint:
    """A training at a moment.

    Attributes:
        path: Its folder.
        so_far: How far the training was: all that is not a tensor.
    """

    path: Path
    so_far: SoFar

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.so_far.step

    @cached_property
    def files(self) -> dict[str, Path]:
        """Which file has each tensor."""
        found = {}
        for file in sorted(self.path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as opened:
                found.update(dict.fromkeys(opened.keys(), file))
        return found

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU."""
        with safe_open(self.files[name], framework="pt") as opened:
            found: torch.Tensor = opened.get_tensor(name)
        return found


def folder_of(output: Path) -> Path:
    """Where the checkpoints of a training with this output lie."""
    return output.with_name(f".checkpoints-{output.name}")


def save(
    folder: Path,
    description: Description,
    *,
    so_far: SoFar,
    tensors: Iterable[tuple[str, torch.Tensor]],
) -> Path:
    """Writes a checkpoint, and removes all but the one before it.

    Args:
        folder: Of this training's checkpoints.
        description: What the training is; only the same one goes on from it.
        so_far: How far it is.
        tensors: By name; taken one after the other, and never all in memory.

    Raises:
        OSError: If it cannot be written; earlier ones are as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    step = so_far.step
    working, target = folder / f".working-{step:09d}", folder / f"step-{step:09d}"
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir()
    try:
        faults.reach("training/checkpoint")
        _write_shards(working, tensors)
        files = {file.name: store.file_hash(file) for file in sorted(working.glob("*.safetensors"))}
        record = CheckpointRecord(description=description, step=step, facts=so_far, files=files)
        record.write_file(working / MANIFEST)
        remote.push(working, target, last=MANIFEST)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(working, target)
        faults.reach("training/checkpoint-written")
        for old in _all(folder)[:-KEPT]:
            remote.remove(old)
    except ResourceError as error:
        raise OSError(str(error)) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)
    return target


def _write_shards(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    shard: dict[str, torch.Tensor] = {}
    count = size = 0
    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        if size >= SHARD:
            _write_shard(folder / f"tensors-{count:05d}.safetensors", shard)
            shard, size, count = {}, 0, count + 1
    _write_shard(folder / f"tensors-{count:05d}.safetensors", shard)


def _write_shard(file: Path, shard: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    try:
        save_file(shard, file)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    except SafetensorError as error:  # it has no errors of the operating system's kind
        raise OSError(str(error)) from error


def newest(folder: Path, description: Description) -> Checkpoint | None:
    """The last checkpoint whose files are whole; None if there is none.

    Raises:
        ArtifactError: If it is of another training; the message says what differs.
    """
    check(folder, description)
    for path in reversed(_all(folder)):
        try:
            record = _record(remote.pull(path, last=MANIFEST))
            for name, checksum in record.files.items():
                if store.file_hash(path / name) != checksum:
                    raise ValueError(f"{name} is not what was written")
        except (OSError, ValueError, ArtifactError) as error:
            log.warning("%s is damaged and not used: %s", remote.shown(path), error)
        else:
            return Checkpoint(path, record.facts)
    return None


def check(folder: Path, description: Description) -> None:
    """Raises `ArtifactError` if there are checkpoints of another training; reads no weights."""
    for path in _all(folder):
        with suppress(OSError, ValueError):
            if (found := _record(path).description) != description:
                raise ArtifactError(
                    f"{remote.shown(path)} is of a training with another config: {store.difference(found, description)}"
                    ". Use another name for this run, or --fresh to delete what no longer fits and redo it"
                )


def _record(path: Path) -> CheckpointRecord:
    """What is said of a checkpoint. Raises ValueError if it is not what `save` writes."""
    return CheckpointRecord.model_validate(json.loads(remote.pull(path / MANIFEST).read_text(encoding="utf-8")))


def discard(folder: Path) -> None:
    """Removes all checkpoints of a training."""
    remote.remove(folder)


def _all(folder: Path) -> list[Path]:
    """Checkpoints, the oldest first."""
    return sorted(folder / name for name in remote.names(folder) if name.startswith("step-"))
