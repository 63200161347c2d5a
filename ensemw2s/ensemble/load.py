"""Reading a saved ensemble: a folder comes in, its checked manifest, members in memory and tokenizer go out.

Below the model that votes and the artifact around it, because both open the same folder: each makes of the parts what
it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ensemw2s.ensemble.combine import Rule
from ensemw2s.ensemble.manifest import TOKENIZER, Manifest, MemberEntry, check_files, read_manifest
from ensemw2s.ensemble.members import MemberModel, load_members
from ensemw2s.errors import ArtifactError, ModelError
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash
from ensemw2s.storage import remote


@dataclass(frozen=True)
class Parts:
    """A saved ensemble in memory, before its members vote together.

    Attributes:
        folder: Where it was read.
        manifest: What ensemble.json says, members without a vote included.
        entries: Entries of the members that were loaded.
        models: Their models, in the same order.
        tokenizer: The tokenizer of these members.
    """

    folder: Path
    manifest: Manifest
    entries: list[MemberEntry]
    models: list[MemberModel]
    tokenizer: PreTrainedTokenizerBase

    @property
    def rule(self) -> Rule:
        """How the members' predictions are combined."""
        return self.manifest.combine

    @property
    def weights(self) -> list[float]:
        """Each member's weight, not normalised."""
        return [entry.weight for entry in self.entries]

    @property
    def names(self) -> list[str]:
        """Each member's name."""
        return [entry.name for entry in self.entries]

    @property
    def temperatures(self) -> list[float]:
        """What each member's logits are divided by."""
        return [entry.temperature for entry in self.entries]


def load_parts(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    rounds: int | None = None,
    verify: bool = True,
) -> Parts:
    """Reads an artifact, or what belongs to its first rounds.

    Args:
        path: The folder.
        device: Where the members go.
        dtype: Type of the weights in memory.
        rounds: Only members of rounds 1 to this; default: all.
        verify: Compare the checksums of all files that are loaded.

    Raises:
        ArtifactError: If the artifact is damaged (and in what), from a newer release, or has no vote in `rounds`.
    """
    [parts] = load_voices(path, device=device, dtype=dtype, rounds=rounds, verify=verify, mixed=False)
    return parts


def load_voices(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    rounds: int | None = None,
    verify: bool = True,
    mixed: bool = True,
) -> list[Parts]:
    """Reads an artifact of one tokenizer or of several, or what belongs to its first rounds.

    Args and errors are those of `load_parts`; `mixed` says whether several tokenizers are read, too.

    Returns:
        What belongs to each tokenizer, in the order of the first members.
    """
    folder = remote.pull(remote.local(path))
    manifest = read_manifest(folder, mixed=mixed)
    entries = _of_rounds(folder, manifest, rounds)
    if verify:
        _verify(folder, manifest, entries)
    parts = []
    for place in dict.fromkeys(entry.tokenizer for entry in entries):
        own = [entry for entry in entries if entry.tokenizer == place]
        tokenizer = _tokenizer(
            folder, place or TOKENIZER, manifest.tokenizers.get(place or "", manifest.tokenizer_hash)
        )
        try:
            models = load_members([folder / str(entry.path) for entry in own], dtype=dtype, device=device)
        except ModelError as error:
            raise damaged(folder, error) from error
        parts.append(Parts(folder, manifest, own, models, tokenizer))
    return parts


def damaged(folder: Path, why: object) -> ArtifactError:
    """The error for an artifact whose content does not fit together."""
    return ArtifactError(f"ensemble {folder} is damaged: {why}")


def _of_rounds(folder: Path, manifest: Manifest, rounds: int | None) -> list[MemberEntry]:
    members = [member for member in manifest.voters if rounds is None or member.round <= rounds]
    if not members:
        there = sorted({member.round for member in manifest.voters})
        raise ArtifactError(
            f"ensemble {folder} has no member with a positive weight in rounds 1 to {rounds}, only in {there}"
        )
    return members


def _verify(folder: Path, manifest: Manifest, entries: list[MemberEntry]) -> None:
    needed = {entry.base for entry in entries}
    for entry in entries:
        check_files(folder, str(entry.path), entry.files)
    for base in manifest.base_models:
        if base.path in needed:
            check_files(folder, base.path, base.files)


def _tokenizer(folder: Path, place: str, expected: str) -> PreTrainedTokenizerBase:
    if not (folder / place).is_dir():
        raise damaged(folder, f"{place}/ is missing; copy it again")
    try:
        tokenizer = load_tokenizer(folder / place)
    except ModelError as error:
        raise damaged(folder, error) from error
    if (actual := tokenizer_hash(tokenizer)) != expected:
        raise damaged(
            folder,
            f"its tokenizer has hash {actual[:12]}…, ensemble.json says {expected[:12]}…; "
            "the members were trained with another tokenizer",
        )
    return tokenizer
