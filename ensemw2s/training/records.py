"""What a training leaves about itself: `train.json` beside the model, and how far it is in each checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from ensemw2s.storage.record import Record
from ensemw2s.storage.store import Description

TRAINED = "train.json"
"""File of a `TrainRecord`, in the folder of the model."""


class TrainRecord(Record):
    """A finished training.

    Attributes:
        name: Name of its spec.
        examples: Examples of the training set.
        epochs: Passes over these.
        kept_epoch: The epoch whose weights were kept, from 1.
        steps: Optimizer steps.
        workers: Workers at the end.
        zero_stage: Stage of ZeRO.
        precision: Type of the weights while training.
        parameters: Numbers in the model.
        trained_parameters: How many of them were trained.
        tokens_trained: Tokens read, prompts included, each epoch counted.
        loss: Mean loss per step of each epoch.
        validation_exact_match: Share of validation examples with every token right, by epoch; empty without any.
        seconds: Wall-clock seconds, those of earlier processes included.
        finished: When it ended, in seconds since 1970.
    """

    name: str
    examples: int
    epochs: int
    kept_epoch: int
    steps: int
    workers: int
    zero_stage: int
    precision: Literal["bf16", "fp32"]
    parameters: int
    trained_parameters: int
    tokens_trained: int
    loss: tuple[float, ...]
    validation_exact_match: tuple[float, ...]
    seconds: float
    finished: float

    @classmethod
    def read(cls, model: Path) -> Self:
        """The record in a model's folder."""
        return cls.read_file(model / TRAINED)

    def write(self, model: Path) -> None:
        """Puts it into a model's folder."""
        self.write_file(model / TRAINED)


class SoFar(Record):
    """What a training has done at a checkpoint, beside its weights.

    Attributes:
        step: Optimizer steps.
        losses: Mean loss per step of each finished epoch.
        validation: Exact match after each finished epoch.
        kept_epoch: Epoch whose weights are the best ones, from 1; 0: none yet.
        loss: Sum over the steps of the epoch under way, of all workers.
        seconds: Wall-clock seconds.
    """

    step: int = 0
    losses: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()
    kept_epoch: int = 0
    loss: float = 0.0
    seconds: float = 0.0


class CheckpointRecord(Record):
    """What a checkpoint is.

    Attributes:
        description: Of the training; only the same one goes on from it.
        step: Optimizer steps done.
        facts: How far the training was.
        files: SHA-256 of each file with tensors, by name.
    """

    description: Description
    step: int
    facts: SoFar
    files: dict[str, str]
