"""The sections `boosting` and `ensemble` of the config: the rounds, and the vote of their experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import Fraction, PositiveInt, Section, raise_all

Anchor = Fraction | Literal["auto"]
"""A factor λ on what training changed in a member, or `auto`: found without hard labels."""


class Member(Section):
    """Changes for one expert. Experts take the entries of the list in turn, over rounds and width."""

    model: str | None = Field(None, description="Name of a weak base. Default: the next one in turn.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Replaces expert.learning_rate."
    )
    epochs: PositiveInt | None = Field(None, description="Replaces expert.epochs.")
    lora_rank: PositiveInt | None = Field(None, description="Replaces the base's lora.rank.")


class BoostingConfig(Section):
    """The boosting rounds. docs/method.md has the formulas."""

    rounds: PositiveInt = Field(5, description="Number of boosting rounds, T.")
    width: PositiveInt = Field(1, description="Experts per round, W. The paper's algorithm has 1.")
    unit: Literal["token", "window", "example"] = Field(
        "token", description="What has an error and a weight: each token, each window of tokens, or each example."
    )
    window: PositiveInt = Field(4, description="Tokens per window, with unit window.")
    prior: Literal["none", "samme", "pretrained"] = Field(
        "none",
        description="The reference in alpha = log((1-error)/error) + prior: an expert no better than it gets alpha 0. "
        "none: an error of one half. samme: guessing a token. pretrained: the base before training.",
    )
    weighting: Literal["loss", "bootstrap"] = Field(
        "loss",
        description="loss: multiply each token's loss by its weight. bootstrap: draw tokens by weight, as the paper "
        "does.",
    )
    bootstrap: Literal["count", "mask"] = Field(
        "count",
        description="With weighting bootstrap, multiply the loss by how often a token was drawn (count), or by whether "
        "it was (mask, as in the paper).",
    )
    shrinkage: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="Factor on the weight update; the paper's is 1, smaller values damp it."
    )
    weight_clip: Annotated[float, Field(gt=1)] | None = Field(
        50.0, description="Largest weight, in multiples of 1/N. null: no limit."
    )
    warm_start: Literal["base", "previous"] = Field(
        "base",
        description="What experts start from: their base, or the last earlier expert of that base, if there is one.",
    )
    members: list[Member] = Field(
        default_factory=list, description="Changes for experts. Empty: all weak bases in turn."
    )
    on_failure: Literal["stop", "skip", "retry"] = Field(
        "stop",
        description="What to do when a round's alpha is not positive: stop the run, skip the round, or repeat it once "
        "with uniform weights.",
    )
    error_from: Literal["round", "ensemble"] = Field(
        "round",
        description="Whose errors raise the weights: those of the round's experts, or of the whole ensemble so far.",
    )
    anchor: Anchor = Field(
        1.0,
        description="Keep this share of what training changed in each member, and its base's own weights for the rest. "
        "1 keeps the members as they were trained, 0 gives the bases. auto: the share with the largest sum of easy "
        "validation accuracy and agreement on unlabelled hard prompts; 1 after a consensus pass.",
    )

    def deciding(self) -> dict[str, object]:
        """The settings that rounds depend on, by dotted key; an anchor moves the members when they are trained."""
        values = self.model_dump(mode="json", exclude={"rounds", "members", "width", "anchor"})
        return {f"boosting.{key}": value for key, value in values.items()}


class EnsembleConfig(Section):
    """How the experts' predictions are combined at every token."""

    combine: Literal["probability", "log_probability", "vote"] = Field(
        "probability",
        description="Average the experts' probabilities, their log-probabilities, or their votes for one token.",
    )
    weights: Literal["alpha", "uniform", "stacked"] = Field(
        "alpha",
        description="Weights of the experts: alpha, equal ones, or those under which easy validation is most likely "
        "(stacked; with combine probability).",
    )
    calibration: Literal["none", "temperature"] = Field(
        "none",
        description="temperature: divide each expert's logits by a temperature that is fitted on easy validation.",
    )

    @model_validator(mode="after")
    def _fits(self) -> EnsembleConfig:
        wrong = []
        if self.weights == "stacked" and self.combine != "probability":
            wrong.append(f"weights stacked are fitted for combine probability, not for {self.combine}")
        if self.calibration == "temperature" and self.combine == "vote":
            wrong.append("calibration temperature changes nothing under combine vote; set calibration to none")
        raise_all(wrong)
        return self

    @property
    def fitted(self) -> bool:
        """Whether anything about the vote is fitted on easy validation."""
        return self.weights == "stacked" or self.calibration != "none"

    def deciding(self) -> dict[str, str]:
        """The values that the artifact depends on. Keys that older runs did not have count only with other values."""
        usual = {
            key for key in ("weights", "calibration") if getattr(self, key) == type(self).model_fields[key].default
        }
        return self.model_dump(exclude=usual)
