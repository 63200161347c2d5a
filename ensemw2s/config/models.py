"""The section `models` of the config: weak bases, the strong base, and the pre-training of the embedded tiny family."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ensemw2s.config.section import NAME, Fraction, PositiveInt, Section
from ensemw2s.config.training import Recipe

TINY_FAMILY = ("tiny-weak", "tiny-strong")


class Lora(Section):
    """Low-rank adapters (peft) instead of full fine-tuning."""

    rank: PositiveInt = Field(8, description="Rank of the adapters.")
    alpha: Annotated[float, Field(gt=0)] = Field(16, description="The update is multiplied by alpha / rank.")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Dropout before the adapter.")
    target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="Layers that get an adapter.")


class ModelConfig(Section):
    """A base model before fine-tuning."""

    base: str = Field(description="tiny-weak, tiny-strong, a hub id, or a folder with config.json and safetensors.")
    name: str | None = Field(None, pattern=NAME, description="Name in reports. Default: weak-0, weak-1, … by position.")
    revision: str | None = Field(None, description="Git revision on the hub.")
    pretraining_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of an embedded tiny model's pre-training."
    )
    vocabulary: Annotated[int, Field(ge=32, le=65536)] | None = Field(
        None,
        description="Largest vocabulary of an embedded weak model's own tokenizer. Default: it has the family's "
        "(models.pretraining.vocabulary).",
    )
    lora: Lora | None = Field(None, description="Train LoRA adapters only. Default: full fine-tuning.")

    @property
    def is_tiny(self) -> bool:
        return self.base in TINY_FAMILY


class Corpus(Section):
    """Text on which the embedded tiny models are pre-trained.

    With a reasoning_gym data source, fresh documents are generated from it, easy and hard examples in turn and with
    their answers (other seeds than the task's, and none whose prompt is in a held-out split). With other sources the
    documents are the easy training examples, or the files named here.
    """

    weak_documents: PositiveInt = Field(60_000, description="Most short documents that a weak base reads.")
    strong_documents: PositiveInt = Field(120_000, description="Most short documents that the strong base reads.")
    templates: list[str] = Field(
        ["{{ prompt }} : {{ answer }}", "{{ answer }} < {{ prompt }}"],
        min_length=1,
        description="Jinja templates of a document, with prompt, answer and the fields of the source row. Each is used "
        "equally often.",
    )
    corrupted: Fraction = Field(0.25, description="Share of documents with one wrong character.")
    weak_task_fraction: Fraction = Field(
        0.3, description="Share of the weak bases' documents that have the task's own format."
    )
    strong_task_fraction: Fraction = Field(0.0, description="The same for the strong base.")
    paths: list[str] | None = Field(None, description="Parquet, jsonl or csv files with text to read instead.")
    text_column: str = Field("text", description="Column of the text in these files.")


class Pretraining(Section):
    """How the embedded tiny models are pre-trained. Not used for other models."""

    corpus: Corpus = Field(Corpus(), description="The text that they read.")
    vocabulary: Annotated[int, Field(ge=32, le=65536)] = Field(
        160, description="Largest vocabulary of their tokenizer."
    )
    weak: Recipe = Field(
        Recipe(epochs=1, learning_rate=3e-3, batch_size=128, weight_decay=0.01), description="Training of tiny-weak."
    )
    strong: Recipe = Field(
        Recipe(epochs=1, learning_rate=3e-3, batch_size=128, weight_decay=0.01), description="Training of tiny-strong."
    )


class ModelsConfig(Section):
    """The weak bases that supervise and the strong base that learns."""

    weak: list[ModelConfig] = Field(min_length=1, description="Weak base models. Experts start from them in turn.")
    strong: ModelConfig = Field(description="The student's base model.")
    pretraining: Pretraining = Field(Pretraining(), description="For the embedded tiny family only.")

    @property
    def weak_names(self) -> list[str]:
        return [model.name or f"weak-{i}" for i, model in enumerate(self.weak)]

    @field_validator("weak")
    @classmethod
    def _unique_names(cls, value: list[ModelConfig]) -> list[ModelConfig]:
        names = [model.name or f"weak-{i}" for i, model in enumerate(value)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"names must differ, but {', '.join(twice)} is there more than once")
        return value
