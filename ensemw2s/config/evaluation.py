"""The section `evaluation` of the config: which systems are compared, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ensemw2s.config.messages import nearest
from ensemw2s.config.section import PositiveInt, Section, raise_all
from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, STUDENT_EASY_ONLY, SYSTEMS


class EvaluationConfig(Section):
    """Which systems are compared, and how."""

    systems: list[str] = Field(
        list(SYSTEMS),
        min_length=1,
        description=f"Any of {', '.join(ALL_SYSTEMS)}. {GENERATIONS} joins the default if student.generations is above "
        f"1, {STUDENT_EASY_ONLY} whatever is named if student.labels asks for its answers.",
    )
    single_max_epochs: PositiveInt | None = Field(
        None,
        description="expert_single's epochs are chosen on validation, up to this many. Default: twice expert.epochs, "
        "or expert.max_epochs where expert.epochs is auto.",
    )
    single_base: Literal["first", "best"] = Field(
        "best",
        description="What expert_single and expert_compute_matched start from: the best of all bases, or the base of "
        "the first expert. With best, expert_single is trained from each, and easy validation chooses.",
    )
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Bootstrap resamples per confidence interval."
    )
    examples: Annotated[int, Field(ge=0, le=200)] = Field(20, description="Decoded examples in the report.")

    @field_validator("systems")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        raise_all([f"{name} is not a system{nearest(name, ALL_SYSTEMS)}" for name in value if name not in ALL_SYSTEMS])
        return [name for name in ALL_SYSTEMS if name in value]
