"""What `ensemw2s plan` shows: a graph and what lies on disk go in, every stage with its state and size comes out.

Reading the disk (`survey`), laying out the plan (`lay_out`, a pure function) and printing it (`plan_print`) are apart,
so that what a plan says can be tested without a run. Nothing here writes, and nothing starts Ray.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from ensemw2s.boosting.anchors import ANCHORS, PROMPTS
from ensemw2s.cluster.connect import cluster_address, connect
from ensemw2s.cluster.resources import Resources, local_resources
from ensemw2s.config import Config, Recipe
from ensemw2s.config.data import Source
from ensemw2s.config.systems import TABLE
from ensemw2s.evaluation.wording import amount
from ensemw2s.models.info import model_info
from ensemw2s.models.tiny import tiny_parameters
from ensemw2s.pipeline.graph import Base, Expert, Graph, PhaseName, Student
from ensemw2s.pipeline.survey import StageState, State
from ensemw2s.storage import remote
from ensemw2s.storage.store import Stage


@dataclass(frozen=True)
class Item:
    """A line of the plan: stages that belong together.

    Attributes:
        name: Name of the stage, or of the first and the last.
        what: Sizes in words.
        stages: The stages behind it; empty for a base that exists already.
        steps: Optimizer steps of each stage that trains a model.
        given: Whether it is a base that exists already, which the run does not make.
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
        complete: Whether the results are there, too.
    """

    config: Config
    where: str
    items: tuple[Item, ...]
    found: dict[str, StageState]
    complete: bool

    def names(self, *states: State) -> list[str]:
        """Names of all stages in one of these states."""
        return [name for name, found in self.found.items() if found.state in states]

    def left(self) -> tuple[int, int]:
        """Models that are still to be trained, and their optimizer steps in all."""
        waiting = set(self.names("to do", "changed"))
        steps = [n for item in self.items for name, n in item.steps.items() if name in waiting]
        return len(steps), sum(steps)


def parameters(graph: Graph) -> dict[str, int]:
    """Number of weights of each base model, by name; of embedded ones with the largest vocabulary they may get.

    Raises:
        ModelError: If a model that the config names cannot be read.
    """
    family = graph.config.models.pretraining.vocabulary
    return {
        base.name: tiny_parameters(base.tiny, base.vocabulary or family)
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


def lay_out(graph: Graph, found: dict[str, StageState], sizes: dict[str, int]) -> Plan:
    """Puts the stages into words. Pure.

    Args:
        graph: The stages.
        found: What lies on disk (`survey`).
        sizes: Number of weights of each base model (`parameters`).
    """
    complete = found[graph.evaluation.name].state == "done"
    return Plan(graph.config, remote.shown(graph.root), tuple(_merged(_items(graph, sizes))), found, complete)


def training_steps(graph: Graph) -> dict[str, int]:
    """Optimizer steps of each stage that trains a model, by name; at most, where what it learns is not known yet."""
    nameless = {base.name: 0 for base in graph.bases}  # sizes are for words only
    return {name: n for item in _items(graph, nameless) for name, n in item.steps.items()}


def _items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    for phase in graph.phases:
        yield from _ITEMS[phase.name](graph, sizes)


def _data_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    yield Item("data", _data_words(graph.config), (graph.data,))


def _corpus_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    assert graph.corpus is not None
    roles = sorted({base.role for base in graph.pretrained}, reverse=True)
    texts = ", ".join(f"{_documents(graph.config, role)} documents for {role} bases" for role in roles)
    yield Item("corpus", f"at most {texts}", (graph.corpus.stage,))


def _base_items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    for base in graph.bases:
        yield _base_item(graph, base, sizes)


def _token_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    sizes = graph.config.data.sizes
    yield Item("tokens", f"{sizes.easy_train + sizes.easy_validation} easy examples", (graph.tokens,))


def _round_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    for r in graph.rounds:
        words = "; ".join(dict.fromkeys(f"{e.base.name}, {_recipe(e, graph.config)}" for e in r.experts))
        yield _training_item(r.stage.name, f"{times(len(r.experts), 'expert')} from {words}", r.experts, graph, r.stage)


def _anchor_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    assert graph.anchor is not None
    sizes = graph.config.data.sizes
    examples = min(PROMPTS, sizes.easy_validation) + min(PROMPTS, sizes.hard_unlabelled)
    yield Item("anchor", f"{len(ANCHORS)} anchors on {examples} prompts", (graph.anchor,))


def _consensus_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    consensus, sizes = graph.config.consensus, graph.config.data.sizes
    for p in graph.passes:
        others = [" and its untuned bases"] * (consensus.judge != "none")
        others += [" and each member"] * (consensus.agreement == "answer")
        answers = f"{sizes.easy_validation + sizes.hard_unlabelled} prompts, by the ensemble{''.join(others)}"
        yield Item(p.answers.name, answers, (p.answers,))
        yield Item(p.kept.name, f"at most {_kept(graph.config)} answers", (p.kept,))
        for r in p.rounds:
            words = "; ".join(dict.fromkeys(f"{e.base.name}, at most {_recipe(e, graph.config)}" for e in r.experts))
            yield _training_item(
                r.stage.name, f"{times(len(r.experts), 'expert')} from {words}", r.experts, graph, r.stage
            )


def _kept(config: Config) -> int:
    """Hard answers that a consensus pass keeps at most."""
    return max(1, round(config.consensus.fraction * config.data.sizes.hard_unlabelled))


def _ensemble_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    how = ", ".join(graph.config.ensemble.deciding().values())
    yield Item("ensemble", f"at most {times(len(graph.boosted), 'member')}, {how}", (graph.ensemble,))


def _baseline_items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    for system, experts in graph.baselines.items():
        recipes = "; ".join(dict.fromkeys(_recipe(expert, graph.config) for expert in experts))
        words = f"{times(len(experts), 'expert')}, {recipes}{' each' if len(experts) > 1 else ''}"
        if TABLE[system].vote is None:
            words = f"1 expert from {_start(experts[0])}, {recipes}"
            if len(experts) > 1:
                words = f"{len(experts)} experts, of which easy validation chooses one, {recipes} each"
        yield _training_item(f"baselines/{system}", words, experts, graph)
    yield from _student_items(graph, sizes, [None])


def _label_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    for maker, stage in graph.labels.items():
        yield _labels_item(graph, stage, TABLE[maker].in_a_sentence)


def _own_student_items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    yield from _student_items(graph, sizes, graph.labels)


def _generation_items(graph: Graph, sizes: dict[str, int]) -> Iterator[Item]:
    for generation in graph.generations:
        votes = f"{times(len(generation.students), 'member')}, {graph.config.ensemble.combine}, uniform"
        yield Item(generation.ensemble.name, votes, (generation.ensemble,))
        yield _labels_item(graph, generation.labels, f"generation {generation.number}")
        yield from _student_items(graph, sizes, [generation.name])


def _evaluation_items(graph: Graph, _: dict[str, int]) -> Iterator[Item]:
    s, systems = graph.config.data.sizes, graph.config.evaluation.systems
    words = f"{times(len(systems), 'system')} on {s.id_test} ID and {s.ood_test} OOD examples"
    yield Item("evaluation", words, (graph.evaluation,))


_ITEMS: Mapping[PhaseName, Callable[[Graph, dict[str, int]], Iterator[Item]]] = {
    "data": _data_items,
    "corpus": _corpus_items,
    "models": _base_items,
    "tokens": _token_items,
    "rounds": _round_items,
    "anchor": _anchor_items,
    "consensus": _consensus_items,
    "ensemble": _ensemble_items,
    "baselines": _baseline_items,
    "labels": _label_items,
    "students": _own_student_items,
    "generations": _generation_items,
    "evaluation": _evaluation_items,
}


def _data_words(config: Config) -> str:
    data, s = config.data, config.data.sizes
    where = _place(data.source) + (f" and {_place(data.hard_source)}" if data.hard_source is not None else "")
    easy = f"easy {s.easy_train} to train, {s.easy_validation} to validate, {s.id_test} to test"
    hard = f"hard {s.hard_unlabelled} without labels, {s.ood_test} to test"
    more = f", {s.hard_validation} to validate" if s.hard_validation else ""
    return f"{data.source.kind} {where}: {easy}; {hard}{more}"


def _place(source: Source) -> str:
    named = getattr(source, {"reasoning_gym": "dataset", "files": "paths", "huggingface": "path"}[source.kind])
    return named if isinstance(named, str) else ", ".join(named)


def _base_item(graph: Graph, base: Base, sizes: dict[str, int]) -> Item:
    lora = f", LoRA of rank {base.lora.rank}" if base.lora is not None else ""
    if base.tiny is None:
        words = f"{base.path}, {amount(sizes[base.name])} parameters{lora}"
        return Item(base.stage.name, words, (), given=True)
    recipe: Recipe = getattr(graph.config.models.pretraining, base.role)
    steps = _steps(_documents(graph.config, base.role), recipe)
    words = f"{base.tiny}, {amount(sizes[base.name])} parameters, {_epochs(recipe)}, {steps} steps{lora}"
    return Item(base.stage.name, words, (base.stage,), {base.stage.name: steps})


def _training_item(name: str, words: str, experts: tuple[Expert, ...], graph: Graph, *others: Stage) -> Item:
    stages = (*(expert.stage for expert in experts), *others)
    return Item(name, words, stages, {e.stage.name: _expert_steps(e, graph.config) for e in experts})


def _labels_item(graph: Graph, stage: Stage, maker: str) -> Item:
    return Item(stage.name, f"{graph.config.data.sizes.hard_unlabelled} hard prompts, by {maker}", (stage,))


def _student_items(graph: Graph, sizes: dict[str, int], makers: Collection[str | None]) -> Iterator[Item]:
    """The students of these makers' labels: each of the systems by itself, those of a generation on one line."""
    students = graph.learning_from(makers)
    for student in (student for student in students if student in graph.students):
        words, steps = _student_work(graph, student, sizes)
        yield Item(student.stage.name, words, (student.data, student.stage), {student.stage.name: steps})
    for generation in (generation for generation in graph.generations if generation.students[0] in students):
        own = generation.students
        words, steps = _student_work(graph, own[0], sizes)
        yield Item(
            f"generations/{generation.number}/students",
            f"{times(len(own), 'student')}, {words}",
            (own[0].data, *(student.stage for student in own)),
            {student.stage.name: steps for student in own},
        )


def _student_work(graph: Graph, student: Student, sizes: dict[str, int]) -> tuple[str, int]:
    """A student's training in words, and its optimizer steps."""
    config, recipe = graph.config, student.recipe(graph.config)
    examples = 0
    if student.learns_from == "pseudo":
        examples += round(recipe.keep_fraction * config.data.sizes.hard_unlabelled)
    elif student.learns_from == "true":
        examples += config.data.sizes.hard_unlabelled
    bound = "at most " if examples else ""  # labels without an end, and prompts without a known answer, are left out
    if recipe.mix_easy or student.learns_from == "easy":
        examples += config.data.sizes.easy_train
    steps = _steps(examples, recipe)
    size = f"{amount(sizes[graph.strong.name])} parameters"
    return f"{size}, {bound}{examples} examples, {_epochs(recipe)}, {steps} steps, {recipe.objective}", steps


def _start(expert: Expert) -> str:
    return "the base of expert_single" if expert.best_of else expert.base.name


def _recipe(expert: Expert, config: Config) -> str:
    lora = f", LoRA of rank {expert.lora.rank}" if expert.lora is not None else ""
    at_most = "at most " if expert.keep == "best" else ""
    return f"{at_most}{_epochs(expert.recipe)}, {_expert_steps(expert, config)} steps{lora}"


def _expert_steps(expert: Expert, config: Config) -> int:
    kept = _kept(config) if expert.kept is not None else 0
    return _steps(config.data.sizes.easy_train + kept, expert.recipe)


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
