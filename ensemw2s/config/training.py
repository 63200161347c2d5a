"""How models are trained: one model's recipe, the workers of a training, and the curves that it leaves."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import Fraction, PositiveInt, Section


class Recipe(Section):
    """How one model is trained."""

    epochs: PositiveInt = Field(3, description="Passes over the data.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] = Field(1e-3, description="Peak learning rate of AdamW.")
    batch_size: PositiveInt = Field(32, description="Examples per optimizer step, over all workers.")
    micro_batch_size: PositiveInt | None = Field(
        None, description="Examples per forward pass on a worker. Default: all at once."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.0, description="AdamW's decoupled weight decay.")
    warmup_fraction: Fraction = Field(0.05, description="Share of the steps in which the learning rate rises linearly.")
    final_lr_fraction: Fraction = Field(
        0.1, description="Learning rate at the end of the cosine, as a share of the peak."
    )
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(
        1.0, description="Largest gradient norm; 0 means no clipping."
    )


class ExpertRecipe(Recipe):
    """How a weak expert is trained."""

    epochs: PositiveInt | Literal["auto"] = Field(  # type: ignore[assignment]  # `resolved` gives a plain recipe
        6,
        description="Passes over the data. auto: as many as answer easy validation best, at most max_epochs; the "
        "schedule is that of max_epochs.",
    )
    max_epochs: PositiveInt = Field(12, description="With epochs auto: most passes over the data.")

    @property
    def chosen(self) -> bool:
        """Whether epochs are chosen on easy validation."""
        return self.epochs == "auto"

    def resolved(self) -> Recipe:
        """As a plain recipe, with the most epochs."""
        plain = {key: getattr(self, key) for key in Recipe.model_fields}
        return Recipe(**plain | {"epochs": self.max_epochs if self.chosen else self.epochs})


class Workers(Section):
    """Data-parallel workers of one model. A number in place of this section sets both keys."""

    min: PositiveInt = Field(1, description="Workers with which a training begins.")
    max: PositiveInt = Field(
        1, description="Most workers. A training grows while the cluster has room, each time from its last checkpoint."
    )

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return value if isinstance(value, dict | Workers) else {"min": value, "max": value}

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.max < self.min:
            raise ValueError(f"max is {self.max}, less than min {self.min}")
        return self

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min} to {self.max}"


class TrainingConfig(Section):
    """What a training gets from the cluster, and how DeepSpeed divides it."""

    workers: Workers = Field(default_factory=Workers, description="Data-parallel workers of one model.")
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        1, description="CPUs per worker, which are also its threads."
    )
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(0, description="GPUs per worker.")
    node_resource: str | None = Field(
        None,
        description="A Ray resource that only nodes for training have. Each worker takes a thousandth of it, so "
        "workers run only there. Default: any node.",
    )
    lanes: PositiveInt | None = Field(
        None, description="Models that are trained at the same time. Default: as many as fit beside half of the actors."
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        1, description="DeepSpeed ZeRO: shards optimizer (1), gradients (2), weights (3)."
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        "none",
        description="What DeepSpeed keeps in CPU memory, so that larger models fit, more slowly: the optimizer (ZeRO 1 "
        "or more), or the weights, too (ZeRO 3).",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto: bf16 on a GPU that has it, else fp32."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    max_failures: Annotated[int, Field(ge=0)] = Field(
        2, description="How often a lane restarts after one of its workers died."
    )
    checkpoint_seconds: Annotated[float, Field(ge=0)] | None = Field(
        300.0,
        description="Seconds between checkpoints of a training. It continues from the last one after a crash or the "
        "loss of its node. 0: before every step. null: no checkpoints.",
    )

    @model_validator(mode="after")
    def _divided(self) -> TrainingConfig:
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload {self.offload} needs zero_stage {least} or more, not {self.zero_stage}")
        return self


class TrackingConfig(Section):
    """Curves of loss, learning rate, gradient norm and speed of every training, and of the rounds."""

    kind: Literal["tensorboard", "mlflow", "wandb", "none"] = Field(
        "tensorboard",
        description="tensorboard: event files in the run's folder `tensorboard`. mlflow: MLflow (pip install "
        "'ensemw2s[mlflow]'). wandb: Weights & Biases (pip install 'ensemw2s[wandb]'), without WANDB_API_KEY only in "
        "the run's folder `wandb`. none: no curves. `tracking: mlflow` is short for `tracking: {kind: mlflow}`.",
    )
    uri: str | None = Field(
        None, description="MLflow's server or folder. Default: MLFLOW_TRACKING_URI, else the run's folder `mlflow`."
    )
    every: PositiveInt = Field(10, description="Steps between two points of a curve.")

    @model_validator(mode="before")
    @classmethod
    def _kind_alone(cls, value: object) -> object:
        return {"kind": value} if isinstance(value, str) else value
