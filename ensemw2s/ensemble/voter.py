"""Anything that answers prompts, by name: a base, an expert, a student, bagged experts, or a saved ensemble.

A description that fits into JSON goes in; a model with its tokenizer comes out, ready for the engine. So an actor
needs nothing but the description.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from ensemw2s.config import DataConfig
from ensemw2s.data.tokens import turn_end
from ensemw2s.ensemble.anchor import Anchor
from ensemw2s.ensemble.combine import Rule
from ensemw2s.errors import ModelError
from ensemw2s.models.tokenizers import load_tokenizer, tokenizer_hash

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from ensemw2s.ensemble.bytewise.mixture import VoiceModel
    from ensemw2s.ensemble.bytewise.voter import LoadedMixture
    from ensemw2s.ensemble.model import EnsembleForCausalLM


class Voter(BaseModel):
    """Models that answer together.

    Attributes:
        name: Name in results.
        models: Folders of the members (a hub id stands for a full model).
        weights: Their weights.
        rule: Combination rule.
        temperatures: What their logits are divided by; empty: 1.
        anchor: λ of the members, which are mixed with their bases when they are loaded.
        bases: Folder or hub id of each member's base, where the anchor is not 1.
        mixed: Whether the models may have several tokenizers: each is read with that of its own folder.
        ensemble: Folder of a saved ensemble, in place of all of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    models: list[str] = []
    weights: list[float] = []
    rule: Rule = "probability"
    temperatures: list[float] = []
    anchor: float = 1.0
    bases: list[str] = []
    mixed: bool = False
    ensemble: str | None = None

    def members(self) -> list[tuple[str, Anchor]]:
        """Each model and how it is mixed with its base."""
        bases = self.bases or [""] * len(self.models)
        return [(model, Anchor(base, self.anchor)) for model, base in zip(self.models, bases, strict=True)]


@dataclass(frozen=True)
class Loaded:
    """A voter in memory."""

    model: EnsembleForCausalLM
    tokenizer: PreTrainedTokenizerBase

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id or 0)

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def ends(self, data: DataConfig) -> tuple[int, ...]:
        """The tokens that end an answer: as trained answers end, EOS, and all that a generation config names."""
        named = self.model.config.eos_token_id
        more = [named] if isinstance(named, int) else list(named or [])
        return tuple(dict.fromkeys([turn_end(self.tokenizer, data)[1], self.eos_id, *more]))


def best_device() -> str:
    """The GPU if there is one."""
    import torch  # takes seconds, and a driver only describes voters

    return "cuda" if torch.cuda.is_available() else "cpu"


def weights_type(precision: str, device: str) -> torch.dtype:
    """The type of the weights that a precision means on a device.

    Args:
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on GPUs that have it, else fp32.
        device: Where the models are.
    """
    import torch

    if precision == "auto":
        has_bf16 = device.startswith("cuda") and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def load_voters(
    voters: list[Voter], *, device: str | None = None, precision: str = "fp32"
) -> list[Loaded | LoadedMixture]:
    """Loads voters; a model that several share is in memory once. They have one tokenizer unless they are mixed.

    Args:
        voters: Descriptions.
        device: Where; default: the GPU if there is one.
        precision: See `weights_type`.

    Raises:
        ModelError: If a model cannot be loaded.
    """
    place = device or best_device()
    dtype = weights_type(precision, place)
    return [*_load_saved(voters, place, dtype)] if voters[0].ensemble else _load_models(voters, place, dtype)


def only_tokens(loaded: Loaded | LoadedMixture, name: str) -> Loaded:
    """A voter of one tokenizer.

    Raises:
        ModelError: If its members have several.
    """
    if isinstance(loaded, Loaded):
        return loaded
    raise ModelError(
        f"ensemble {name} has members of {len(loaded.voices)} tokenizers, so there are no token ids to vote on; this "
        "needs one tokenizer. Ensemble.from_pretrained(...) loads it, and its generate and score work, over bytes"
    )


def _load_saved(voters: list[Voter], device: str, dtype: torch.dtype) -> Iterator[Loaded | LoadedMixture]:
    from ensemw2s.ensemble.artifact import Ensemble, MixedEnsemble

    for voter in voters:
        assert voter.ensemble is not None, "saved ensembles and single models are loaded apart"
        saved = Ensemble.from_pretrained(voter.ensemble, device=device, dtype=dtype)
        if isinstance(saved, MixedEnsemble):
            yield _mixture(saved.voices())
        else:
            yield Loaded(saved.model, saved.tokenizer)


def _load_models(voters: list[Voter], device: str, dtype: torch.dtype) -> list[Loaded | LoadedMixture]:
    from ensemw2s.ensemble.members import load_members
    from ensemw2s.ensemble.model import EnsembleForCausalLM

    wanted = list(dict.fromkeys(member for voter in voters for member in voter.members()))
    paths, anchors = [path for path, _ in wanted], [anchor for _, anchor in wanted]
    loaded = load_members(paths, device=device, dtype=dtype, anchors=anchors)
    models = dict(zip(wanted, loaded, strict=True))
    own = {path: load_tokenizer(path) for path in dict.fromkeys(paths if voters[0].mixed else paths[:1])}

    def together(voter: Voter, chosen: list[int]) -> EnsembleForCausalLM:
        members = voter.members()
        return EnsembleForCausalLM(
            [models[members[i]] for i in chosen],
            [voter.weights[i] for i in chosen],
            voter.rule,
            temperatures=[voter.temperatures[i] for i in chosen] if voter.temperatures else [],
        )

    found: list[Loaded | LoadedMixture] = []
    for voter in voters:
        if not voter.mixed:
            found.append(Loaded(together(voter, list(range(len(voter.models)))), own[paths[0]]))
            continue
        hashes = [tokenizer_hash(own[path]) for path in voter.models]
        groups = [[i for i, other in enumerate(hashes) if other == one] for one in dict.fromkeys(hashes)]
        voices = [(together(voter, group), own[voter.models[group[0]]], group) for group in groups]
        if len(voices) == 1:
            found.append(Loaded(*voices[0][:2]))
        else:
            found.append(_mixture([_voice(m, t, sum(voter.weights[i] for i in group)) for m, t, group in voices]))
    return found


def _voice(model: EnsembleForCausalLM, tokenizer: PreTrainedTokenizerBase, weight: float) -> VoiceModel:
    from ensemw2s.ensemble.bytewise.mixture import VoiceModel

    return VoiceModel(model, tokenizer, weight)


def _mixture(voices: Sequence[VoiceModel]) -> LoadedMixture:
    from ensemw2s.ensemble.bytewise.voter import LoadedMixture

    return LoadedMixture(tuple(voices))
