"""Facts about a full model: a folder or hub id comes in, sizes from config.json and the headers of the weights go out.

Apart from `loading` because a driver asks for sizes only, and what loads weights takes seconds to import.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ensemw2s.errors import ModelError
from ensemw2s.models.hub import Location, locate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ADAPTER_CONFIG = "adapter_config.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5")


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model, read without loading its weights.

    Attributes:
        parameters: Number of weights, tied ones counted once.
        vocabulary: Tokens of the output layer.
        context: Longest sequence in tokens; None where the architecture has no limit.
        architecture: Class name, such as LlamaForCausalLM.
    """

    parameters: int
    vocabulary: int
    context: int | None
    architecture: str


def model_info(path: str | Path, revision: str | None = None) -> ModelInfo:
    """Facts of a full model, from config.json and the headers of its safetensors files.

    Raises:
        ModelError: As `load_causal_lm`.
    """
    location = locate(path, revision)
    if location.is_folder:
        check_folder(Path(location.path))
    from transformers import AutoConfig  # costs seconds to import, with torch

    try:
        config = AutoConfig.from_pretrained(location.path, **location.options())
        parameters = sum(_header_sizes(location))
    except ModelError:
        raise
    except Exception as error:
        raise load_error(location.path, error) from error
    text = config.get_text_config()
    architecture = (config.architectures or [type(config).__name__.replace("Config", "")])[0]
    return ModelInfo(parameters, int(text.vocab_size), context_of(text), architecture)


def context_of(config: PreTrainedConfig) -> int | None:
    """Longest sequence that a config allows, in tokens; None where the architecture has no limit."""
    value = getattr(config, "max_position_embeddings", None)
    return int(value) if value else None


def _header_sizes(location: Location) -> Iterator[int]:
    """Number of weights of each tensor."""
    if not location.is_folder and not location.cached_only:
        from huggingface_hub import get_safetensors_metadata

        metadata = get_safetensors_metadata(location.path, revision=location.revision)
        yield from metadata.parameter_count.values()
        return
    folder = Path(location.path)
    if location.cached_only:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(location.path, revision=location.revision, local_files_only=True))
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping, only looks like one)
                yield prod(tensors.get_slice(name).get_shape())


def check_readable(folder: Path) -> None:
    """Raises `ModelError` if this user may not read a model's folder or a file in it: libraries take it for absent."""
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ModelError(f"model {folder}: permission denied; let this user read the folder (chmod a+rX)")
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        if not os.access(file, os.R_OK):
            raise ModelError(f"model {folder}: {file.name}: permission denied; let this user read it (chmod a+r)")


def check_folder(folder: Path) -> None:
    """Says what is wrong with a folder before transformers does so less clearly."""
    check_readable(folder)
    if (folder / ADAPTER_CONFIG).exists():
        raise ModelError(f"model {folder} is a LoRA adapter; expected a full model (its base, say)")
    if not (folder / "config.json").exists():
        raise ModelError(f"folder {folder} is no model: config.json is missing")
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {folder}: config.json cannot be read: {error}") from None
    if any(folder.glob("*.safetensors")):
        return
    if pickled := sorted(file.name for pattern in PICKLED for file in folder.glob(pattern)):
        raise ModelError(
            f"model {folder} has only pickled weights ({pickled[0]}), which can run code when loaded; convert them to "
            "safetensors (load them once where you trust them, then save_pretrained)"
        )
    raise ModelError(f"model {folder} has no weights: no *.safetensors file is there")


def load_error(path: str, error: Exception) -> ModelError:
    """What safetensors, transformers or the hub said of a model that they could not load, as one line."""
    reason = " ".join(str(error).split())[:300]
    if isinstance(error, SafetensorError):
        return ModelError(f"model {path}: a safetensors file is damaged ({reason}); copy or download it again")
    if "use_safetensors" in reason or "model.safetensors" in reason:
        return ModelError(f"model {path} has no safetensors weights, and pickled ones are not loaded: {reason}")
    if "trust_remote_code" in reason:
        return ModelError(
            f"model {path} needs code from its repository, which is never run; use a built-in architecture"
        )
    return ModelError(f"model {path} cannot be loaded: {reason}")
