"""What one training run is: a plain, JSON-serialisable description that a worker needs nothing else to carry out.

Specs are made by the pipeline and read by `loop`, under Ray Train, under torchrun, or in a bare process.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ensemw2s.boosting.masks import RoundWeights
from ensemw2s.config import Lora, Recipe
from ensemw2s.storage.store import Description


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Start(_Frozen):
    """The weights that training starts from."""

    path: str
    """A hub id, a folder with weights, or for a tiny model the folder of its tokenizer."""
    revision: str | None = None
    tiny: str | None = None
    """Initialise this member of the tiny family at random instead of loading weights."""
    lora: Lora | None = None
    """Put new adapters on the loaded weights and train only these."""


class Objective(_Frozen):
    """The loss per token."""

    kind: Literal["xent", "soft", "logconf"] = "xent"
    confidence_weight: float = 0.5
    confidence_warmup: float = 0.2


class Tracking(_Frozen):
    """Where the curves of a training go."""

    kind: Literal["tensorboard", "mlflow", "wandb"] = "tensorboard"
    place: str
    """The folder of its event file, MLflow's tracking URI (a folder, or a server), or the folder of wandb's files."""
    experiment: str = "ensemw2s"
    """MLflow's experiment, or wandb's project."""
    name: str = "training"
    """Name of its run there."""
    every: int = 10
    """Steps between two points."""


class TrainSpec(_Frozen):
    """One model to train."""

    name: str
    output: str
    """Folder that the trained model is put into, with train.json and the marker of `store`."""
    fingerprint: Description
    """Description that the marker keeps (see `store.Stage`)."""
    start: Start
    tokens: list[str]
    """Token tables (parquet), read one after the other as one data set."""
    weights: RoundWeights | None = None
    """Token weights of a boosting round. Default: every token counts the same."""
    recipe: Recipe
    objective: Objective = Objective()
    validation: str | None = None
    """Token table on which the exact match of every epoch is measured."""
    keep: Literal["last", "best"] = "last"
    """Which epoch's weights are kept; best is by validation, the earlier one of equals."""
    seed: int = 0
    zero_stage: Literal[0, 1, 2, 3] = 1
    offload: Literal["none", "optimizer", "parameters"] = "none"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    threads: int = 1
    checkpoint_seconds: float | None = None
    """Seconds between two checkpoints; 0: one before every step. Default: no checkpoints."""
    tracking: Tracking | None = None
