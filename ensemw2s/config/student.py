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
        "logconf",
        description="xent: plain fine-tuning. soft: KL divergence from the ensemble's distributions. logconf: "
        "auxiliary confidence loss.",
    )
    confidence_weight: Fraction = Field(
        0.5, description="With logconf: largest weight of the student's own prediction."
    )
    confidence_warmup: Fraction = Field(
        0.2, description="With logconf: share of the steps in which that weight rises from 0."
    )
    labels: Literal["all", "agreed", "unanimous", "own", "auto"] = Field(
        "all",
        description="Which pseudo-labels students learn from. all: every label. agreed: those that student_easy_only "
        "answers, too. unanimous: those that every expert with a vote answers by itself. own: the answers of "
        "student_easy_only in place of the experts'. auto: agreed labels count fully, and the others by how often both "
        "answers agree; where that is seldom, the student is student_easy_only. No hard label is read. "
        "docs/method.md has the rule.",
    )
    mix_easy: bool = Field(True, description="Also train on the easy labelled examples.")
    generations: PositiveInt = Field(
        1,
        description="Generations of students. Above 1, the students of one generation, as an ensemble, label the hard "
        "prompts anew for the next one. The student of the last generation is the system student_generations.",
    )
    generation_width: PositiveInt = Field(
        3, description="Students per generation, except the last one. Each has a seed of its own."
    )

    @property
    def asks_itself(self) -> bool:
        """Whether the strong model, trained on easy examples alone, has a say in its labels."""
        return self.labels in ("agreed", "own", "auto")
