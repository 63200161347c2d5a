"""The section `evaluation` of the config: which systems are compared, and how."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from ensemw2s.config.messages import nearest
from ensemw2s.config.section import PositiveInt, Section, raise_all
from ensemw2s.config.systems import ALL_SYSTEMS, GENERATIONS, SYSTEMS


class EvaluationConfig(Section):
    """Which systems are compared, and how."""

    systems: list[str] = Field(
        list(SYSTEMS),
        min_length=1,
        description=f"Any of {', '.join(ALL_SYSTEMS)}. Where none are named, {GENERATIONS} is among them if "
        "student.generations is above 1.",
    )
    single_max_epochs: PositiveInt | None = Field(
        None, description="Epochs among which expert_single's are chosen on validation; none: twice expert.epochs."
    )
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        2000, description="Resamples behind an interval."
    )
    examples: Annotated[int, Field(ge=0, le=200)] = Field(20, description="Decoded examples shown in the report.")

    @field_validator("systems")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        raise_all([f"{name} is not a system{nearest(name, ALL_SYSTEMS)}" for name in value if name not in ALL_SYSTEMS])
        return [name for name in ALL_SYSTEMS if name in value]
