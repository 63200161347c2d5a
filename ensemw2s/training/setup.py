"""What a training begins with: its examples with their token weights, its model, and DeepSpeed's engine around that."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from ensemw2s.boosting.segments import numbered
from ensemw2s.models import loading, tiny
from ensemw2s.models.info import ADAPTER_CONFIG
from ensemw2s.training.batches import Layout, TrainingSet, read_training_set
from ensemw2s.training.spec import Start, TrainSpec


def training_set(spec: TrainSpec) -> TrainingSet:
    """The spec's data with the token weights of its round."""
    data = read_training_set(spec.tokens, soft=spec.objective.kind == "soft")
    if spec.weights is None:
        return data
    if data.segments is None:
        return dataclasses.replace(data, multipliers=spec.weights.multipliers(data.lengths))
    segments, counts = numbered(data.segments)
    shares = 1.0 / np.bincount(segments)
    weights = spec.weights.multipliers(counts)
    return dataclasses.replace(data, multipliers=weights[segments], shares=shares[segments])


def build(
    start: Start, device: torch.device, *, seed: int, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, loading.BaseReference | None]:
    """The model that training starts from, its tokenizer, and for adapters the base they belong to.

    Args:
        start: Where the weights are.
        device: Where they go.
        seed: Of new weights and adapters, which are float32.
        dtype: Type of loaded weights in memory.
    """
    tokenizer = loading.load_tokenizer(start.path, revision=start.revision)
    if start.tiny is not None:
        fresh = tiny.create_tiny(start.tiny, tokenizer, seed)
        fresh.to(device)  # type: ignore[arg-type]  # transformers wraps `to` in a way that loses its signature
        return fresh, tokenizer, None
    if (Path(start.path) / ADAPTER_CONFIG).exists():  # a warm start from the adapters of an earlier round
        return loading.load_trained(start.path, dtype=dtype, device=device, trainable=True), tokenizer, None
    model = loading.load_causal_lm(start.path, dtype=dtype, device=device, revision=start.revision)
    if start.lora is None:
        return model, tokenizer, None
    base = loading.BaseReference(path=start.path, revision=start.revision)
    return loading.attach_lora(model, start.lora, seed), tokenizer, base


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether weights are bfloat16: asked for, or `auto` on a GPU that has it."""
    if precision != "auto":
        return precision == "bf16"
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def engine(spec: TrainSpec, model: PreTrainedModel | PeftModel, layout: Layout, steps: int) -> Any:
    """DeepSpeed's engine, with an optimizer and a schedule of so many steps."""
    import deepspeed

    recipe, device = spec.recipe, model.device
    if spec.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scheduler = get_scheduler(
        "cosine_with_min_lr",
        optimizer,
        num_warmup_steps=round(recipe.warmup_fraction * steps),
        num_training_steps=steps,
        scheduler_specific_kwargs={"min_lr_rate": recipe.final_lr_fraction},
    )
    to_cpu = {"device": "cpu", "pin_memory": device.type != "cpu"}
    offloaded = {"none": (), "optimizer": ("optimizer",), "parameters": ("optimizer", "param")}[spec.offload]
    config = {
        "train_micro_batch_size_per_gpu": layout.micro,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": recipe.gradient_clipping,
        "bf16": {"enabled": use_bf16(spec.precision, device)},
        "zero_optimization": {
            "stage": spec.zero_stage,
            "contiguous_gradients": layout.world > 1,  # a copy that makes gradients ready to be sent
            **{f"offload_{kind}": to_cpu for kind in offloaded},
        },
        "zero_force_ds_cpu_optimizer": False,  # its own would be compiled first, and rounds otherwise
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    made, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=scheduler, config=config, dist_init_required=False
    )
    return made
