"""A trained model goes in, a folder of plain weights comes out, which transformers, vLLM and llama.cpp read.

Full weights are copied as they are. LoRA adapters are merged into their base, so that nobody needs peft, or the base.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import cached_file

from ensemw2s.config.systems import STUDENT_ENSEMW2S
from ensemw2s.ensemble.manifest import MANIFEST
from ensemw2s.errors import ConfigError, ModelError
from ensemw2s.models.adapters import adapter_base
from ensemw2s.models.hub import Location, locate
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.models.loading import load_causal_lm, load_trained, save_trained
from ensemw2s.models.tokenizers import TOKENIZER_FILES, load_tokenizer
from ensemw2s.publishing.card import CARD, Origin, write_card
from ensemw2s.storage import remote
from ensemw2s.storage.store import MARKER

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        source: The model's folder.
        merged: Whether adapters were merged into their base.
        dtype: Type of the weights.
        size: Bytes of the folder.
    """

    source: Path
    merged: bool
    dtype: str
    size: int


def trained_model(place: str | Path) -> Path:
    """The folder of a trained model; of a run that of its student.

    Raises:
        ConfigError: If it is an ensemble, or there is no such model.
    """
    folder = remote.local(place)
    if remote.exists(folder / "config.yaml") and remote.exists(folder / "manifest.json"):
        folder = folder / "students" / STUDENT_ENSEMW2S
    if remote.exists(folder / MANIFEST):
        raise ConfigError(
            f"{remote.shown(folder)} is an ensemble: several models that vote, which no single model can stand in for. "
            "Serve it with `ensemw2s serve`, or export its run's student"
        )
    folder = remote.pull(folder)
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise ConfigError(
            f"{remote.shown(folder)} holds no trained model (config.json or {ADAPTER_CONFIG}); name a finished run, or "
            "a model's folder in it, such as RUN/students/NAME"
        )
    return folder


def export(place: str | Path, output: Path, dtype: DType = "auto") -> Exported:
    """Writes a trained model as plain weights with its tokenizer and a model card.

    Args:
        place: Folder of a full model or of LoRA adapters, or of a run, whose student is taken.
        output: Folder to write; it must not exist, or be empty.
        dtype: Type of the weights; auto: that of the model, and for adapters that of their base.

    Raises:
        ConfigError: If there is nothing to export, or something in the way.
        ModelError: If the model, or its base, cannot be loaded.
    """
    source = trained_model(place)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"{output} exists; name a new folder")
    merged = (source / ADAPTER_CONFIG).is_file()
    base = _base(source) if merged else None
    kind = _dtype(base or Location(str(source)), dtype)
    if merged or dtype != "auto":
        model: Any = load_trained(source, dtype=kind) if merged else load_causal_lm(source, dtype=kind)
        if isinstance(model, PeftModel):
            model = _merged(model)
        output.mkdir(parents=True, exist_ok=True)
        save_trained(model, load_tokenizer(source), output)
        _copy_missing(source, base, output)
    else:
        shutil.copytree(source, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER, CARD, ".*"))
    write_card(output, Origin.of(source), merged=merged)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return Exported(source, merged, str(kind).removeprefix("torch."), size)


def _base(source: Path) -> Location:
    reference = adapter_base(source)
    return locate(reference["path"], reference["revision"])


def _dtype(location: Location, wanted: DType) -> torch.dtype:
    if wanted != "auto":
        found = getattr(torch, wanted)
        assert isinstance(found, torch.dtype)
        return found
    config = AutoConfig.from_pretrained(location.path, **location.options())
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return own if isinstance(own, torch.dtype) else torch.float32


def _merged(model: PeftModel) -> PreTrainedModel:
    """The base with the adapters in its weights.

    Raises:
        ModelError: If an embedding has adapters and the base uses it twice: a plain model of its kind has but one.
    """
    base: Any = model.get_base_model()
    tied = bool(getattr(base.config.get_text_config(), "tie_word_embeddings", False))
    if tied and any(isinstance(m, BaseTunerLayer) for m in (base.get_input_embeddings(), base.get_output_embeddings())):
        raise ModelError(
            "adapters have changed one of two embeddings that the base shares, and a plain model of this kind has but "
            "one: train without adapters on the embeddings (models.strong.lora.target_modules)"
        )
    merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    return merged


def _copy_missing(source: Path, base: Location | None, output: Path) -> None:
    """Adds the end tokens of the source, and the tokenizer's files that only other tools read."""
    if (own := source / "generation_config.json").is_file():
        shutil.copyfile(own, output / own.name)
    for name in TOKENIZER_FILES:
        if (output / name).exists():
            continue
        found = source / name if (source / name).is_file() else None
        if found is None and base is not None:
            cached = cached_file(base.path, name, _raise_exceptions_for_missing_entries=False, **base.options())
            found = None if cached is None else Path(cached)
        if found is not None:
            shutil.copyfile(found, output / name)
