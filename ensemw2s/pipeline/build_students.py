"""The stages of students in the graph of a run: their tables of tokens, themselves, and generations that label anew.

Beside `build`, because who learns from whose labels is a question of its own. As there, the settings of a stage are its
fingerprint: a key that changes here makes every run that exists do the stage again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from ensemw2s.config import Config, LabelFilter
from ensemw2s.config.systems import ENSEMW2S, GENERATIONS, STUDENT_EASY_MATCHED, STUDENT_EASY_ONLY, TABLE, System
from ensemw2s.data.examples import derive_seed
from ensemw2s.labeling.choice import LEAST_AGREED
from ensemw2s.pipeline.graph import Base, Student, StudentGeneration
from ensemw2s.pipeline.identity import matching, settings_of
from ensemw2s.storage.store import Stage


class MakeStage(Protocol):
    """Makes a stage in a folder of its name."""

    def __call__(self, name: str, settings: dict[str, object], inputs: tuple[Stage, ...] = ()) -> Stage: ...


@dataclass(frozen=True, kw_only=True)
class StudentStages:
    """Stages that others depend on are properties, so that each is made once.

    Attributes:
        config: What was asked for.
        data: The splits.
        strong: The strong base.
        training: What every training depends on.
        labeling: What all labels depend on.
        combine: What an ensemble with equal votes depends on.
        make: Makes a stage.
    """

    config: Config
    data: Stage
    strong: Base
    training: dict[str, object]
    labeling: dict[str, object]
    combine: dict[str, object]
    make: MakeStage

    @cached_property
    def own_labels(self) -> Stage | None:
        """Answers of the student of easy data alone to the hard prompts, where students learn from what it says."""
        config = self.config
        learning = any(TABLE[name].learns_from == "pseudo" for name in config.evaluation.systems)
        if not (config.student.asks_itself and learning):
            return None
        answering = self._student_of(TABLE[STUDENT_EASY_ONLY], None, {})
        return self.make(f"baselines/labels/{STUDENT_EASY_ONLY}", self.labeling, (self.data, answering.stage))

    def generations(self, labels: Stage) -> tuple[StudentGeneration, ...]:
        """Those that label for another one; the first learns from the labels of the boosted weak experts."""
        made: list[StudentGeneration] = []
        maker = ENSEMW2S
        for number in range(1, self.config.student.generations if GENERATIONS in self.config.evaluation.systems else 1):
            folder = f"generations/{number}"
            table = self.make(f"tokens/{folder}", self._chosen(), (self.data, self.strong.stage, *self._learnt(labels)))
            names = [f"{folder}/students/{k}" for k in range(self.config.student.generation_width)]
            students = tuple(
                Student(
                    name=name,
                    data=table,
                    stage=self._student(name, table, derive_seed(self.config.seed, name)),
                    seed=derive_seed(self.config.seed, name),
                    learns_from="pseudo",
                    maker=maker,
                )
                for name in names
            )
            ensemble = self.make(f"{folder}/ensemble", self.combine, tuple(student.stage for student in students))
            labels = self.make(f"{folder}/labels", self.labeling, (self.data, ensemble))
            made.append(StudentGeneration(number=number, students=students, ensemble=ensemble, labels=labels))
            maker = made[-1].name
        return tuple(made)

    def students(self, labels: Mapping[str, Stage], generations: tuple[StudentGeneration, ...]) -> tuple[Student, ...]:
        labels = {**labels, **{generation.name: generation.labels for generation in generations}}
        students = []
        for system in (TABLE[name] for name in self.config.evaluation.systems):
            if system.learns_from is not None:
                maker = generations[-1].name if system.name == GENERATIONS else system.labels_by
                students.append(self._student_of(system, maker, labels))
        return tuple(students)

    def _student_of(self, system: System, maker: str | None, labels: Mapping[str, Stage]) -> Student:
        """The student that is a system of the comparison; `labels` are those of all makers."""
        assert system.learns_from is not None
        seed = derive_seed(self.config.seed, "student")  # the same for all: they differ in their data alone
        read = self._learnt(labels[maker]) if maker is not None else ()
        settings = {**(self._table() if maker is None else self._chosen()), "student": system.name}
        table = self.make(f"tokens/students/{system.name}", settings, (self.data, self.strong.stage, *read))
        epochs = self._matched() if system.name == STUDENT_EASY_MATCHED else None
        return Student(
            name=system.name,
            data=table,
            stage=self._student(f"students/{system.name}", table, seed, epochs),
            seed=seed,
            learns_from=system.learns_from,
            maker=maker,
            epochs=epochs,
        )

    def _matched(self) -> int:
        """Epochs of easy data with at least as many examples as a student of labels reads, if none is dropped."""
        student, sizes = self.config.student, self.config.data.sizes
        examples = student.keep_fraction * sizes.hard_unlabelled + student.mix_easy * sizes.easy_train
        return max(student.epochs, math.ceil(student.epochs * examples / sizes.easy_train))

    def _table(self) -> dict[str, object]:
        keys = ("mix_easy", "objective", *LabelFilter.model_fields)
        return {f"student.{key}": getattr(self.config.student, key) for key in keys}

    def _chosen(self) -> dict[str, object]:
        """What a table with pseudo-labels depends on; older runs had no choice of them."""
        labels = self.config.student.labels
        if labels == "all":
            return self._table()
        least: dict[str, object] = {"least_agreed": LEAST_AGREED} if labels == "auto" else {}
        return self._table() | {"student.labels": labels, **least, **matching(self.config.data)}

    def _learnt(self, labels: Stage) -> tuple[Stage, ...]:
        """The labels that a table of tokens is made from: these, and the strong model's own where they have a say."""
        return (labels,) if self.own_labels is None else (labels, self.own_labels)

    def _student(self, name: str, table: Stage, seed: int, epochs: int | None = None) -> Stage:
        recipe = settings_of(self.config.student, "student", without=("labels", "generations", "generation_width"))
        lora = self.strong.lora.model_dump(mode="json") if self.strong.lora else None
        if epochs is not None:
            recipe["student.epochs"] = epochs
        settings = {**recipe, **self.training, "lora": lora, "seed": seed}
        return self.make(name, settings, (table, self.strong.stage))
