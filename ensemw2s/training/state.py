"""The state of a DeepSpeed engine as whole tensors, whatever the ZeRO stage and the number of workers.

A training's weights and moments go out to a checkpoint one by one, and come back into an engine that may divide them
otherwise. All workers call these functions together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ensemw2s.training.checkpoints import Checkpoint

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")
BEST = "best"


def tensors(
    engine: Any, model: PreTrainedModel | PeftModel, best_weights: dict[str, torch.Tensor] | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each trained parameter's weights in the precision of the optimizer, and its moments, on the CPU.

    Args:
        engine: The engine.
        model: Its model.
        best_weights: Weights of the best epoch so far, if they are kept; they follow.
    """
    for name, parameter in _trained(model):
        for kind in (WEIGHT, *MOMENTS):
            yield f"{kind}/{name}", _whole(engine, parameter, kind).detach().cpu()
    for name, weights in (best_weights or {}).items():
        yield f"{BEST}/{name}", weights


def best(checkpoint: Checkpoint) -> dict[str, torch.Tensor] | None:
    """Weights of the best epoch, if they were kept."""
    names = [name for name in checkpoint.files if name.startswith(f"{BEST}/")]
    return {name.removeprefix(f"{BEST}/"): checkpoint.tensor(name) for name in names} or None


@torch.no_grad()
def load_weights(model: PreTrainedModel | PeftModel, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's weights into a model, before its engine is made."""
    for name, parameter in _trained(model):
        parameter.copy_(checkpoint.tensor(f"{WEIGHT}/{name}"))


@torch.no_grad()
def load_optimizer(engine: Any, model: PreTrainedModel | PeftModel, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint's moments, weights in full precision and learning rate into an engine.

    Args:
        engine: Just made, of a model that `load_weights` was called with.
        model: The same model.
        checkpoint: The checkpoint.
    """
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for part in _parts(engine.optimizer, base):
        base.state[part] = {kind: torch.zeros_like(part) for kind in MOMENTS}
        base.state[part]["step"] = torch.tensor(float(checkpoint.step))
    if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state"):
        engine.optimizer._lazy_init_hp_params_optimizer_state()  # else done by its first step
    for name, parameter in _trained(model):
        for kind in (WEIGHT, *MOMENTS):
            _set_whole(base, parameter, kind, checkpoint.tensor(f"{kind}/{name}").to(parameter.device))
    scheduler = engine.lr_scheduler
    rates = [
        rate * factor(checkpoint.step) for rate, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    ]
    scheduler.last_epoch, scheduler._step_count, scheduler._last_lr = checkpoint.step, checkpoint.step + 1, rates
    for group, rate in zip(base.param_groups, rates, strict=True):
        group["lr"] = rate


def _trained(model: PreTrainedModel | PeftModel) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _divided(parameter: torch.nn.Parameter) -> bool:
    """Whether DeepSpeed holds the optimizer's part of a parameter, rather than torch's own optimizer."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")


def _parts(optimizer: Any, base: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that the optimizer on this worker has moments of."""
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):  # ZeRO 3
        return list(optimizer.fp32_partitioned_groups_flat)
    return [part for group in base.param_groups for part in group["params"]]


def _whole(engine: Any, parameter: torch.nn.Parameter, kind: str) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    if not _divided(parameter):
        moments = engine.optimizer.state.get(parameter, {})  # none where a parameter has had no gradient yet
        found = parameter if kind == WEIGHT else moments.get(kind, torch.zeros_like(parameter))
    elif kind == WEIGHT:
        found = safe_get_full_fp32_param(parameter)
    else:
        found = safe_get_full_optimizer_state(parameter, kind)
    assert isinstance(found, torch.Tensor)
    return found


def _set_whole(base: torch.optim.Optimizer, parameter: torch.nn.Parameter, kind: str, value: torch.Tensor) -> None:
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    if _divided(parameter):
        if kind == WEIGHT:
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)
    elif kind != WEIGHT:
        base.state[parameter][kind].copy_(value)


def forget_modules() -> None:
    """Empties what DeepSpeed keeps of models that were trained with ZeRO 3, else all of them stay in memory.

    Version 0.19.8 has a list of the modules of the last forward pass, and a cached method (within another function)
    whose arguments are modules.
    """
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator

    vars(parameter_offload).get("FWD_MODULE_STACK", []).clear()
    for method in vars(partitioned_param_coordinator.PartitionedParameterCoordinator).values():
        for held in (method, *(cell.cell_contents for cell in getattr(method, "__closure__", None) or ())):
            if hasattr(held, "cache_clear"):
                held.cache_clear()
