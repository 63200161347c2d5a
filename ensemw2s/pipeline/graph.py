"""The graph of a run: every stage that a config asks for, with its folder, its settings and its inputs.

A config goes in, `Graph` comes out; nothing is read or run except the identity of data and models. Fingerprints of all
stages are known before any work starts, so a plan can be shown and a mismatch refused at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ensemw2s.config import Config, Lora, Recipe
from ensemw2s.storage import remote
from ensemw2s.storage.store import Stage

LABEL_MAKERS = {"student_single": "expert_single", "student_bagging": "bagging", "student_ensemw2s": "ensemw2s"}
"""Students that learn from pseudo-labels of weak models, and whose labels these are."""

FIRST_ROUND = ("unit", "window", "weighting", "bootstrap")
"""Settings of boosting that an expert of the first round depends on."""


@dataclass(frozen=True)
class Base:
    """A base model: where its weights are or will be, and the stage that stands for it."""

    name: str
    path: str
    revision: str | None
    lora: Lora | None
    tiny: str | None
    stage: Stage

    @property
    def reference(self) -> str:
        """Path and revision in one, for those who take models by name."""
        return (
            f"{self.path}@{self.revision}" if self.revision and not Path(self.path).expanduser().exists() else self.path
        )


@dataclass(frozen=True)
class Expert:
    """A model to train on the easy labelled data."""

    stage: Stage
    base: Base
    recipe: Recipe
    seed: int
    warm_from: Stage | None = None

    @property
    def lora(self) -> Lora | None:
        return self.base.lora


@dataclass(frozen=True)
class Round:
    """A boosting round: its experts, their second try if the first fails, and the stage that sums it up."""

    number: int
    stage: Stage
    experts: tuple[Expert, ...]
    retries: tuple[Expert, ...]


@dataclass(frozen=True)
class Student:
    """A student: the token table it learns from and the model it becomes.

    Attributes:
        maker: Whose pseudo-labels it learns from, a key of `Graph.all_labels`; None: no pseudo-labels.
    """

    name: str
    data: Stage
    stage: Stage
    seed: int
    maker: str | None


@dataclass(frozen=True)
class Generation:
    """Students that label the hard prompts for those of the next generation: they, their ensemble and its labels."""

    number: int
    students: tuple[Student, ...]
    ensemble: Stage
    labels: Stage

    @property
    def name(self) -> str:
        """Its name as a label maker."""
        return f"generation_{self.number}"


@dataclass(frozen=True)
class Graph:
    """All stages of a run.

    Attributes:
        shared: Other runs may be at work on the same stages, which lie in folders named by what they are.
        generations: Generations of students before the last one, whose student is one of `students`.
    """

    config: Config
    root: Path
    data: Stage
    corpus: Stage | None
    weak: tuple[Base, ...]
    strong: Base
    tokens: Stage
    rounds: tuple[Round, ...]
    bagging: tuple[Expert, ...]
    single: Expert | None
    compute_matched: Expert | None
    ensemble: Stage
    labels: dict[str, Stage]
    students: tuple[Student, ...]
    evaluation: Stage
    bases: tuple[Base, ...] = field(default=())
    shared: bool = False
    generations: tuple[Generation, ...] = ()

    @cached_property
    def _boosted(self) -> dict[str, Path]:
        experts = [expert for r in self.rounds for expert in (*r.experts, *r.retries)]
        return {expert.stage.name: expert.stage.path for expert in experts}

    def expert_folder(self, name: str) -> Path:
        """Where the boosted expert of this name is or will be."""
        return self._boosted[name]

    @property
    def all_labels(self) -> dict[str, Stage]:
        """Label maker → its labels, those of later generations too."""
        return self.labels | {generation.name: generation.labels for generation in self.generations}

    def learning_from(self, makers: Collection[str | None]) -> tuple[Student, ...]:
        """The students, of all generations, that learn from the pseudo-labels of any of these; None: from none."""
        earlier = (student for generation in self.generations for student in generation.students)
        return tuple(student for student in (*self.students, *earlier) if student.maker in makers)

    def stages(self) -> Iterator[Stage]:
        """Every stage that leaves a folder, in the order in which they can run."""
        yield self.data
        if self.corpus is not None:
            yield self.corpus
        yield from (base.stage for base in self.bases if base.tiny is not None)
        yield self.tokens
        for r in self.rounds:
            yield from (expert.stage for expert in r.experts)
            yield r.stage
        yield from (expert.stage for expert in self.baseline_experts)
        yield self.ensemble
        yield from self.labels.values()
        for generation in self.generations:
            yield generation.students[0].data
            yield from (student.stage for student in generation.students)
            yield generation.ensemble
            yield generation.labels
        for student in self.students:
            yield student.data
            yield student.stage
        yield self.evaluation

    @property
    def baseline_experts(self) -> tuple[Expert, ...]:
        singles = [expert for expert in (self.single, self.compute_matched) if expert is not None]
        return (*singles, *self.bagging)


def run_directory(config: Config) -> Path:
    """Folder of the run."""
    return remote.local(config.storage) / config.name
