"""The graph of a run: every stage that a config asks for, with its folder, its settings and its inputs.

`pipeline.build` makes it from a config. All fingerprints are known before any work starts, so a plan can be shown and a
mismatch refused at once. `Graph.phases` is the one place that has the order of the stages.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from ensemw2s.config import Config, DataConfig, Lora, Recipe, StudentConfig
from ensemw2s.data.shots import with_template
from ensemw2s.storage import remote
from ensemw2s.storage.store import Stage


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model.

    Attributes:
        name: Its name in the config.
        path: Folder where its weights are or will be, or a hub id.
        revision: Git revision on the hub.
        lora: The adapters that are trained on it; None: all weights are.
        tiny: Name in the embedded family, which the run pre-trains; None: the model exists already.
        pretraining_seed: Seed of the pre-training of an embedded one.
        stage: The stage that stands for it.
        vocabulary: Largest vocabulary of an embedded one's own tokenizer; None: it has the family's.
        tokenizer: Number of its tokenizer among those of the weak bases.
    """

    name: str
    path: str
    revision: str | None
    lora: Lora | None
    tiny: str | None
    pretraining_seed: int | None
    stage: Stage
    vocabulary: int | None = None
    tokenizer: int = 0

    @property
    def location(self) -> str:
        """An absolute folder, or the hub id: workers do not share the driver's working folder."""
        folder = Path(self.path).expanduser()
        return str(folder.resolve()) if folder.exists() else self.path

    @property
    def reference(self) -> str:
        """Location and revision in one, for those who take models by name."""
        on_hub = self.revision is not None and not Path(self.path).expanduser().exists()
        return f"{self.location}@{self.revision}" if on_hub else self.location

    @property
    def role(self) -> str:
        """Of an embedded one, the role whose text and recipe it is pre-trained with: `weak` or `strong`."""
        assert self.tiny is not None
        return self.tiny.removeprefix("tiny-")

    @property
    def suffix(self) -> str:
        """Of an embedded one, what the names of its text and tokenizer end with."""
        return "" if self.vocabulary is None else f"-{self.vocabulary}"


@dataclass(frozen=True)
class BaseText:
    """The text that embedded bases are pre-trained on.

    Attributes:
        stage: Its stage.
        seed: Seed of the text that is generated.
    """

    stage: Stage
    seed: int


@dataclass(frozen=True, kw_only=True)
class Expert:
    """A model to train on the easy labelled data.

    Attributes:
        stage: Its stage.
        base: What it starts from.
        recipe: How it is trained.
        seed: Seed of the order of examples, and of the bootstrap.
        keep: Whether the weights of the last epoch are kept, or those of the epoch that does best on easy validation.
        bootstrap_examples: Whether its training examples are drawn with replacement, as in bagging.
        warm_from: The stage of an expert whose weights it starts from in place of the base's.
        best_of: Experts of which the best on easy validation gives base and recipe in place of those above, but for
            the number of epochs.
        kept: The stage whose kept answers to hard prompts it learns from beside the easy examples.
    """

    stage: Stage
    base: Base
    recipe: Recipe
    seed: int
    keep: Literal["last", "best"] = "last"
    bootstrap_examples: bool = False
    warm_from: Stage | None = None
    best_of: tuple[Expert, ...] = ()
    kept: Stage | None = None

    @property
    def lora(self) -> Lora | None:
        return self.base.lora


@dataclass(frozen=True)
class Round:
    """A boosting round.

    Attributes:
        number: Counted from 1.
        stage: The stage that sums it up.
        experts: Its experts.
        retries: Their second try, in the same order, for a first one that gets no vote.
    """

    number: int
    stage: Stage
    experts: tuple[Expert, ...]
    retries: tuple[Expert, ...]


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A consensus pass.

    Attributes:
        number: Counted from 1.
        answers: The stage of the answers to easy validation examples and unlabelled hard prompts.
        kept: The stage of the answers that are kept, as tokens, and of the record that says why.
        rounds: The rounds that follow, whose experts learn from these answers, too.
    """

    number: int
    answers: Stage
    kept: Stage
    rounds: tuple[Round, ...]


@dataclass(frozen=True, kw_only=True)
class Student:
    """A student: the token table it learns from and the model it becomes.

    Attributes:
        name: The system that it is, or, before the last generation, the name of its stage.
        data: The stage of its token table.
        stage: The stage of its training.
        seed: Seed of the order of examples.
        learns_from: What it learns from beside the easy examples, as in `config.systems`.
        maker: Whose pseudo-labels it learns from, a key of `Graph.all_labels`; None: from no pseudo-labels.
        epochs: Its epochs in place of the config's, for as many steps on fewer examples; None: the config's.
    """

    name: str
    data: Stage
    stage: Stage
    seed: int
    learns_from: Literal["easy", "pseudo", "true"]
    maker: str | None
    epochs: int | None = None

    def recipe(self, config: Config) -> StudentConfig:
        """How it is trained."""
        return config.student if self.epochs is None else config.student.model_copy(update={"epochs": self.epochs})


@dataclass(frozen=True, kw_only=True)
class StudentGeneration:
    """Students that label the hard prompts for those of the next generation: they, their ensemble and its labels."""

    number: int
    students: tuple[Student, ...]
    ensemble: Stage
    labels: Stage

    @property
    def name(self) -> str:
        """Its name as a label maker."""
        return f"generation_{self.number}"


PhaseName = Literal[
    "data", "corpus", "models", "tokens", "rounds", "anchor", "consensus", "ensemble", "baselines", "labels",
    "students", "generations", "evaluation",
]  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """Stages that a run does as one piece of work."""

    name: PhaseName
    stages: tuple[Stage, ...]


@dataclass(frozen=True, kw_only=True)
class Graph:
    """All stages of a run.

    Attributes:
        config: What was asked for.
        root: Folder of the run.
        shared: Other runs may be at work on the same stages, which lie in folders named by their fingerprints.
        data: The splits.
        corpus: Text for embedded bases, if there are any.
        weak: The weak bases.
        strong: The strong base.
        tokens: The easy splits as tokens of the weak models.
        rounds: The boosting rounds.
        anchor: The search for the anchor, of the members of these rounds; None where nothing asks for it.
        passes: The consensus passes; what a gate refuses has no answers kept, and no rounds.
        baselines: System → the experts that are trained for it alone. One that answers alone may have several
            candidates, of which easy validation chooses (`specs.best_of`).
        ensemble: The boosted experts as one artifact.
        labels: System → the pseudo-labels that it makes.
        generations: Generations of students before the last one, whose student is one of `students`.
        students: The students that are compared.
        evaluation: Figures of all systems.
    """

    config: Config
    root: Path
    shared: bool
    data: Stage
    corpus: BaseText | None
    weak: tuple[Base, ...]
    strong: Base
    tokens: Stage
    rounds: tuple[Round, ...]
    anchor: Stage | None
    passes: tuple[Pass, ...]
    baselines: Mapping[str, tuple[Expert, ...]]
    ensemble: Stage
    labels: Mapping[str, Stage]
    generations: tuple[StudentGeneration, ...]
    students: tuple[Student, ...]
    evaluation: Stage

    @property
    def rendering(self) -> DataConfig:
        """How prompts become tokens once the splits are made: as the config says, with the few-shot examples."""
        return with_template(self.config.data, self.data.path) if self.config.data.shots else self.config.data

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Every stage once, in the order in which a run does them.

        Baselines wait for no round: where there is room, they are trained beside the rounds.
        """
        return tuple(Phase(name, tuple(stages)) for name, stages in self._phases())

    def _phases(self) -> Iterator[tuple[PhaseName, Iterable[Stage]]]:
        yield "data", [self.data]
        if self.corpus is not None:
            yield "corpus", [self.corpus.stage]
        yield "models", [base.stage for base in self.pretrained]
        yield "tokens", [self.tokens]
        yield "rounds", stages_of_rounds(self.rounds)
        if self.anchor is not None:
            yield "anchor", [self.anchor]
        if self.passes:
            yield "consensus", [s for p in self.passes for s in (p.answers, p.kept, *stages_of_rounds(p.rounds))]
        yield "ensemble", [self.ensemble]
        yield "baselines", [*(e.stage for e in self.baseline_experts), *_stages_of(self.learning_from([None]))]
        yield "labels", self.labels.values()
        yield "students", _stages_of(self.learning_from(self.labels))
        yield (
            "generations",
            [
                stage
                for generation in self.generations
                for stage in (
                    generation.ensemble,
                    generation.labels,
                    *_stages_of(self.learning_from([generation.name])),
                )
            ],
        )
        yield "evaluation", [self.evaluation]

    def stages(self) -> Iterator[Stage]:
        """Every stage that leaves a folder, in the order in which they can run."""
        return (stage for phase in self.phases for stage in phase.stages)

    @property
    def bases(self) -> tuple[Base, ...]:
        """All bases, the strong one first: it takes longest."""
        return (self.strong, *self.weak)

    @property
    def pretrained(self) -> tuple[Base, ...]:
        """The bases that the run pre-trains."""
        return tuple(base for base in self.bases if base.tiny is not None)

    @cached_property
    def mixed(self) -> bool:
        """Whether the weak bases have different tokenizers, so that they vote over bytes."""
        return any(base.tokenizer for base in self.weak)

    def easy(self, split: str, base: Base) -> Path:
        """The tokens of an easy split as a weak base reads it."""
        return self.tokens.path / f"{split}{f'-{base.tokenizer}' if base.tokenizer else ''}.parquet"

    @property
    def boosted(self) -> tuple[Expert, ...]:
        """The experts of the rounds before any pass, without second tries."""
        return tuple(expert for r in self.rounds for expert in r.experts)

    @property
    def all_rounds(self) -> tuple[Round, ...]:
        """The rounds before any pass, then those of the passes."""
        return (*self.rounds, *(r for p in self.passes for r in p.rounds))

    @property
    def baseline_experts(self) -> tuple[Expert, ...]:
        """The experts of all baselines."""
        return tuple(expert for experts in self.baselines.values() for expert in experts)

    @cached_property
    def _experts(self) -> dict[str, Expert]:
        return {expert.stage.name: expert for r in self.all_rounds for expert in (*r.experts, *r.retries)}

    def expert(self, name: str) -> Expert:
        """The boosted expert of this name, a second try too."""
        return self._experts[name]

    def expert_folder(self, name: str) -> Path:
        """Where the boosted expert of this name is or will be, as it was trained."""
        return self.expert(name).stage.path

    @property
    def all_labels(self) -> dict[str, Stage]:
        """Label maker → its labels, those of later generations too."""
        return {**self.labels, **{generation.name: generation.labels for generation in self.generations}}

    def learning_from(self, makers: Collection[str | None]) -> tuple[Student, ...]:
        """The students, of all generations, that learn from the pseudo-labels of any of these; None: from none."""
        earlier = (student for generation in self.generations for student in generation.students)
        return tuple(student for student in (*self.students, *earlier) if student.maker in makers)


def stages_of_rounds(rounds: Iterable[Round]) -> list[Stage]:
    """The stages of these rounds in the order in which they can run, without second tries."""
    return [stage for r in rounds for stage in (*(expert.stage for expert in r.experts), r.stage)]


def _stages_of(students: Iterable[Student]) -> Iterable[Stage]:
    """Tables and models; students of one generation share their table."""
    return {stage.name: stage for student in students for stage in (student.data, student.stage)}.values()


def run_directory(config: Config) -> Path:
    """Folder of the run."""
    return remote.local(config.storage) / config.name
