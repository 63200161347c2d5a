"""The sections `boosting` and `ensemble` of the config: the rounds, and the vote of their experts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ensemw2s.config.section import PositiveInt, Section, raise_all


class Member(Section):
    """Overrides for one expert; experts take the list's entries in turn over rounds and width."""

    model: str | None = Field(None, description="Name of a weak base; none: the next one in turn.")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="In place of expert.learning_rate."
    )
    epochs: PositiveInt | None = Field(None, description="In place of expert.epochs.")
    lora_rank: PositiveInt | None = Field(None, description="In place of the base's lora.rank.")


class BoostingConfig(Section):
    """The boosting rounds (docs/method.md has the formulas)."""

    rounds: PositiveInt = Field(5, description="T, the number of rounds.")
    width: PositiveInt = Field(1, description="W, experts a round; 1 is the paper's algorithm.")
    unit: Literal["token", "window", "example"] = Field("token", description="Grain of errors and weights.")
    window: PositiveInt = Field(4, description="Tokens a window, for unit window.")
    prior: Literal["none", "samme", "pretrained"] = Field("none", description="What is added to log((1-error)/error).")
    weighting: Literal["loss", "bootstrap"] = Field("loss", description="Weigh the loss, or draw tokens by weight.")
    bootstrap: Literal["count", "mask"] = Field("count", description="Multiply the loss by draws, or by drawn-at-all.")
    shrinkage: Annotated[float, Field(gt=0, le=1)] = Field(
        0.3, description="Damping of the weight update; 1 is the paper's."
    )
    weight_clip: Annotated[float, Field(gt=1)] | None = Field(
        50.0, description="Largest weight, in multiples of 1/N; none: no limit."
    )
    warm_start: Literal["base", "previous"] = Field(
        "base", description="Experts start from their base or the round before."
    )
    members: list[Member] = Field(
        default_factory=list, description="Overrides of experts; empty: all weak bases in turn."
    )
    on_failure: Literal["stop", "skip", "retry"] = Field("stop", description="When a round's alpha is not positive.")
    error_from: Literal["round", "ensemble"] = Field("round", description="Whose vote makes the round's error mask.")


class EnsembleConfig(Section):
    """How the experts are combined at every token."""

    combine: Literal["probability", "log_probability", "vote"] = Field(
        "probability", description="Average of probabilities, of log-probabilities, or of hard votes."
    )
    weights: Literal["alpha", "uniform", "stacked"] = Field(
        "alpha",
        description="Votes by alpha, equal ones, or those under which easy validation is likeliest (with combine "
        "probability).",
    )
    calibration: Literal["none", "temperature"] = Field(
        "none", description="Whether each expert's logits are divided by a temperature fitted on easy validation."
    )

    @model_validator(mode="after")
    def _fits(self) -> EnsembleConfig:
        wrong = []
        if self.weights == "stacked" and self.combine != "probability":
            wrong.append(f"weights stacked are fitted for combine probability, not for {self.combine}")
        if self.calibration == "temperature" and self.combine == "vote":
            wrong.append(
                "calibration temperature changes no expert's likeliest token, so not combine vote; set it to none"
            )
        raise_all(wrong)
        return self

    @property
    def fitted(self) -> bool:
        """Whether anything about the vote is fitted on easy validation."""
        return self.weights == "stacked" or self.calibration != "none"

    def deciding(self) -> dict[str, str]:
        """The values that the artifact depends on; of those that runs of before did not have, only other ones."""
        usual = {
            key for key in ("weights", "calibration") if getattr(self, key) == type(self).model_fields[key].default
        }
        return self.model_dump(exclude=usual)
