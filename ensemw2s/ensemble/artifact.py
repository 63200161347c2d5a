"""The ensemble on disk: trained experts become one folder that can be moved; from the folder comes a model that votes.

Its own module because this folder is what leaves the project: it is self-contained, says what is in it, and is
refused with the reason when it is not what it says. `manifest` has its layout.
"""

from __future__ import annotations

import functools
import hashlib
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.ensemble.bytewise.answers import ByteAnswer
from ensemw2s.ensemble.bytewise.mixture import AnyPrompt, ByteMixture, VoiceModel
from ensemw2s.ensemble.combine import RULES, Rule
from ensemw2s.ensemble.load import Parts, load_voices
from ensemw2s.ensemble.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    MIXED_VERSION,
    TOKENIZER,
    BaseEntry,
    Manifest,
    MemberEntry,
    file_hashes,
    write_manifest,
)
from ensemw2s.ensemble.model import EnsembleForCausalLM
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.errors import ArtifactError, ModelError
from ensemw2s.models.adapters import ADAPTER_WEIGHTS, adapter_base, read_adapter_config
from ensemw2s.models.anchoring import anchor_saved
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.models.tokenizers import check_same_tokenizer, load_tokenizer, tokenizer_hash

MODEL_FILES = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)


@dataclass(frozen=True)
class MemberSource:
    """A trained expert that becomes a member.

    Attributes:
        name: Unique in the ensemble; letters, digits, `_`, `.` and `-`.
        directory: Folder written by `models.loading.save_trained`.
        alpha: Its alpha; a member whose alpha is not positive never votes.
        weight: Its vote, not normalised (method.md: as `ensemble.weights` has it).
        round: The boosting round, from 1.
        weighted_error: Its weighted error, if it has one.
        temperature: What its logits are divided by.
        anchor: How it is mixed with its base; None: not at all.
    """

    name: str
    directory: Path
    alpha: float
    weight: float
    round: int
    weighted_error: float | None = None
    temperature: float = 1.0
    anchor: Anchor | None = None


def save_ensemble(
    directory: str | Path,
    *,
    members: Sequence[MemberSource],
    rule: Rule,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Manifest:
    """Writes an ensemble artifact. Members without a vote are recorded, their weights are left out.

    Bases of adapters are copied where they are local folders; a hub id stays an id with its revision.

    Args:
        directory: Target folder; made if missing.
        members: The experts, in the order of their rounds.
        rule: Combination rule; `probability` where members have different tokenizers.
        tokenizer: The tokenizer of all members; None: each has that of its own folder, and where these differ, the
            ensemble is a mixed one, which votes over bytes.

    Returns:
        What ensemble.json says.

    Raises:
        ArtifactError: If names are not usable, no member votes, or the folder has an ensemble already.
        ModelError: If a member's folder is not a model, or its tokenizer is another one.
    """
    target = Path(directory)
    _check_sources(target, members, rule)
    found = _tokenizers(members, tokenizer)
    hash_of = {name: tokenizer_hash(own) for name, own in found.items()}
    hashes = list(dict.fromkeys(hash_of.values()))
    mixed = len(hashes) > 1
    if mixed and rule != "probability":
        raise ArtifactError(
            f"the members have {len(hashes)} tokenizers and the rule {rule}; over bytes, the rule is probability"
        )
    target.mkdir(parents=True, exist_ok=True)
    places = {one: f"{TOKENIZER}s/{index}" if mixed else TOKENIZER for index, one in enumerate(hashes)}
    for one, place in places.items():
        next(own for name, own in found.items() if hash_of[name] == one).save_pretrained(target / place)
    bases: dict[tuple[str, str | None], BaseEntry] = {}
    entries = [_save_member(target, member, bases) for member in members]
    if mixed:
        entries = [
            entry.model_copy(update={"tokenizer": places[hash_of[entry.name]]}) if entry.name in hash_of else entry
            for entry in entries
        ]
    manifest = Manifest(
        format_version=MIXED_VERSION if mixed else FORMAT_VERSION,
        base_models=list(bases.values()),
        tokenizer_hash=hashlib.sha256(" ".join(hashes).encode()).hexdigest() if mixed else hashes[0],
        tokenizers={place: one for one, place in places.items()} if mixed else {},
        combine=rule,
        members=entries,
    )
    write_manifest(target, manifest)
    return manifest


@dataclass(frozen=True)
class Ensemble:
    """A loaded ensemble.

    Attributes:
        model: The voting model.
        tokenizer: The tokenizer of all members.
        manifest: What ensemble.json says, members without a vote included.
        members: Entries of the members in `model`, in its order.
    """

    model: EnsembleForCausalLM
    tokenizer: PreTrainedTokenizerBase
    manifest: Manifest
    members: list[MemberEntry]

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        rounds: int | None = None,
        verify: bool = True,
    ) -> Ensemble:
        """Loads an artifact, or the ensemble of its first rounds; one of several tokenizers as a `MixedEnsemble`.

        Args:
            path: The folder.
            device: Where the members go.
            dtype: Type of the weights in memory.
            rounds: Only members of rounds 1 to this; default: all.
            verify: Compare the checksums of all files that are loaded.

        Raises:
            ArtifactError: If the artifact is damaged (and in what), from a newer release, or has no vote in `rounds`.
        """
        voices = load_voices(path, device=device, dtype=dtype, rounds=rounds, verify=verify)
        if len(voices) > 1 or voices[0].manifest.tokenizers:
            return MixedEnsemble(voices)
        [parts] = voices
        return Ensemble(EnsembleForCausalLM.of_parts(parts), parts.tokenizer, parts.manifest, parts.entries)

    def by_bytes(
        self, *, epsilon: float = 1e-3, contexts: int = 8, texts: int = 4, sit_out: bool = False
    ) -> ByteMixture:
        """The ensemble as a mixture over bytes, with settings of its own (docs/bytewise.md).

        Args:
            epsilon: Contexts with less than this share of a tokenizer's mass are dropped; 0 keeps all.
            contexts: Contexts that a tokenizer's models keep of one text at most.
            texts: Texts that are written at the same time.
            sit_out: Whether models sit out that cannot read a prompt; else it is refused.

        Raises:
            ModelError: If the rule is not `probability`, or the bytes of a tokenizer's tokens are not known.
        """
        return ByteMixture.of_models(self.voices(), epsilon=epsilon, contexts=contexts, texts=texts, sit_out=sit_out)

    def generate(
        self, prompts: Sequence[AnyPrompt], *, max_new_bytes: int, sampling: Sampling | None = None, seed: int = 0
    ) -> list[ByteAnswer]:
        """Answers texts, byte by byte; see `ByteMixture.generate`. With one tokenizer, `Engine` is quicker."""
        return self._by_bytes.generate(prompts, max_new_bytes=max_new_bytes, sampling=sampling, seed=seed)

    def score(self, prompts: Sequence[AnyPrompt], answers: Sequence[str], *, end: bool = True) -> list[ByteAnswer]:
        """Probabilities of answers, byte by byte; see `ByteMixture.score`."""
        return self._by_bytes.score(prompts, answers, end=end)

    @functools.cached_property
    def _by_bytes(self) -> ByteMixture:
        return self.by_bytes()

    def voices(self) -> list[VoiceModel]:
        """The models of each tokenizer."""
        return [VoiceModel(self.model, self.tokenizer, 1.0)]


class MixedEnsemble(Ensemble):
    """A loaded ensemble whose members have several tokenizers: `generate` and `score` work, over bytes.

    There are no token ids that all members share, so it has no `model` and no `tokenizer`.
    """

    _made: list[VoiceModel]

    def __init__(self, voices: Sequence[Parts]) -> None:
        """Args: what `load.load_voices` gives."""
        models = [EnsembleForCausalLM.of_parts(parts) for parts in voices]
        made = [
            VoiceModel(model, parts.tokenizer, sum(parts.weights)) for model, parts in zip(models, voices, strict=True)
        ]
        set_once = functools.partial(object.__setattr__, self)  # its base is frozen
        set_once("manifest", voices[0].manifest)
        set_once("members", [entry for parts in voices for entry in parts.entries])
        set_once("_made", made)

    def __getattr__(self, name: str) -> object:
        """Refuses what only an ensemble of one tokenizer has."""
        if name in ("model", "tokenizer"):
            raise ModelError(
                f"this ensemble has {len(self._made)} tokenizers, so it has no {name}: Engine, generate() of "
                "transformers and serving need one tokenizer. Its own generate and score work, over bytes"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        """The members' names."""
        return f"{type(self).__name__}({', '.join(entry.name for entry in self.members)})"

    def voices(self) -> list[VoiceModel]:
        """The models of each tokenizer."""
        return list(self._made)


def _check_sources(target: Path, members: Sequence[MemberSource], rule: str) -> None:
    if rule not in RULES:
        raise ArtifactError(f"combination rule is {rule!r}, available: {', '.join(RULES)}")
    if there := [name for name in (MANIFEST, TOKENIZER, "members", "base") if (target / name).exists()]:
        raise ArtifactError(f"{target} has {there[0]} already; expected a new folder for the ensemble")
    names = [member.name for member in members]
    for member in members:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", member.name) or names.count(member.name) > 1:
            raise ArtifactError(f"member name {member.name!r} must be unique, of letters, digits, '_', '.' and '-'")
        if not math.isfinite(member.weight) or member.weight < 0:
            raise ArtifactError(f"weight of member {member.name} is {member.weight}; expected a number of at least 0")
    if not any(_votes(member) for member in members):
        raise ArtifactError(f"none of the {len(names)} members has a positive weight and alpha; nothing could vote")


def _tokenizers(
    members: Sequence[MemberSource], tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, PreTrainedTokenizerBase]:
    """The tokenizer of each member that votes, by name."""
    voters = [member for member in members if _votes(member)]
    if tokenizer is None:
        return {member.name: load_tokenizer(member.directory) for member in voters}
    beside = [m for m in voters if (Path(m.directory) / "tokenizer.json").exists()]
    check_same_tokenizer([("the ensemble", tokenizer), *((m.name, load_tokenizer(m.directory)) for m in beside)])
    return {member.name: tokenizer for member in voters}


def _votes(member: MemberSource) -> bool:
    return member.weight > 0 and member.alpha > 0


def _save_member(target: Path, member: MemberSource, bases: dict[tuple[str, str | None], BaseEntry]) -> MemberEntry:
    facts = {
        "name": member.name,
        "alpha": member.alpha,
        "round": member.round,
        "weighted_error": member.weighted_error,
        "temperature": member.temperature,
    }
    if not _votes(member):
        return MemberEntry(path=None, weight=0.0, **facts)
    source, path = Path(member.directory), f"members/{member.name}"
    base = None
    if (source / ADAPTER_CONFIG).exists():
        _copy(source, target / path, ADAPTER_FILES)
        base = _save_base(target, source, bases)
        config = read_adapter_config(source)
        # Relative to the member, so that the artifact can be moved; `adapter_base` looks there first.
        config.base_model_name_or_path = f"../../{base.path}" if base.files else base.path
        config.revision = base.revision
        config.save_pretrained(str(target / path))
    else:
        _copy(source, target / path, MODEL_FILES)
    if member.anchor is not None:
        anchor_saved(target / path, member.anchor.base, member.anchor.scale)
    files = file_hashes(target / path)
    return MemberEntry(path=path, weight=member.weight, base=base.path if base else None, files=files, **facts)


def _save_base(target: Path, adapter: Path, bases: dict[tuple[str, str | None], BaseEntry]) -> BaseEntry:
    reference = adapter_base(adapter)
    key = (reference["path"], reference["revision"])
    if key not in bases:
        if Path(reference["path"]).is_dir():
            path = f"base/{len(bases)}"
            _copy(Path(reference["path"]), target / path, MODEL_FILES)
            bases[key] = BaseEntry(path=path, files=file_hashes(target / path))
        else:
            bases[key] = BaseEntry(path=reference["path"], revision=reference["revision"])
    return bases[key]


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> None:
    """Copies a model's files, and nothing that lies beside them."""
    files = [file for pattern in patterns for file in sorted(source.glob(pattern))]
    if not any(file.suffix == ".safetensors" for file in files):
        raise ModelError(f"{source} holds no safetensors weights; expected a model that was saved after training")
    target.mkdir(parents=True)
    for file in files:
        shutil.copyfile(file, target / file.name)
