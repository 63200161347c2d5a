"""The section `student` of the config: what the strong student learns from, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ensemw2s.config.labeling import LabelFilter
from ensemw2s.config.section import Fraction, PositiveInt
from ensemw2s.config.training import Recipe


class StudentConfig(Recipe, LabelFilter):
    """The strong student and what it learns from."""

    epochs: PositiveInt = Field(4, description="Passes over the data.")
    objective: Literal["xent", "soft", "logconf"] = Field(
        "logconf", description="Plain fine-tuning, KL to the ensemble's distributions, or auxiliary confidence loss."
    )
    confidence_weight: Fraction = Field(0.5, description="Largest weight of the student's own prediction in logconf.")
    confidence_warmup: Fraction = Field(0.2, description="Share of the steps over which that weight rises from 0.")
    mix_easy: bool = Field(True, description="Train on the easy labelled examples beside the pseudo-labels.")
    generations: PositiveInt = Field(
        1,
        description="Generations of students. Above 1, the students of each generation but the last label the hard "
        "prompts anew for the next one, as an ensemble; the last one's is the system student_generations.",
    )
    generation_width: PositiveInt = Field(
        3, description="Students of a generation that labels for the next one, each with a seed of its own."
    )
