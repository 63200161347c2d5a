"""The section `labeling` of the config, and which labels a student learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import Fraction, PositiveInt, Section


class LabelingConfig(Section):
    """Decoding over a pool of actors: pseudo-labels, scoring and evaluation."""

    min_actors: PositiveInt = Field(1, description="Smallest size of the pool.")
    max_actors: PositiveInt | None = Field(
        None, description="Largest size of the pool; none: as many as fit beside half of the actors."
    )
    cpus_per_actor: Annotated[float, Field(gt=0)] = Field(1, description="CPUs of an actor; its threads.")
    gpus_per_actor: Annotated[float, Field(ge=0)] = Field(0, description="GPUs of an actor.")
    node_resource: str | None = Field(
        None,
        description="A resource of those nodes only that are there for decoding: actors take a thousandth of it each, "
        "so no other node will do. Training without a resource of its own may take such nodes, too, and is planned to. "
        "None: any node.",
    )
    batch_size: PositiveInt = Field(128, description="Prompts decoded at a time by an actor.")
    chunk_size: PositiveInt = Field(512, description="Prompts an output file; the grain of resuming.")
    chunks_per_actor: PositiveInt = Field(
        2,
        description="Chunks that an actor decodes at the same time when it makes labels: slots that the last answers "
        "of one leave are taken by the next. With 1 a batch never depends on timing, which matters where rounding "
        "depends on the batch (half precision).",
    )
    max_new_tokens: PositiveInt = Field(64, description="Longest answer, in tokens, the end token included.")
    soft_top_k: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="Keep this many of a token's distribution; 0: none."
    )
    samples: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="Answers drawn for a label; of several the most frequent one becomes the label (self-consistency).",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Of the labels' sampling; 0: the likeliest token. Scoring and evaluation never sample."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Sample from the likeliest tokens that together have this probability."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the sampled answers.")
    max_rejected: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Stop when more prompts than this cannot be labelled; none: never."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Type of the weights while decoding and scoring; auto: bf16 on GPUs that have it, else fp32.",
    )
    speculation: str = Field(
        "none",
        min_length=1,
        description="Drafts that the ensemble checks several tokens at a time, with the same answers: none, ngram "
        "(what followed the last tokens before), member (the expert with the largest weight), or the folder of a "
        "smaller model with the same tokenizer. They stop where they do not pay.",
    )
    speculation_tokens: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Tokens in a draft.")

    @model_validator(mode="after")
    def _pool(self) -> LabelingConfig:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors is {self.max_actors}, less than min_actors {self.min_actors}")
        return self

    @model_validator(mode="after")
    def _samples(self) -> LabelingConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples}, which are all the same at temperature 0; set it to 0.7, say")
        return self

    def deciding(self) -> dict[str, str | float]:
        """The values that labels depend on: batches and drafts too, for they change the rounding in half precision."""
        return self.model_dump(
            include={"max_new_tokens", "soft_top_k", "batch_size", "chunk_size", "precision", "speculation"}
            | ({"speculation_tokens"} if self.speculation != "none" else set())
            | ({"samples", "temperature", "top_p", "seed"} if self.temperature else set())
        )


class LabelFilter(Section):
    """Which pseudo-labels are good enough to learn from."""

    min_agreement: Fraction = Field(0.0, description="Least agreement of the experts, averaged over a label's tokens.")
    min_consistency: Fraction = Field(
        0.0, description="Least share of the samples that gave the answer; needs labeling.samples above 1."
    )
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep this share of what is left, highest agreement first."
    )
