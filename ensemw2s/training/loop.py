"""The training loop of one DeepSpeed worker: a spec goes in, a folder with the trained model comes out. No Ray inside.

It runs under Ray Train (see `launch`), under `torchrun -m ensemw2s.training.loop SPEC.json`, or in one bare process.
One worker and many give the same update up to rounding: token weights are normalised over the whole step, and which
examples form a step does not depend on the number of workers.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, get_scheduler

from ensemw2s import store
from ensemw2s.errors import TrainingError
from ensemw2s.models import loading, tiny
from ensemw2s.models.adapters import ADAPTER_CONFIG
from ensemw2s.training import objectives
from ensemw2s.training.batches import Layout, TrainingSet, collate, read_training_set, step_batches
from ensemw2s.training.curves import Curves
from ensemw2s.training.spec import Start, TrainSpec

OnStep = Callable[[str, int, int, torch.Tensor], None]
"""Called with the spec's name, steps done, steps in all, and the loss: a scalar on the device, for reading it waits."""


def train(spec: TrainSpec, *, device: torch.device | None = None, on_step: OnStep | None = None) -> dict[str, Any]:
    """Trains one model, unless its finished output is there already.

    Every worker of the process group calls it with the same spec; worker 0 writes the output.

    Args:
        spec: What to train.
        device: Where; none: the worker's GPU if there is one, else the CPU.
        on_step: Progress callback on worker 0.

    Returns:
        The facts in train.json: steps, tokens, seconds, losses, validation by epoch.

    Raises:
        TrainingError: If the loss is not finite.
        ArtifactError: If the output folder holds the result of another spec.
    """
    output = Path(spec.output)
    if store.is_done(output, spec.fingerprint):
        facts: dict[str, Any] = store.read_json(output / "train.json")
        return facts
    run = _Run(spec, device or _device())
    try:
        facts = run.fit(on_step)
        state = run.final_weights()
        if run.rank == 0:
            with store.publish(output, spec.fingerprint) as folder:
                loading.save_trained(run.model, run.tokenizer, folder, state_dict=state, base=run.base)
                store.write_json(folder / "train.json", facts)
        if dist.is_initialized():
            dist.barrier()
        return facts
    finally:
        run.close()


class _Run:
    """A model, its DeepSpeed engine and its data, while it trains."""

    def __init__(self, spec: TrainSpec, device: torch.device) -> None:
        self.spec, self.device = spec, device
        torch.set_num_threads(spec.threads)
        init_distributed(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(spec.seed)
        self.model, self.tokenizer, self.base = build(spec.start, device, seed=spec.seed)
        self.layout = Layout.of(
            batch_size=spec.recipe.batch_size,
            micro_batch_size=spec.recipe.micro_batch_size,
            world=self.world,
            rank=self.rank,
        )
        self.data = training_set(spec)
        self.steps_per_epoch = -(-len(self.data) // spec.recipe.batch_size)
        self.steps = self.steps_per_epoch * spec.recipe.epochs
        self.engine = self._engine()
        self.best: dict[str, torch.Tensor] | None = None
        self.curves = Curves(spec.curves if self.rank == 0 else None, spec.curves_every)

    def _engine(self) -> Any:
        import deepspeed

        recipe, spec = self.spec.recipe, self.spec
        if spec.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        scheduler = get_scheduler(
            "cosine_with_min_lr",
            optimizer,
            num_warmup_steps=round(recipe.warmup_fraction * self.steps),
            num_training_steps=self.steps,
            scheduler_specific_kwargs={"min_lr_rate": recipe.final_lr_fraction},
        )
        config = {
            "train_micro_batch_size_per_gpu": self.layout.micro,
            "gradient_accumulation_steps": self.layout.accumulation,
            "gradient_clipping": recipe.gradient_clipping,
            "bf16": {"enabled": use_bf16(spec.precision, self.device)},
            "zero_optimization": {"stage": spec.zero_stage},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        engine, *_ = deepspeed.initialize(
            model=self.model, optimizer=optimizer, lr_scheduler=scheduler, config=config, dist_init_required=False
        )
        return engine

    def fit(self, on_step: OnStep | None) -> dict[str, Any]:
        """Runs all epochs. Returns the facts for train.json."""
        spec, began = self.spec, time.monotonic()
        losses: list[float] = []
        validation: list[float] = []
        best_epoch = spec.recipe.epochs
        for epoch in range(spec.recipe.epochs):
            losses.append(self._epoch(epoch, on_step))
            if spec.validation is not None:
                validation.append(self._validate(spec.validation))
                self.curves.point((epoch + 1) * self.steps_per_epoch, {"validation_exact_match": validation[-1]})
                if spec.keep == "best" and validation[-1] > max(validation[:-1], default=-1.0):
                    best_epoch, self.best = epoch + 1, self._weights()
        tokens = self.data.tokens
        seen = int(tokens.offsets[-1]) + sum(len(p) for p in tokens.prompt_ids)
        return {
            "name": spec.name,
            "examples": len(self.data),
            "epochs": spec.recipe.epochs,
            "kept_epoch": best_epoch,
            "steps": self.steps,
            "workers": self.world,
            "zero_stage": spec.zero_stage,
            "precision": "bf16" if use_bf16(spec.precision, self.device) else "fp32",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "trained_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "tokens_trained": seen * spec.recipe.epochs,
            "loss": losses,
            "validation_exact_match": validation,
            "seconds": round(time.monotonic() - began, 3),
            "finished": time.time(),
        }

    def _epoch(self, epoch: int, on_step: OnStep | None) -> float:
        """One pass over the data. Returns the mean loss a step, over all workers."""
        spec, engine = self.spec, self.engine
        engine.train()
        total = torch.zeros((), device=self.device)
        batches = step_batches(
            self.data, self.layout, pad_id=int(self.tokenizer.pad_token_id or 0), seed=spec.seed, epoch=epoch
        )
        # DeepSpeed averages over workers and micro-batches; the weights are normalised already, so undo both
        scale = self.world * self.layout.accumulation
        for step, micro_batches in enumerate(batches):
            done = epoch * self.steps_per_epoch + step
            step_loss, tokens = torch.zeros((), device=self.device), 0
            for micro in micro_batches:
                tokens += int(micro["attention_mask"].sum()) * self.world
                batch = {key: value.to(self.device) for key, value in micro.items()}
                logits = engine(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                loss, xent = objectives.loss(logits, batch, spec.objective, progress=done / self.steps)
                engine.backward(loss * scale)
                engine.step()
                step_loss += xent
            total += step_loss
            self._tell(done + 1, step_loss, tokens, on_step)
        dist.all_reduce(total)
        mean = float(total) / self.steps_per_epoch
        if not np.isfinite(mean):
            raise TrainingError(
                f"{spec.name}: the loss is {mean} in epoch {epoch + 1}: lower its learning_rate, which is "
                f"{spec.recipe.learning_rate}"
            )
        return round(mean, 6)

    def _tell(self, done: int, step_loss: torch.Tensor, tokens: int, on_step: OnStep | None) -> None:
        """What a step was like; the loss is that of worker 0's share, as if all had the same."""
        if self.rank != 0:
            return
        loss = step_loss * self.world
        if self.curves.due(done, tokens):
            norm = self.engine.get_global_grad_norm()
            values = {"loss": float(loss), "learning_rate": self.engine.get_lr()[0]}
            self.curves.step(done, values | ({} if norm is None else {"gradient_norm": float(norm)}))
        if on_step is not None:
            on_step(self.spec.name, done, self.steps, loss)

    @torch.no_grad()
    def _validate(self, path: str) -> float:
        """Share of examples whose every answer token, the end included, is the most likely one."""
        self.engine.eval()
        data = read_training_set([path], soft=False)
        size = max(self.layout.micro, 32)
        right = 0
        for start in range(0, len(data), size):
            rows = np.arange(start, min(start + size, len(data)))
            batch = collate(data, rows, pad_id=int(self.tokenizer.pad_token_id or 0), total=1.0)
            batch = {key: value.to(self.device) for key, value in batch.items()}
            logits = self.engine(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            ).logits
            wrong = (logits.argmax(-1) != batch["labels"]) & (batch["labels"] != -100)
            right += int((~wrong.any(dim=1)).sum())
        return right / len(data)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights to save, on worker 0's CPU; with ZeRO 3 they are gathered, so all workers call it."""
        import deepspeed

        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        adapters_only = self.spec.start.lora is not None
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if adapters_only and name not in trained:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.spec.zero_stage == 3):
                if self.rank == 0:
                    state[name] = parameter.detach().cpu().clone()
        return state

    def final_weights(self) -> dict[str, torch.Tensor]:
        return self.best if self.best is not None else self._weights()

    def close(self) -> None:
        self.curves.close()
        self.engine.destroy()
        del self.engine, self.model


def training_set(spec: TrainSpec) -> TrainingSet:
    """The spec's data with the token weights of its round."""
    data = read_training_set(spec.tokens, soft=spec.objective.kind == "soft")
    if spec.weights is None:
        return data
    return dataclasses.replace(data, multipliers=spec.weights.multipliers(data.lengths))


def build(
    start: Start, device: torch.device, *, seed: int
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, loading.BaseReference | None]:
    """The model that training starts from, its tokenizer, and for adapters the base they belong to."""
    tokenizer = loading.load_tokenizer(start.path, revision=start.revision)
    if start.tiny is not None:
        fresh = tiny.create_tiny(start.tiny, tokenizer, seed)
        fresh.to(device)  # type: ignore[arg-type]  # transformers wraps `to` in a way that loses its signature
        return fresh, tokenizer, None
    if (Path(start.path) / ADAPTER_CONFIG).exists():  # a warm start from the adapters of an earlier round
        return loading.load_trained(start.path, device=device, trainable=True), tokenizer, None
    model = loading.load_causal_lm(start.path, device=device, revision=start.revision)
    if start.lora is None:
        return model, tokenizer, None
    base = loading.BaseReference(path=start.path, revision=start.revision)
    return loading.attach_lora(model, start.lora, seed), tokenizer, base


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether weights are bfloat16: asked for, or `auto` on a GPU that has it."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())


def init_distributed(device: torch.device) -> None:
    """Joins the process group that is there, or makes one: of torchrun's workers, or of this process alone."""
    _quiet()
    import deepspeed

    if device.type == "cpu":
        # the shared-memory all-reduce would be compiled at the first start; gloo does without
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(key, value)
    if not dist.is_initialized() and os.environ["WORLD_SIZE"] == "1":
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
    deepspeed.init_distributed(dist_backend="gloo" if device.type == "cpu" else "nccl", verbose=False)


def leave_distributed() -> None:
    """Leaves the process group, in a way that this process can join another one later."""
    if dist.is_initialized():
        import deepspeed

        deepspeed.comm.destroy_process_group()  # DeepSpeed forgets the groups that it derived, torch's own does not


def _quiet() -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


def _device() -> torch.device:
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def main(arguments: list[str]) -> None:
    """Trains the specs in the JSON files named on the command line, one after the other."""
    init_distributed(_device())  # also where every spec turns out to be finished
    for path in arguments:
        spec = TrainSpec.model_validate_json(Path(path).read_text(encoding="utf-8"))
        facts = train(spec)
        if dist.get_rank() == 0:
            print(json.dumps(facts))
    leave_distributed()


if __name__ == "__main__":
    main(sys.argv[1:])
