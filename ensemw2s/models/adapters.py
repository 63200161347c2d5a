"""LoRA adapters: a base model comes in, a PEFT model with adapters to train goes out; and adapters to and from disk.

Apart from full weights because adapters are only half a model: they must name their base, be checked against it, and
several of them may live on one base that is in memory once.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ensemw2s.config import Lora
from ensemw2s.errors import ModelError
from ensemw2s.models.info import ADAPTER_CONFIG, ModelInfo, check_readable, model_info
from ensemw2s.storage import remote

ADAPTER_WEIGHTS = "adapter_model.safetensors"


class BaseReference(TypedDict):
    """Where the base of an adapter is: folder or hub id, and the git revision on the hub."""

    path: str
    revision: str | None


def attach_lora(model: PreTrainedModel, lora: Lora, seed: int) -> PeftModel:
    """Puts fresh LoRA adapters on a base, whose own weights are frozen. The base is modified.

    Args:
        model: The base.
        lora: Rank, scale, dropout and which layers.
        seed: The same seed on the same kind of device gives the same adapters, whatever was drawn before.

    Raises:
        ModelError: If the base has adapters already, or `lora.target_modules` names none of its layers.
    """
    _check_bare(model)
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # annotated int, used as a number
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        linear = sorted({n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ModelError(f"lora.target_modules {targets}: no such layers in this model; it has {linear}") from None
    assert isinstance(adapted, PeftModel)
    return adapted


def load_adapter(
    model: PreTrainedModel | PeftModel, directory: Path, name: str, *, trainable: bool = False
) -> PeftModel:
    """Puts saved adapters on a base, beside those that are there already.

    Args:
        model: A bare base (it is modified), or the PEFT model to which the adapters are added.
        directory: Folder with adapter_config.json and adapter_model.safetensors.
        name: Name of the adapters in the PEFT model; unique there, and without dots.
        trainable: Whether they are to be trained on.

    Returns:
        The PEFT model; on a bare base the adapters are active.

    Raises:
        ModelError: If the files are damaged, or the adapters do not fit the base.
    """
    saved = _saved_keys(directory)
    read_adapter_config(directory)
    if not isinstance(model, PeftModel):
        _check_bare(model)
    try:
        if isinstance(model, PeftModel):
            adapted = model
            adapted.load_adapter(str(directory), name, trainable, torch_device="cpu", autocast_adapter_dtype=trainable)
        else:
            adapted = PeftModel.from_pretrained(
                model, str(directory), name, trainable, torch_device="cpu", autocast_adapter_dtype=trainable
            )
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"adapter {directory} does not fit its base {_name(model)}: {reason}") from error
    needed = get_peft_model_state_dict(adapted, adapter_name=name, save_embedding_layers=False).keys()
    if missing := sorted(needed - saved):
        raise ModelError(f"adapter {directory} lacks {len(missing)} weights, the first is {missing[0]}")
    adapted.train(trainable)
    return adapted


def save_adapter(
    model: PeftModel,
    directory: Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    base: BaseReference | None = None,
) -> None:
    """Writes the active adapters as safetensors, with the base's path and revision in adapter_config.json.

    Args:
        model: The PEFT model.
        directory: Target folder; exists.
        state_dict: Gathered weights of the PEFT model in place of its own.
        base: Where the base is. Default: what the adapters recorded when they were loaded.

    Raises:
        ModelError: If the base is not known.
    """
    name = model.active_adapter
    config = copy.copy(model.peft_config[name])
    reference = base or BaseReference(path=config.base_model_name_or_path or "", revision=config.revision)
    if not reference["path"]:
        raise ModelError("the base of the adapters is not known; pass base={'path': ..., 'revision': ...}")
    config.base_model_name_or_path = _absolute(reference["path"])
    config.revision = reference["revision"]
    config.inference_mode = True
    # PEFT's own `save_pretrained` asks the hub whether embeddings were resized, and writes into a folder of the
    # adapter's name; both are unwanted here.
    weights = get_peft_model_state_dict(
        model,
        state_dict=dict(state_dict) if state_dict is not None else None,
        adapter_name=name,
        save_embedding_layers=False,
    )
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.save_pretrained(str(directory))


def read_adapter_config(directory: Path) -> PeftConfig:
    """Reads adapter_config.json.

    Raises:
        ModelError: If it is missing, damaged, or of a kind that is not made of layers' adapters.
    """
    if not (directory / ADAPTER_CONFIG).exists():
        raise ModelError(f"adapter {directory}: {ADAPTER_CONFIG} is missing")
    check_readable(directory)
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"adapter {directory}: {ADAPTER_CONFIG} cannot be read: {error}") from error
    if config.is_prompt_learning:
        raise ModelError(f"adapter {directory} is {config.peft_type}; only adapters inside layers (LoRA) are supported")
    return config


def adapter_base(directory: Path, config: PeftConfig | None = None) -> BaseReference:
    """Where an adapter's base is. A relative path is looked for from the adapter's folder first, then from here.

    Raises:
        ModelError: If the adapter does not say.
    """
    config = config or read_adapter_config(directory)
    path = config.base_model_name_or_path
    if not path:
        raise ModelError(f"adapter {directory}: {ADAPTER_CONFIG} does not say which base it is for; pass base=")
    beside = directory / path
    if not os.path.isabs(path) and beside.is_dir():
        path = str(beside.resolve())
    if remote.uri(base := remote.local(path)) is not None:
        path = str(remote.pull(base))
    return BaseReference(path=path, revision=config.revision)


def base_info(directory: Path) -> ModelInfo:
    """Facts of an adapter's base.

    Raises:
        ModelError: It is not where the adapter says; the message says where that is written.
    """
    base = adapter_base(directory)
    try:
        return model_info(base["path"], base["revision"])
    except ModelError as error:
        raise ModelError(
            f"adapter {directory} is for a base that cannot be read: {error}. If the base has moved, write its place "
            f"into {directory / ADAPTER_CONFIG}, under base_model_name_or_path"
        ) from error


def has_adapters(model: torch.nn.Module) -> bool:
    """Whether a PEFT library put adapters into this model's layers."""
    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _check_bare(model: torch.nn.Module) -> None:
    if has_adapters(model):
        raise ModelError(f"base {_name(model)} has adapters in its layers already; load it again, or use its PeftModel")


def _saved_keys(directory: Path) -> set[str]:
    file = directory / ADAPTER_WEIGHTS
    if not file.exists():
        pickled = " (pickled weights are not loaded)" if (directory / "adapter_model.bin").exists() else ""
        raise ModelError(f"adapter {directory}: {ADAPTER_WEIGHTS} is missing{pickled}")
    try:
        with safe_open(file, "pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise ModelError(f"adapter {directory}: {ADAPTER_WEIGHTS} is damaged ({error}); copy it again") from error


def _absolute(path: str) -> str:
    return remote.uri(path) or (os.path.abspath(path) if os.path.isdir(path) else path)


def _name(model: Any) -> str:
    return getattr(model, "name_or_path", "") or type(model).__name__
