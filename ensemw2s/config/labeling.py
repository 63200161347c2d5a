"""The section `labeling` of the config, and which labels a student learns from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import Fraction, PositiveInt, Section


class LabelingConfig(Section):
    """Decoding and scoring by a pool of actors: pseudo-labels, error masks and evaluation."""

    min_actors: PositiveInt = Field(1, description="Smallest size of the pool.")
    max_actors: PositiveInt | None = Field(None, description="Largest size of the pool. Default: as many as fit.")
    cpus_per_actor: Annotated[float, Field(gt=0)] = Field(1, description="CPUs per actor, which are also its threads.")
    gpus_per_actor: Annotated[float, Field(ge=0)] = Field(0, description="GPUs per actor.")
    node_resource: str | None = Field(
        None,
        description="A Ray resource that only nodes for decoding have. Each actor takes a thousandth of it, so actors "
        "run only there. Training may use these nodes, too, unless it has a resource of its own. Default: any node.",
    )
    batch_size: PositiveInt = Field(128, description="Prompts that an actor decodes at once.")
    chunk_size: PositiveInt = Field(
        512, description="Prompts per output file. After a stop, files that are whole are not made again."
    )
    chunks_per_actor: PositiveInt = Field(
        2,
        description="Chunks that an actor decodes at the same time when it makes labels, so that the next chunk fills "
        "the slots that one leaves free near its end. With 1, batches do not depend on timing; in half precision, "
        "where rounding depends on the batch, labels then stay the same.",
    )
    max_new_tokens: PositiveInt = Field(64, description="Longest answer, in tokens, including the end token.")
    soft_top_k: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="Keep the probabilities of this many tokens at each position; 0 keeps none."
    )
    samples: Annotated[int, Field(ge=1, le=256)] = Field(
        1,
        description="Answers sampled per prompt. The most frequent one is the label (self-consistency).",
    )
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Temperature of the sampling; 0 takes the likeliest token. Scoring and evaluation never sample.",
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Sample from the likeliest tokens that together have this probability."
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Seed of the sampling.")
    max_rejected: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Stop when more prompts than this cannot be labelled. Default: never."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="Type of the weights in decoding and scoring. auto: bf16 on GPUs that have it, else fp32.",
    )
    speculation: str = Field(
        "none",
        min_length=1,
        description="Where drafts come from in speculative decoding, which gives the same answers: none, ngram (what "
        "followed the last tokens earlier), member (the expert with the largest weight), or the folder of a smaller "
        "model with the same tokenizer. Drafting stops if it is not faster.",
    )
    speculation_tokens: Annotated[int, Field(ge=1, le=64)] = Field(4, description="Tokens per draft.")

    @model_validator(mode="after")
    def _pool(self) -> LabelingConfig:
        if self.max_actors is not None and self.max_actors < self.min_actors:
            raise ValueError(f"max_actors is {self.max_actors}, less than min_actors {self.min_actors}")
        return self

    @model_validator(mode="after")
    def _samples(self) -> LabelingConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples is {self.samples}, which are all the same at temperature 0; set temperature, say to 0.7"
            )
        return self

    def deciding(self) -> dict[str, str | float]:
        """The values that labels depend on; batches and drafts, too, as they change rounding in half precision."""
        return self.model_dump(
            include={"max_new_tokens", "soft_top_k", "batch_size", "chunk_size", "precision", "speculation"}
            | ({"speculation_tokens"} if self.speculation != "none" else set())
            | ({"samples", "temperature", "top_p", "seed"} if self.temperature else set())
        )


class LabelFilter(Section):
    """Which pseudo-labels are kept to learn from."""

    min_agreement: Fraction = Field(
        0.0, description="Smallest agreement of the experts, averaged over the label's tokens."
    )
    min_consistency: Fraction = Field(
        0.0, description="Smallest share of samples that gave the answer; needs labeling.samples above 1."
    )
    keep_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Keep this share of the remaining labels, those with the highest agreement."
    )
