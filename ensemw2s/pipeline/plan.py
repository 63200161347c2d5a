"""What `ensemw2s plan` shows: a run's graph and what lies on disk go in, every stage with its state and size comes out.

Reading the disk (`survey`), laying out the plan (`lay_out`, a pure function) and printing it (`print_plan`) are apart,
so that what a plan says can be tested without a run. Nothing here writes, and nothing starts Ray.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from ensemw2s.boosting.records import RoundRecord
from ensemw2s.cluster.connect import cluster_address, connect
from ensemw2s.cluster.resources import Resources, local_resources
from ensemw2s.config import Config, Recipe
from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.wording import amount
from ensemw2s.models.info import model_info
from ensemw2s.models.tiny import tiny_parameters
from ensemw2s.pipeline.graph import Base, Expert, Generation, Graph, Student
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Stage
from ensemw2s.training import checkpoints

State = Literal["done", "to do", "changed", "not needed"]


@dataclass(frozen=True)
class Found:
    """What lies on disk for a stage.

    Attributes:
        state: `changed` is finished work of another config; `not needed` is a round after the end of boosting.
        detail: Settings that changed (empty where only inputs did), or why it is not needed.
    """

    state: State
    detail: str = ""


@dataclass(frozen=True)
class Item:
    """A line of the plan: stages that belong together.

    Attributes:
        name: Name of the stage, or of the first and the last.
        what: Sizes in words.
        stages: The stages behind it; none for a model that is given.
        steps: Optimizer steps of each stage that trains a model.
        given: A base model that is there already and is not made by the run.
    """

    name: str
    what: str
    stages: tuple[Stage, ...]
    steps: dict[str, int] = field(default_factory=dict)
    given: bool = False


@dataclass(frozen=True)
class Plan:
    """A run as it would go on.

    Attributes:
        config: Its config.
        where: Its folder.
        items: All stages in the order of the pipeline.
        found: What lies on disk, by name of the stage.
        complete: The results are there, too.
    """

    config: Config
    where: str
    items: tuple[Item, ...]
    found: dict[str, Found]
    complete: bool

    def names(self, *states: State) -> list[str]:
        """Names of all stages in one of these states."""
        return [name for name, found in self.found.items() if found.state in states]

    def left(self) -> tuple[int, int]:
        """Models that are still to be trained, and their optimizer steps in all."""
        waiting = set(self.names("to do", "changed"))
        steps = [n for item in self.items for name, n in item.steps.items() if name in waiting]
        return len(steps), sum(steps)


def survey(graph: Graph) -> dict[str, Found]:
    """Looks up what is finished. Reads markers and round.json files only."""
    found = {stage.name: _look(stage) for stage in graph.stages()}
    ended = _end_of_boosting(graph, found)
    for r in graph.rounds:
        for stage in (*(expert.stage for expert in r.experts), r.stage):
            if ended is not None and r.number > ended and found[stage.name].state == "to do":
                found[stage.name] = Found("not needed", f"boosting ended with round {ended}, which got no vote")
    return found


def _look(stage: Stage) -> Found:
    try:
        done = store.is_done(stage.path, stage.description)
        checkpoints.check(checkpoints.folder_of(stage.path), stage.description)
        return Found("done" if done else "to do")
    except ArtifactError as error:
        try:
            earlier = store.read_json(stage.path / store.MARKER)
            own = earlier["settings"] != stage.settings
        except (ArtifactError, KeyError, TypeError):  # no JSON, or JSON of something else
            return Found("changed", str(error))
        return Found("changed", store.difference(earlier, stage.description) if own else "")


def _end_of_boosting(graph: Graph, found: dict[str, Found]) -> int | None:
    """The round that was refused and with which boosting stopped."""
    if graph.config.boosting.on_failure == "skip":
        return None
    for r in graph.rounds:
        if found[r.stage.name].state != "done":
            return None
        if not RoundRecord.read(r.stage.path).accepted:
            return r.number
    return None


def parameters(graph: Graph) -> dict[str, int]:
    """Number of weights of each base model, by name; of embedded ones with the largest vocabulary they may get.

    Raises:
        ModelError: If a model that the config names cannot be read.
    """
    vocabulary = graph.config.models.pretraining.vocabulary
    return {
        base.name: tiny_parameters(base.tiny, vocabulary)
        if base.tiny is not None
        else model_info(base.path, base.revision).parameters
        for base in graph.bases
    }


def resources_for(config: Config, *, debug: bool = False) -> Resources:
    """What the run would have: this machine, or the cluster that the config or RAY_ADDRESS names, which is asked.

    Raises:
        ResourceError: If that cluster cannot be reached.
    """
    if cluster_address(config.cluster) is None:
        return local_resources(config.cluster)
    with connect(config.cluster, debug=debug) as resources:
        return resources


def lay_out(graph: Graph, found: dict[str, Found], sizes: dict[str, int]) -> Plan:
    """Puts the stages into words. Pure.

    Args:
        graph: The stages.
        found: What lies on disk (`survey`).
        sizes: Number of weights of each base model (`parameters`).
    """
    complete = found[graph.evaluation.name].state == "done"
    return Plan(graph.config, remote.shown(graph.root), tuple(_merged(_items(graph, sizes))), found, complete)


def _items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    config, members = graph.config, graph.config.boosting.rounds * graph.config.boosting.width
    s, systems = config.data.sizes, config.evaluation.systems
    yield Item("data", _data_words(config), (graph.data,))
    if graph.corpus is not None:
        roles = sorted({str(b.tiny).removeprefix("tiny-") for b in graph.bases if b.tiny is not None}, reverse=True)
        texts = ", ".join(f"{_documents(config, role)} documents for {role} bases" for role in roles)
        yield Item("corpus", f"at most {texts}", (graph.corpus,))
    for base in graph.bases:
        yield _base_item(graph, base, sizes)
    yield Item("tokens", f"{s.easy_train + s.easy_validation} easy examples", (graph.tokens,))
    for r in graph.rounds:
        words = "; ".join(dict.fromkeys(f"{e.base.name}, {_recipe(e, config)}" for e in r.experts))
        count = "1 expert" if len(r.experts) == 1 else f"{len(r.experts)} experts"
        yield _training_item(r.stage.name, f"{count} from {words}", r.experts, config, r.stage)
    if graph.single is not None:
        words = f"1 expert from {graph.single.base.name}, at most {_recipe(graph.single, config)}"
        yield _training_item(graph.single.stage.name, words, (graph.single,), config)
    if graph.compute_matched is not None:
        words = f"1 expert from {graph.compute_matched.base.name}, {_recipe(graph.compute_matched, config)}"
        yield _training_item(graph.compute_matched.stage.name, words, (graph.compute_matched,), config)
    if graph.bagging:
        words = "; ".join(dict.fromkeys(_recipe(expert, config) for expert in graph.bagging))
        words = f"{len(graph.bagging)} experts, {words}{' each' if len(graph.bagging) > 1 else ''}"
        yield _training_item("baselines/bagging", words, graph.bagging, config)
    yield Item(
        "ensemble", f"at most {members} members, {', '.join(config.ensemble.deciding().values())}", (graph.ensemble,)
    )
    for maker, stage in graph.labels.items():
        by = {"ensemw2s": "the ensemble", "bagging": "bagging", "expert_single": "one expert"}[maker]
        yield Item(stage.name, f"{s.hard_unlabelled} hard prompts, by {by}", (stage,))
    for generation in graph.generations:
        yield from _generation_items(graph, generation, sizes)
    for student in graph.students:
        words, steps = _student_work(graph, student, sizes)
        yield Item(student.stage.name, words, (student.data, student.stage), {student.stage.name: steps})
    words = f"{len(systems)} systems on {s.id_test} ID and {s.ood_test} OOD examples"
    yield Item("evaluation", words, (graph.evaluation,))


def _data_words(config: Config) -> str:
    source, s = config.data.source, config.data.sizes
    place = {"reasoning_gym": "dataset", "files": "paths", "huggingface": "path"}[source.kind]
    named = getattr(source, place)
    where = named if isinstance(named, str) else ", ".join(named)
    easy = f"easy {s.easy_train} to train, {s.easy_validation} to validate, {s.id_test} to test"
    hard = f"hard {s.hard_unlabelled} without labels, {s.ood_test} to test"
    return f"{source.kind} {where}: {easy}; {hard}" + (
        f", {s.hard_validation} to validate" if s.hard_validation else ""
    )


def _base_item(graph: Graph, base: Base, sizes: dict[str, int]) -> Item:
    lora = f", LoRA of rank {base.lora.rank}" if base.lora is not None else ""
    if base.tiny is None:
        words = f"{base.path}, {amount(sizes[base.name])} parameters{lora}"
        return Item(base.stage.name, words, (), given=True)
    role = base.tiny.removeprefix("tiny-")
    recipe: Recipe = getattr(graph.config.models.pretraining, role)
    steps = _steps(_documents(graph.config, role), recipe)
    words = f"{base.tiny}, {amount(sizes[base.name])} parameters, {_epochs(recipe)}, {steps} steps{lora}"
    return Item(base.stage.name, words, (base.stage,), {base.stage.name: steps})


def _training_item(name: str, words: str, experts: tuple[Expert, ...], config: Config, *others: Stage) -> Item:
    stages = (*(expert.stage for expert in experts), *others)
    return Item(name, words, stages, {e.stage.name: _expert_steps(e, config) for e in experts})


def _generation_items(graph: Graph, generation: Generation, sizes: dict[str, int]) -> Iterator[Item]:
    config, students = graph.config, generation.students
    words, steps = _student_work(graph, students[0], sizes)
    stages = (students[0].data, *(student.stage for student in students))
    name = f"generations/{generation.number}/students"
    yield Item(
        name, f"{times(len(students), 'student')}, {words}", stages, dict.fromkeys((s.name for s in stages[1:]), steps)
    )
    votes = f"{times(len(students), 'member')}, {config.ensemble.combine}, uniform"
    yield Item(generation.ensemble.name, votes, (generation.ensemble,))
    words = f"{config.data.sizes.hard_unlabelled} hard prompts, by generation {generation.number}"
    yield Item(generation.labels.name, words, (generation.labels,))


def _student_work(graph: Graph, student: Student, sizes: dict[str, int]) -> tuple[str, int]:
    """A student's training in words, and its optimizer steps."""
    config, recipe = graph.config, graph.config.student
    examples = 0
    if student.maker is not None:
        examples += round(recipe.keep_fraction * config.data.sizes.hard_unlabelled)
    elif student.name == "student_ceiling":
        examples += config.data.sizes.hard_unlabelled
    bound = "at most " if examples else ""  # labels without an end, and prompts without a known answer, are left out
    if recipe.mix_easy or student.name == "student_easy_only":
        examples += config.data.sizes.easy_train
    steps = _steps(examples, recipe)
    size = f"{amount(sizes[graph.strong.name])} parameters"
    return f"{size}, {bound}{examples} examples, {_epochs(recipe)}, {steps} steps, {recipe.objective}", steps


def _recipe(expert: Expert, config: Config) -> str:
    lora = f", LoRA of rank {expert.lora.rank}" if expert.lora is not None else ""
    return f"{_epochs(expert.recipe)}, {_expert_steps(expert, config)} steps{lora}"


def _expert_steps(expert: Expert, config: Config) -> int:
    return _steps(config.data.sizes.easy_train, expert.recipe)


def _steps(examples: int, recipe: Recipe) -> int:
    return math.ceil(examples / recipe.batch_size) * recipe.epochs


def _epochs(recipe: Recipe) -> str:
    return f"{recipe.epochs} epoch{'s' if recipe.epochs != 1 else ''}"


def _documents(config: Config, role: str) -> int:
    """Documents that a role reads at most: a source that generates has no end, others hold what the splits hold."""
    corpus, sizes = config.models.pretraining.corpus, config.data.sizes
    wanted = corpus.weak_documents if role == "weak" else corpus.strong_documents
    if corpus.paths or config.data.source.kind == "reasoning_gym":
        return wanted
    return min(wanted, sizes.easy_train + sizes.hard_unlabelled)


def _merged(items: Iterable[Item]) -> Iterator[Item]:
    """Neighbours of one kind that say the same become one line: `models/weak-0 … models/weak-4`."""
    for _, neighbours in itertools.groupby(items, key=lambda item: (item.name.split("/")[0], item.what, item.given)):
        group = list(neighbours)
        if len(group) == 1:
            yield group[0]
            continue
        yield replace(
            group[0],
            name=f"{group[0].name} … {group[-1].name.rsplit('/', 1)[-1]}",
            what=f"{len(group)} × {group[0].what}",
            stages=tuple(stage for item in group for stage in item.stages),
            steps={name: steps for item in group for name, steps in item.steps.items()},
        )


def times(number: int, what: str) -> str:
    """A number of things: `1 expert`, `2 experts`."""
    return f"{number} {what}{'s' if number != 1 else ''}"
