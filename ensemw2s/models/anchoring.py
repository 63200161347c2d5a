"""Anchored models: θ(λ) = θ0 + λ(θ − θ0), with θ a trained model, θ0 its base, and λ the anchor.

With 1 it is the trained model, with 0 its base (Wortsman et al. 2022, *Robust fine-tuning of zero-shot models*). Of
adapters, λ is a factor on their scale. Weights are mixed in float32 from the saved files, however they were trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from transformers import PreTrainedModel

from ensemw2s.errors import ModelError
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.models.loading import load_causal_lm


def load_anchored(
    folder: Path,
    base: str,
    anchor: float,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> PreTrainedModel:
    """Loads a trained full model, mixed with its base.

    Args:
        folder: Where the trained model is.
        base: Folder of its base, or hub id, with `@revision` where it has one.
        anchor: λ.
        dtype: Type of the weights in memory.
        device: Where they go.

    Raises:
        ModelError: If one of both cannot be loaded, or the base has other weights.
    """
    if anchor == 1:
        return load_causal_lm(folder, dtype=dtype, device=device)
    model, untuned = load_causal_lm(folder), load_causal_lm(base).state_dict()
    for name, weights in model.state_dict().items():
        if name not in untuned or untuned[name].shape != weights.shape:
            raise ModelError(f"model {folder} cannot be mixed with its base {base}: the base has no {name} of its size")
    with torch.no_grad():
        for name, weights in model.named_parameters():  # shared ones once
            weights.copy_(torch.lerp(untuned[name], weights, anchor))
    return model.to(dtype).to(device)  # type: ignore[arg-type]  # `to` is wrapped, and annotated by the wrapper


def scale_adapter(model: PeftModel, name: str, anchor: float) -> None:
    """Multiplies the scale of loaded adapters of this name by the anchor."""
    if anchor != 1:
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and name in layer.scaling:
                layer.scaling[name] *= anchor


def anchor_saved(folder: Path, base: str, anchor: float) -> None:
    """Puts anchored weights in place of those of a saved model; of adapters only the scale changes.

    Args:
        folder: A saved model, with its weights and config alone; it is overwritten.
        base: As in `load_anchored`; not read for adapters.
        anchor: λ.

    Raises:
        ModelError: As `load_anchored`.
    """
    if (folder / ADAPTER_CONFIG).exists():
        file = folder / ADAPTER_CONFIG
        config = json.loads(file.read_text(encoding="utf-8"))
        config["lora_alpha"] *= anchor
        config["alpha_pattern"] = {key: value * anchor for key, value in (config.get("alpha_pattern") or {}).items()}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        return
    mixed = load_anchored(folder, base, anchor, dtype=_saved_type(folder))
    kept = {file.name: file.read_bytes() for file in folder.glob("*config.json")}
    shutil.rmtree(folder)
    mixed.save_pretrained(folder)
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def _saved_type(folder: Path) -> torch.dtype:
    """Type of a saved model's weights."""
    with safe_open(min(folder.glob("*.safetensors")), "pt") as tensors:
        return tensors.get_tensor(next(iter(tensors.keys()))).dtype
