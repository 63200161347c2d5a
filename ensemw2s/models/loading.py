"""Weights: a folder or hub id comes in, a causal LM in evaluation mode goes out; a trained model comes in, a folder
of safetensors and a tokenizer goes out.

Its own module because this is the one place that decides what is safe to load: safetensors only, no code from a
repository, and no silently missing weights. Adapters (LoRA) are next door in `adapters`, tokenizers in `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ensemw2s.errors import ModelError
from ensemw2s.models.adapters import (
    BaseReference,
    adapter_base,
    attach_lora,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from ensemw2s.models.hub import locate
from ensemw2s.models.info import ADAPTER_CONFIG, ModelInfo, check_folder, context_of, load_error, model_info
from ensemw2s.models.tokenizers import check_same_tokenizer, load_tokenizer, tokenizer_hash
from ensemw2s.storage import remote

__all__ = [
    "BaseReference",
    "ModelInfo",
    "attach_lora",
    "check_same_tokenizer",
    "load_causal_lm",
    "load_tokenizer",
    "load_trained",
    "logits_vocabulary",
    "model_info",
    "save_trained",
    "tokenizer_hash",
]

CausalLM: TypeAlias = PreTrainedModel | PeftModel


def load_causal_lm(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    revision: str | None = None,
) -> PreTrainedModel:
    """Loads a full causal LM from safetensors, in evaluation mode.

    Args:
        path: Folder or hub id.
        dtype: Type of the weights in memory.
        device: Where they go.
        revision: Git revision on the hub.

    Raises:
        ModelError: If there is no such model, it has only pickled weights, its files are damaged or incomplete, it
            needs code from its repository, or it is no causal LM.
    """
    location = locate(path, revision)
    if location.is_folder:
        check_folder(Path(location.path))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            location.path, dtype=dtype, use_safetensors=True, output_loading_info=True, **location.options()
        )
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # safetensors, transformers and the hub each have their own
        raise load_error(location.path, error) from error
    model, report = loaded  # annotated as the model alone
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"model {path} lacks {len(missing)} weights that {type(model).__name__} needs, the first is {missing[0]}; "
            "is the download complete, and does config.json belong to these weights?"
        )
    assert isinstance(model, PreTrainedModel)
    return model.to(device).eval()  # type: ignore[arg-type]  # `to` is wrapped, and annotated by the wrapper


def load_trained(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    base: PreTrainedModel | str | Path | None = None,
    trainable: bool = False,
) -> CausalLM:
    """Loads what `save_trained` wrote: a full model, or adapters on the base that they name.

    Args:
        directory: Folder of the trained model.
        dtype: Type of the weights in memory. Trainable adapters are float32 at least.
        device: Where they go. With a loaded `base`, that model's device is taken.
        base: For adapters: a base that is loaded already (it is modified: the adapters become part of it), or the
            folder or hub id to use in place of the recorded one.
        trainable: Adapters only: go on training them. Weights of full models are always trainable.

    Raises:
        ModelError: As `load_causal_lm`; and if the adapters are damaged or do not fit the base.
    """
    folder = remote.pull(Path(directory))
    if not (folder / ADAPTER_CONFIG).exists():
        if base is not None:
            raise ModelError(f"{folder} holds no adapters ({ADAPTER_CONFIG} is missing), so it has no base to replace")
        return load_causal_lm(folder, dtype=dtype, device=device)
    config = read_adapter_config(folder)
    if isinstance(base, PreTrainedModel):
        model = base
    else:
        reference = adapter_base(folder, config) if base is None else BaseReference(path=str(base), revision=None)
        model = load_causal_lm(reference["path"], dtype=dtype, device=device, revision=reference["revision"])
    return load_adapter(model, folder, "default", trainable=trainable)


def save_trained(
    model: CausalLM,
    tokenizer: PreTrainedTokenizerBase,
    directory: str | Path,
    *,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    base: BaseReference | None = None,
) -> None:
    """Writes a model as safetensors, beside its tokenizer. Of a PEFT model only the adapters are written.

    Args:
        model: A full model or a PEFT model with one adapter.
        tokenizer: Its tokenizer.
        directory: Target folder; made if missing.
        state_dict: Gathered weights in place of the model's own (which ZeRO may have sharded).
        base: Where a PEFT model's base is, recorded in adapter_config.json. Default: what the adapters recorded.

    Raises:
        ModelError: If a PEFT model's base is not known.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, PeftModel):
        save_adapter(model, folder, state_dict=state_dict, base=base)
    else:
        state = dict(model.state_dict() if state_dict is None else state_dict)
        # A gathered state dict holds copies of tied weights; written out, they would be two weights from then on.
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for target, source in tied.items():
            if source in state:
                state.pop(target, None)
        model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)


def logits_vocabulary(model: torch.nn.Module) -> int:
    """Size of the last dimension of a model's logits (it may exceed the tokenizer's length)."""
    return int(text_config(model).vocab_size)


def context_length(model: torch.nn.Module) -> int | None:
    """Longest sequence a model takes, in tokens; None where its architecture has no limit."""
    return context_of(text_config(model))


def text_config(model: torch.nn.Module) -> PreTrainedConfig:
    """The language model's part of a model's config, also through a PEFT wrapper."""
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner.config.get_text_config()
