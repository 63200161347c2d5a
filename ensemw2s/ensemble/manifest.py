"""ensemble.json: what an ensemble artifact holds, and whether the files beside it are the ones it names.

Apart from loading models so that a damaged artifact is refused before any weight is read into memory.

    ensemble.json       this file, written last
    tokenizer/          the one tokenizer of all members; of a mixed ensemble instead:
    tokenizers/<n>/     the tokenizers, each of some members
    members/<name>/     safetensors, or adapters; only of members that vote
    base/<n>/           bases of the adapters, where they were local folders
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from ensemw2s.ensemble.combine import Rule
from ensemw2s.errors import ArtifactError
from ensemw2s.storage import remote, store

FORMAT_VERSION = 1
"""Of an ensemble of one tokenizer, which older releases read, too."""

MIXED_VERSION = 2
"""Of an ensemble whose members have several tokenizers; the newest that this release reads."""

MANIFEST = "ensemble.json"
TOKENIZER = "tokenizer"


class Entry(BaseModel):
    """A part of the manifest: plain JSON, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseEntry(Entry):
    """A base that adapters need.

    Attributes:
        path: Folder in the artifact, or a hub id.
        revision: Git revision on the hub.
        files: SHA-256 of each file of the folder; empty for a hub id.
    """

    path: str
    revision: str | None = None
    files: dict[str, str] = {}


class MemberEntry(Entry):
    """An expert and what boosting found out about it.

    Attributes:
        name: Unique name.
        path: Folder in the artifact; None for a member that does not vote, whose weights are left out.
        alpha: Its alpha, possibly negative.
        weight: Its vote before normalisation, 0 where alpha is not positive.
        round: The boosting round, from 1.
        weighted_error: Its weighted error in that round, if there is one.
        temperature: What its logits are divided by. Left out of the file where it is 1, so that releases without
            temperatures read it.
        base: Path of the `BaseEntry` that it is adapters for; None for a full model.
        tokenizer: Folder of its tokenizer in a mixed ensemble; None, and left out of the file, in any other.
        files: SHA-256 of each file of the folder.
    """

    name: str
    path: str | None
    alpha: float
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    round: Annotated[int, Field(ge=1)]
    weighted_error: float | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    base: str | None = None
    tokenizer: str | None = None
    files: dict[str, str] = {}

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        tree: dict[str, object] = written(self)
        if self.temperature == 1:
            del tree["temperature"]
        if self.tokenizer is None:
            del tree["tokenizer"]
        return tree


class Manifest(Entry):
    """The whole of ensemble.json.

    Attributes:
        format_version: Of this file and the layout around it.
        base_models: Bases of adapters; empty when all members are full models.
        tokenizer_hash: `models.tokenizers.tokenizer_hash` of the tokenizer; if mixed: SHA-256 of all hashes.
        tokenizers: Of a mixed ensemble: folder of each tokenizer to its hash. Empty, and left out of the file, in any
            other.
        combine: Combination rule.
        members: In the order of their rounds.
    """

    format_version: int
    base_models: list[BaseEntry]
    tokenizer_hash: str
    tokenizers: dict[str, str] = {}
    combine: Rule
    members: list[MemberEntry]

    @model_serializer(mode="wrap")
    def _without_the_usual(self, written: SerializerFunctionWrapHandler) -> dict[str, object]:
        tree: dict[str, object] = written(self)
        if not self.tokenizers:
            del tree["tokenizers"]
        return tree

    @property
    def voters(self) -> list[MemberEntry]:
        """Members that are loaded and vote."""
        return [member for member in self.members if member.weight > 0]


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes ensemble.json."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: Path, *, mixed: bool = False) -> Manifest:
    """Reads and checks ensemble.json itself.

    Args:
        directory: The artifact.
        mixed: Whether the caller can do with members of several tokenizers.

    Raises:
        ArtifactError: If it is missing, not readable, from a newer release, or incomplete, or mixed where it must not.
    """
    file = remote.pull(directory / MANIFEST)
    try:
        tree: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{remote.shown(directory)} is no ensemble: {MANIFEST} is missing") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"ensemble {directory}: {MANIFEST} cannot be read: {error}") from None
    version = tree.get("format_version") if isinstance(tree, dict) else None
    if isinstance(version, int) and version > MIXED_VERSION:
        raise ArtifactError(
            f"ensemble {directory} has format version {version}, this release reads up to {MIXED_VERSION}; "
            "update ensemw2s"
        )
    try:
        manifest = Manifest.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or MANIFEST
        raise ArtifactError(f"ensemble {directory}: {MANIFEST} is damaged: {key}: {first['msg'].lower()}") from None
    _check_consistent(directory, manifest)
    if manifest.tokenizers and not mixed:
        raise ArtifactError(
            f"ensemble {remote.shown(directory)} has members of {len(manifest.tokenizers)} tokenizers, so there are no "
            "token ids to vote on: labelling, evaluation, serving and Engine need one tokenizer. "
            "Ensemble.from_pretrained(...) loads it, and its generate and score work, over bytes"
        )
    return manifest


def check_files(directory: Path, path: str, files: dict[str, str]) -> None:
    """Compares a folder of the artifact with its checksums.

    Args:
        directory: The artifact.
        path: The folder in it.
        files: File name to SHA-256.

    Raises:
        ArtifactError: Naming the file that is missing or differs.
    """
    for name, expected in files.items():
        file = directory / path / name
        if not file.is_file():
            raise ArtifactError(f"ensemble {directory} is damaged: {path}/{name} is missing; copy it again")
        if (actual := store.file_hash(file)) != expected:
            raise ArtifactError(
                f"ensemble {directory} is damaged: {path}/{name} has SHA-256 {actual[:12]}…, ensemble.json says "
                f"{expected[:12]}…; copy it again"
            )


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file directly in a folder."""
    return {file.name: store.file_hash(file) for file in sorted(folder.iterdir()) if file.is_file()}


def _check_consistent(directory: Path, manifest: Manifest) -> None:
    bases = {base.path for base in manifest.base_models}
    for member in manifest.voters:
        if member.path is None:
            raise ArtifactError(
                f"ensemble {directory}: {MANIFEST} is damaged: member {member.name} votes, but has no path"
            )
        if member.base is not None and member.base not in bases:
            raise ArtifactError(f"ensemble {directory}: {MANIFEST} is damaged: member {member.name} has no base entry")
        if (member.tokenizer is not None) != bool(manifest.tokenizers) or (
            member.tokenizer is not None and member.tokenizer not in manifest.tokenizers
        ):
            raise ArtifactError(
                f"ensemble {directory}: {MANIFEST} is damaged: tokenizer {member.tokenizer} of member {member.name} is "
                f"none of {list(manifest.tokenizers)}"
            )
    inside = [member.path for member in manifest.voters] + [base.path for base in manifest.base_models if base.files]
    listed = [entry.files for entry in manifest.members] + [entry.files for entry in manifest.base_models]
    names = [name for files in listed for name in files]
    for path in [*inside, *manifest.tokenizers, *names]:
        parts = PurePosixPath(str(path))
        if parts.is_absolute() or ".." in parts.parts:
            raise ArtifactError(f"ensemble {directory}: {MANIFEST} names {path}, which is outside the artifact")
    if not manifest.voters:
        raise ArtifactError(f"ensemble {directory} has no member with a positive weight")
