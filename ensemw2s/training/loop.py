"""The training loop of one DeepSpeed worker: a spec goes in, a folder with the trained model comes out. No Ray inside.

It runs under Ray Train (see `launch`), under `torchrun -m ensemw2s.training.loop SPEC.json`, or in one bare process.
One worker and many give the same update up to rounding: token weights are normalised over the whole step, and which
examples form a step does not depend on the number of workers. So a training that was cut off goes on from its last
checkpoint with as many workers as there are then.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ensemw2s import faults
from ensemw2s.data.examples import derive_seed
from ensemw2s.errors import TrainingError
from ensemw2s.models import loading
from ensemw2s.models.head import Head
from ensemw2s.storage import store
from ensemw2s.training import checkpoints, group, objectives, setup, state
from ensemw2s.training.batches import Layout, collate, read_training_set, step_batches
from ensemw2s.training.curves import CurveWriter
from ensemw2s.training.records import SoFar, TrainRecord
from ensemw2s.training.spec import TrainSpec

log = logging.getLogger(__name__)

OnStep = Callable[[str, int, int, torch.Tensor], None]
"""Called with the spec's name, steps done, steps in all, and the loss: a scalar on the device. Reading it waits."""


OnCheckpoint = Callable[[Path, int], None]
"""Called by every worker when a checkpoint is in place, with the folder of checkpoints and the steps done."""

LOOK = 5.0
"""Seconds between two calls of `leaving`, and of `on_checkpoint`, at least. Under Ray Train they take seconds."""


def train(
    spec: TrainSpec,
    *,
    device: torch.device | None = None,
    on_step: OnStep | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    leaving: Callable[[], bool] | None = None,
) -> TrainRecord:
    """Trains one model, unless its finished output is there already; goes on from its last checkpoint if there is one.

    Every worker of the process group calls it with the same spec; worker 0 writes the output.

    Args:
        spec: What to train.
        device: Where it trains. Default: the worker's GPU if there is one, else the CPU.
        on_step: Progress callback on worker 0.
        on_checkpoint: Called by every worker after a checkpoint, at most every `LOOK` seconds.
        leaving: Called by every worker at the same step, every few seconds. It says whether a worker's machine is
            about to be taken away; if so, a checkpoint is written. All workers must get the same answer.

    Returns:
        The record in train.json: steps, tokens, seconds, losses, validation by epoch.

    Raises:
        TrainingError: If the loss is not finite.
        ArtifactError: If the output folder, or a checkpoint beside it, is of another spec.
    """
    output = Path(spec.output)
    if store.is_done(output, spec.fingerprint):
        return TrainRecord.read(output)
    faults.reach("training/begin")
    run = _Run(spec, device or group.best_device(), on_checkpoint, leaving)
    try:
        record = run.fit(on_step)
        weights = run.final_weights()
        if run.rank == 0:
            with store.publish(output, spec.fingerprint) as folder:
                loading.save_trained(run.model, run.tokenizer, folder, state_dict=weights, base=run.base)
                record.write(folder)
            checkpoints.discard(checkpoints.folder_of(output))
        if dist.is_initialized():
            dist.barrier()
        return record
    finally:
        run.close()


@dataclass
class _SoFar:
    """`SoFar` while it grows; `seconds` are those of earlier processes."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    kept_epoch: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    @classmethod
    def of(cls, record: SoFar) -> _SoFar:
        """What a checkpoint says."""
        return cls(**{**dict(record), "losses": list(record.losses), "validation": list(record.validation)})

    def record(self, *, loss: float, seconds: float) -> SoFar:
        """As a checkpoint keeps it: with the loss of all workers and the seconds of this process."""
        return SoFar(**{**dataclasses.asdict(self), "loss": loss, "seconds": seconds})


class _Run:
    """A model, its DeepSpeed engine and its data, while it trains."""

    def __init__(
        self,
        spec: TrainSpec,
        device: torch.device,
        on_checkpoint: OnCheckpoint | None,
        leaving: Callable[[], bool] | None,
    ) -> None:
        self.spec, self.device = spec, device
        self.on_checkpoint, self.leaving = on_checkpoint, leaving
        torch.set_num_threads(spec.threads)
        group.join(device)
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        torch.manual_seed(spec.seed)
        # DeepSpeed would round whole float32 weights to the same, with twice the memory until then
        dtype = torch.bfloat16 if setup.use_bf16(spec.precision, device) else torch.float32
        self.model, self.tokenizer, self.base = setup.build(spec.start, device, seed=spec.seed, dtype=dtype)
        self.layout = Layout.of(
            batch_size=spec.recipe.batch_size,
            micro_batch_size=spec.recipe.micro_batch_size,
            world=self.world,
            rank=self.rank,
        )
        self.data = setup.training_set(spec)
        self.steps_per_epoch = -(-len(self.data) // spec.recipe.batch_size)
        self.steps = self.steps_per_epoch * spec.recipe.epochs
        self.checkpoints = checkpoints.folder_of(Path(spec.output))
        checkpoint = checkpoints.newest(self.checkpoints, spec.fingerprint)
        if checkpoint is not None:
            state.load_weights(self.model, checkpoint)
        self.head = Head(self.model, sharded=spec.zero_stage == 3)
        self.engine = setup.engine(spec, self.model, self.layout, self.steps)
        self.so_far, self.best = _SoFar(), None
        if checkpoint is not None:
            state.load_optimizer(self.engine, self.model, checkpoint)
            self.so_far, self.best = _SoFar.of(checkpoint.so_far), state.best(checkpoint)
        self.started = self.saved = self.looked = time.monotonic()
        self.warned, self.tell, self.restored = False, False, self.so_far.step
        # on the CPU, so that a question does not wait for what a GPU is at
        self.talk = dist.new_group(backend="gloo") if self.world > 1 and device.type != "cpu" else None
        self.curves = CurveWriter(spec.tracking if self.rank == 0 else None, after=self.so_far.step)

    def fit(self, on_step: OnStep | None) -> TrainRecord:
        """Runs all epochs that are left. Returns the record for train.json."""
        spec, so_far = self.spec, self.so_far
        for epoch in range(so_far.step // self.steps_per_epoch, spec.recipe.epochs):
            so_far.losses.append(self._epoch(epoch, on_step))
            if spec.validation is not None:
                found = self._validate(spec.validation)
                self.curves.point(so_far.step, {"validation_exact_match": found})
                if spec.keep == "best" and found > max(so_far.validation, default=-1.0):
                    so_far.kept_epoch, self.best = epoch + 1, self._weights()
                so_far.validation.append(found)
        tokens = self.data.tokens
        seen = int(tokens.offsets[-1]) + sum(len(p) for p in tokens.prompt_ids)
        return TrainRecord(
            name=spec.name,
            examples=len(self.data),
            epochs=spec.recipe.epochs,
            kept_epoch=so_far.kept_epoch or spec.recipe.epochs,
            steps=self.steps,
            workers=self.world,
            zero_stage=spec.zero_stage,
            precision="bf16" if setup.use_bf16(spec.precision, self.device) else "fp32",
            parameters=sum(p.numel() for p in self.model.parameters()),
            trained_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            tokens_trained=seen * spec.recipe.epochs,
            loss=tuple(so_far.losses),
            validation_exact_match=tuple(so_far.validation),
            seconds=round(self._seconds(), 3),
            finished=time.time(),
        )

    def _seconds(self) -> float:
        return self.so_far.seconds + time.monotonic() - self.started

    def _epoch(self, epoch: int, on_step: OnStep | None) -> float:
        """What is left of one pass over the data. Returns the mean loss per step, over all workers."""
        spec, engine, so_far = self.spec, self.engine, self.so_far
        engine.train()
        total = torch.tensor(so_far.loss if self.rank == 0 else 0.0, device=self.device)
        batches = step_batches(
            self.data,
            self.layout,
            pad_id=int(self.tokenizer.pad_token_id or 0),
            seed=spec.seed,
            epoch=epoch,
            first=so_far.step - epoch * self.steps_per_epoch,
        )
        # DeepSpeed averages over workers and micro-batches; the weights are normalised already, so undo both
        scale = self.world * self.layout.accumulation
        for micro_batches in batches:
            self._checkpoint(total)
            faults.reach("training/step")
            torch.manual_seed(derive_seed(spec.seed, "step", so_far.step, self.rank))  # of dropout
            step_loss, tokens = torch.zeros((), device=self.device), 0
            for micro in micro_batches:
                tokens += int(micro["attention_mask"].sum()) * self.world
                batch = {key: value.to(self.device) for key, value in micro.items()}
                loss, xent = self._loss(batch)
                engine.backward(loss * scale)
                engine.step()
                step_loss += xent
            total += step_loss
            so_far.step += 1
            self._tell(so_far.step, step_loss, tokens, on_step)
        dist.all_reduce(total)
        so_far.loss = 0.0
        mean = float(total) / self.steps_per_epoch
        if not np.isfinite(mean):
            raise TrainingError(
                f"{spec.name}: the loss is {mean} in epoch {epoch + 1}: lower its learning_rate, which is "
                f"{spec.recipe.learning_rate}"
            )
        return round(mean, 6)

    def _loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted loss of a micro-batch, and its cross-entropy."""
        tokens = objectives.tokens(batch)
        progress = self.so_far.step / self.steps

        def loss(logits: torch.Tensor, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            those = {key: value[part] for key, value in tokens.items()}
            return objectives.loss(logits, those, self.spec.objective, progress=progress)

        return self.head.losses(self._pass(batch), batch["labels"] != -100, loss)

    def _pass(self, batch: dict[str, torch.Tensor]) -> Callable[[], Any]:
        """A forward pass of a micro-batch."""
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        return lambda: self.engine(**inputs, use_cache=False)

    def _checkpoint(self, total: torch.Tensor) -> None:
        """Writes a checkpoint before a step, if it is time for one by worker 0's clock, or if a machine is leaving.

        Args:
            total: Loss of the epoch so far, of this worker.
        """
        seconds = self.spec.checkpoint_seconds
        if seconds is None:
            return
        now = time.monotonic()
        due, look = self._agreed([now - self.saved >= seconds, now - self.looked >= LOOK])
        if look:
            self.looked, self.tell = now, True
            if self.leaving is not None and not self.warned:
                self.warned = self.leaving()
                due = due or self.warned
        if not due or self.so_far.step == self.restored:
            return
        self.saved = now
        whole = total.clone()
        dist.all_reduce(whole)
        path = self._save(self.so_far.record(loss=float(whole), seconds=self._seconds()))
        if self._agreed([path is not None])[0] and self.on_checkpoint is not None and self.tell:
            self.tell = False
            self.on_checkpoint(self.checkpoints, self.so_far.step)

    def _save(self, so_far: SoFar) -> Path | None:
        """Gathers the state, and on worker 0 writes it; None where that failed, which the training survives."""
        tensors = state.tensors(self.engine, self.model, self.best)
        path = None
        try:
            if self.rank == 0:
                path = checkpoints.save(
                    self.checkpoints,
                    self.spec.fingerprint,
                    so_far=so_far,
                    tensors=tensors,
                )
        except OSError as error:
            log.warning("%s: no checkpoint at step %d: %s", self.spec.name, self.so_far.step, error)
        finally:
            deque(tensors, maxlen=0)  # all workers gather all of them, whatever happens here
        return path

    def _agreed(self, flags: list[bool]) -> list[bool]:
        """What worker 0 says."""
        if self.world == 1:
            return flags
        said = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(said, src=0, group=self.talk)
        return [bool(flag) for flag in said]

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
            at = batch["labels"] != -100
            wrong = torch.zeros_like(at)
            wrong[at] = self.head.logits(self._pass(batch), at).argmax(-1) != batch["labels"][at]
            right += int((~wrong.any(dim=1)).sum())
        return right / len(data)

    def _weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights to save, on worker 0's CPU; with ZeRO 3 they are gathered, so all workers call it."""
        import deepspeed

        trained = {name for name, p in self.model.named_parameters() if p.requires_grad}
        adapters_only = self.spec.start.lora is not None
        weights: dict[str, torch.Tensor] = {}
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if adapters_only and name not in trained:
                continue
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.spec.zero_stage == 3):
                if self.rank == 0:
                    weights[name] = parameter.detach().cpu().clone()
        return weights

    def final_weights(self) -> dict[str, torch.Tensor]:
        return self.best if self.best is not None else self._weights()

    def close(self) -> None:
        self.curves.close(finished=self.so_far.step == self.steps)
        if self.talk is not None:
            dist.destroy_process_group(self.talk)
        self.engine.destroy()
        del self.engine, self.model, self.head
        state.forget_modules()
        gc.collect()  # DeepSpeed's engine is part of a circle: it would stay, with its optimizer, beside the next model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for others on the same GPU


def main(arguments: list[str]) -> None:
    """Trains the specs in the JSON files named on the command line, one after the other."""
    group.join(group.best_device())  # also where every spec turns out to be finished
    for path in arguments:
        spec = TrainSpec.model_validate_json(Path(path).read_text(encoding="utf-8"))
        record = train(spec)
        if dist.get_rank() == 0:
            print(record.model_dump_json())
    group.leave()


if __name__ == "__main__":
    main(sys.argv[1:])
