"""What each kind of process of a run takes, and where it fits: graph, plan and cluster in, needs out.

What fits nowhere is refused with the bytes that are needed, those that there are, and the nearest settings that fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ensemw2s.cluster.resources import pieces
from ensemw2s.config import Config, Recipe
from ensemw2s.config.systems import BASE_ENSEMBLE, BASE_ZERO_SHOT, ENSEMW2S, SEQUENCE_VOTE, TABLE
from ensemw2s.costs import nearest
from ensemw2s.costs.hardware import Cluster, PricedNode, Prices
from ensemw2s.costs.memory import GIB, Members, Memory, Training, decoding_memory, training_memory
from ensemw2s.costs.processes import Process, Work, candidates
from ensemw2s.costs.shapes import Shape, shape_of, tiny_shape
from ensemw2s.errors import ResourceError
from ensemw2s.pipeline.graph import Base, Expert, Graph, Student
from ensemw2s.pipeline.plan import Plan

Shapes = dict[str, Shape]
"""Sizes of each base, by its name."""

WEAK = "evaluation of weak systems"
"""Name of the crowd that is evaluated on validation examples, too."""


def shapes(graph: Graph) -> Shapes:
    """Sizes of the bases.

    Raises:
        ModelError: If the config of one cannot be read.
    """
    family = graph.config.models.pretraining.vocabulary
    return {
        base.name: tiny_shape(base.tiny, base.vocabulary or family)
        if base.tiny is not None
        else shape_of(base.path, base.revision)
        for base in graph.bases
    }


@dataclass(frozen=True)
class TrainingJob:
    """A model that is still to be trained.

    Attributes:
        part: Which part of the run it belongs to: models, rounds, baselines or students.
        name: Its stage.
        base: What it starts from.
        recipe: How.
        steps: Optimizer steps.
    """

    part: str
    name: str
    base: Base
    recipe: Recipe
    steps: int


def jobs(graph: Graph, plan: Plan) -> list[TrainingJob]:
    """All trainings that are not done yet."""
    waiting = set(plan.names("to do", "changed"))
    steps = {name: n for item in plan.items for name, n in item.steps.items()}
    found = [
        TrainingJob("models", base.stage.name, base, getattr(graph.config.models.pretraining, base.role), 0)
        for base in graph.pretrained
    ]
    boosted = [e for r in graph.all_rounds for e in r.experts]
    found += [TrainingJob("rounds", e.stage.name, e.base, e.recipe, 0) for e in boosted]
    found += [TrainingJob("baselines", e.stage.name, e.base, e.recipe, 0) for e in graph.baseline_experts]
    students = graph.learning_from([None, *graph.all_labels])
    found += [TrainingJob("students", s.stage.name, graph.strong, s.recipe(graph.config), 0) for s in students]
    return [replace(job, steps=steps[job.name]) for job in found if job.name in waiting]


@dataclass(frozen=True)
class Need:
    """What a kind of process takes.

    Attributes:
        name: Who: experts, students, or what an actor does.
        memory: Bytes.
        node: Where it runs.
        available: Bytes that it has there: of its GPUs, less what CUDA takes, or of the machine.
        stages: Of a training: its peak at each ZeRO stage.
        stage: Of a training: the stage that the config asks for.
    """

    name: str
    memory: Memory
    node: PricedNode
    available: float
    stages: tuple[int, ...] = ()
    stage: int | None = None


def width(precision: str, node: PricedNode, gpus: float) -> int:
    """Bytes per weight in a process with these GPUs of a node; `auto` is bfloat16 on GPUs that have it."""
    if precision == "auto":
        return 2 if gpus and node.processor is not None and node.processor.bf16_tflops else 4
    return 4 if precision == "fp32" else 2


def available(node: PricedNode, prices: Prices, *, cpus: float, gpus: float) -> float:
    """Bytes of memory for a process that has these CPUs and GPUs of a node."""
    if gpus == 0:
        return node.instance.memory_gib * GIB * min(1.0, cpus / node.cpus)
    assert node.processor is not None
    return (node.processor.memory_gib * gpus - prices.assumptions.overhead_gib * max(1.0, gpus)) * GIB


def training_of(job: TrainingJob, config: Config, shape: Shape, node: PricedNode) -> Training:
    """What decides about the memory of a training on a kind of node."""
    t, context = config.training, shape.context or math.inf
    answer = max(config.data.max_answer_tokens, config.labeling.max_new_tokens if job.part == "students" else 0)
    return Training(
        shape=shape,
        adapters=shape.adapters(job.base.lora) if job.part != "models" else 0,
        workers=t.workers.min,
        zero_stage=t.zero_stage,
        offload=t.offload,
        width=width(t.precision, node, t.gpus_per_worker),
        checkpointing=t.gradient_checkpointing,
        batch=job.recipe.batch_size,
        most=job.recipe.micro_batch_size,
        tokens=int(min(config.data.max_prompt_tokens + answer, context)),
        answer=int(min(answer, context)),
        gpu=t.gpus_per_worker > 0,
    )


def place_trainings(graph: Graph, todo: Sequence[TrainingJob], sizes: Shapes, found: Cluster) -> list[Need]:
    """Chooses the kind of node for trainings, the cheapest on which all of them fit, and says what they take there.

    Raises:
        ResourceError: If one fits nowhere.
    """
    config = graph.config
    nodes = candidates(found, config.training)
    refusals = []
    for node in nodes:
        needs = []
        for name, parts in (("experts", ("models", "rounds", "baselines")), ("students", ("students",))):
            each = [(job, training_of(job, config, sizes[job.base.name], node)) for job in todo if job.part in parts]
            if each:
                job, largest = max(each, key=lambda pair: training_memory(pair[1]).peak)
                needs.append((job, _training_need(name, largest, config, node, found.prices), largest))
        wrong = [entry for entry in needs if not _fits_training(entry[2], config, node, found.prices)]
        if not wrong:
            return [need for _, need, _ in needs]
        refusals.append(_refuse_training(wrong[0], config, node, found))
    raise ResourceError(refusals[-1])  # of the kind with the largest price, which holds most


def _training_need(name: str, t: Training, config: Config, node: PricedNode, prices: Prices) -> Need:
    stages = [replace(t, zero_stage=stage, offload="none") for stage in range(4)]
    room = available(node, prices, cpus=config.training.cpus_per_worker, gpus=min(1.0, config.training.gpus_per_worker))
    peaks = tuple(training_memory(other).peak for other in stages)
    return Need(name, training_memory(t), node, room, peaks, t.zero_stage)


def _fits_training(t: Training, config: Config, node: PricedNode, prices: Prices) -> bool:
    """Whether a worker fits on its GPU, and what it offloads on its share of the machine."""
    c = config.training
    memory, side_by_side = training_memory(t), pieces((node.cpus, node.gpus), c.cpus_per_worker, c.gpus_per_worker)
    room = available(node, prices, cpus=c.cpus_per_worker, gpus=min(1.0, c.gpus_per_worker))
    if c.gpus_per_worker == 0:
        return memory.peak + memory.host <= room
    return memory.peak <= room and memory.host * side_by_side <= node.instance.memory_gib * GIB


def _refuse_training(
    entry: tuple[TrainingJob, Need, Training], config: Config, node: PricedNode, found: Cluster
) -> str:
    job, need, t = entry
    c = config.training
    most = node.most * pieces((node.cpus, node.gpus), c.cpus_per_worker, c.gpus_per_worker)
    section = {"students": "student", "models": f"models.pretraining.{str(job.base.tiny).removeprefix('tiny-')}"}.get(
        job.part, "expert"
    )
    names = config.models.weak_names
    base = f"models.weak.{names.index(job.base.name)}" if job.base.name in names else "models.strong"
    changes = nearest.training_changes(t, section, base, [n for n in (2, 4, 8, 16, 32, 64) if n <= most])

    def fits(values: nearest.Values) -> bool:
        other = nearest.changed_training(t, values)
        return other is not None and _fits_training(other, config, node, found.prices)

    def as_it_is(other: PricedNode) -> bool:
        return _fits_training(
            replace(t, width=width(c.precision, other, c.gpus_per_worker)), config, other, found.prices
        )

    return _refusal(need, nearest.smallest(changes, fits), _larger(found.prices, node, c, as_it_is))


def _refusal(need: Need, advice: list[str] | None, larger: str | None) -> str:
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.memory.device.items() if size >= GIB / 20)
    if need.memory.loading > sum(need.memory.device.values()):
        parts = f"loading the whole model {need.memory.loading / GIB:.1f}"
    host = f" and offload {need.memory.host / GIB:.1f} GiB" if need.memory.host else ""
    where = f"{need.node.instance.gpu} of {need.node.kind}" if need.node.gpus else need.node.kind
    lines = [
        f"{need.name} need {need.memory.peak / GIB:.1f} GiB ({parts}){host}, but have {need.available / GIB:.1f} GiB "
        f"on {where} (node type {need.node.name})"
    ]
    if advice:
        lines.append("the nearest that fits: " + " ".join(f"--set '{words}'" for words in advice))
    else:
        lines.append("no setting makes them fit there")
    if larger:
        lines.append(f"as they are they fit on {larger}")
    return "; ".join(lines)


def _larger(prices: Prices, node: PricedNode, work: Work, fits: Callable[[PricedNode], bool]) -> str | None:
    """The cheapest instance type of the same cloud on which something fits; with GPUs only for what asks for some."""
    process = Process.of(work)
    for kind, instance in sorted(prices.instances.items(), key=lambda item: item[1].on_demand):
        if instance.cloud == node.instance.cloud and bool(instance.gpus) == bool(process.gpus):
            other = replace(
                node,
                kind=kind,
                instance=instance,
                processor=prices.processors.get(instance.gpu or instance.processor or ""),
                cpus=float(instance.cpus),
                gpus=float(instance.gpus),
            )
            if process.on(other) and fits(other):
                return kind
    return None


@dataclass(frozen=True)
class Crowd:
    """Models that an actor has in memory at a time, and who decodes with them.

    Attributes:
        name: What the actor does.
        models: Each full model, with the weights of the adapters on it.
        teams: Voters, each with its members by shape.
    """

    name: str
    models: tuple[tuple[Shape, int], ...]
    teams: tuple[tuple[Members, ...], ...]

    def memory(self, config: Config, node: PricedNode) -> Memory:
        """What it takes on a kind of node."""
        d = config.labeling
        voters = [voter for team in self.teams for voter in team]
        context = max(voter.shape.context or math.inf for voter in voters)
        longest = config.data.max_prompt_tokens + max(d.max_new_tokens, config.data.max_answer_tokens)
        bytes_ = width(d.precision, node, d.gpus_per_actor)
        return decoding_memory(self.models, voters, slots=d.batch_size, length=int(min(longest, context)), width=bytes_)

    def room(self, config: Config, node: PricedNode, prices: Prices) -> float:
        """What it has there: of several GPUs as many as it has models, for one is not divided."""
        d = config.labeling
        gpus = min(d.gpus_per_actor, max(1.0, len(self.models)))
        return available(node, prices, cpus=d.cpus_per_actor, gpus=gpus)


def team(experts: Iterable[Expert], sizes: Shapes) -> tuple[Members, ...]:
    """Experts that vote together, in as few passes as the engine makes of them."""
    counted: dict[tuple[Shape, str], int] = {}
    for expert in experts:
        key = (sizes[expert.base.name], expert.base.path if expert.lora is not None else "")
        counted[key] = counted.get(key, 0) + 1
    return tuple(Members(shape, n, shared=bool(base)) for (shape, base), n in counted.items())


def _loaded(experts: Iterable[Expert], sizes: Shapes) -> tuple[tuple[Shape, int], ...]:
    """Models in memory: bases of adapters once, full models each."""
    full = [(sizes[e.base.name], 0) for e in experts if e.lora is None]
    bases: dict[str, tuple[Shape, int]] = {}
    for e in experts:
        if e.lora is not None:
            shape = sizes[e.base.name]
            bases[e.base.path] = (shape, bases.get(e.base.path, (shape, 0))[1] + shape.adapters(e.lora))
    return (*full, *bases.values())


def label_crowds(graph: Graph, sizes: Shapes) -> dict[str, Crowd]:
    """Who makes labels; an actor has one of them in memory."""
    makers = {ENSEMW2S: graph.boosted, BASE_ENSEMBLE: _untuned(graph), **_answering(graph)}
    makers |= {s.name: (_as_expert(graph, s),) for s in graph.students if s.name in graph.labels}
    for g in graph.generations:
        makers[g.name] = tuple(_as_expert(graph, student) for student in g.students)
    return {
        name: Crowd("labelling", _loaded(makers[name], sizes), (team(makers[name], sizes),))
        for name in graph.all_labels
    }


def _answering(graph: Graph) -> dict[str, tuple[Expert, ...]]:
    """The experts of each baseline that answer; of candidates for one that answers alone, the first."""
    return {
        system: experts if TABLE[system].vote is not None else experts[:1]
        for system, experts in graph.baselines.items()
    }


def _as_expert(graph: Graph, student: Student) -> Expert:
    return Expert(stage=student.stage, base=graph.strong, recipe=student.recipe(graph.config), seed=student.seed)


def _untuned(graph: Graph) -> tuple[Expert, ...]:
    """The bases as they are, each once."""
    found = {base.path: replace(base, lora=None) for base in graph.weak}
    return tuple(Expert(stage=b.stage, base=b, recipe=graph.config.expert.resolved(), seed=0) for b in found.values())


def evaluation_crowds(graph: Graph, sizes: Shapes) -> list[Crowd]:
    """Who is evaluated; an actor has all weak systems in memory, then one student after the other."""
    systems = graph.config.evaluation.systems
    groups: list[Sequence[Expert]] = [experts for system, experts in _answering(graph).items() if system in systems]
    groups += [[expert] for expert in graph.boosted] if SEQUENCE_VOTE in systems else []
    groups += [graph.boosted] if ENSEMW2S in systems else []
    bases = [sizes[base.name] for base in graph.weak] if BASE_ZERO_SHOT in systems else []
    untuned = _untuned(graph) if BASE_ENSEMBLE in systems else ()
    experts = list({e.stage.name: e for group in groups for e in group}.values())
    found = []
    if groups or bases or untuned:
        teams = [*((Members(shape, 1, False),) for shape in bases), *(team(group, sizes) for group in groups)]
        teams += [team(untuned, sizes)] if untuned else []
        models = (*((shape, 0) for shape in bases), *_loaded((*(() if bases else untuned), *experts), sizes))
        found.append(Crowd(WEAK, models, tuple(teams)))
    strong = sizes[graph.strong.name]
    for student in graph.students:
        if student.name in systems:
            models = ((strong, strong.adapters(graph.strong.lora)),)
            found.append(Crowd("evaluation of students", models, ((Members(strong, 1, False),),)))
    return found


def place_actors(graph: Graph, sizes: Shapes, found: Cluster) -> list[Need]:
    """Chooses the kind of node for actors, the cheapest on which all that they do fits, and says what it takes there.

    Raises:
        ResourceError: If something fits nowhere.
    """
    config = graph.config
    crowds = [*label_crowds(graph, sizes).values(), *evaluation_crowds(graph, sizes)]
    refusals = []
    for node in candidates(found, config.labeling):
        largest: dict[str, tuple[Crowd, Need]] = {}
        for crowd in crowds:
            memory, room = crowd.memory(config, node), crowd.room(config, node, found.prices)
            if crowd.name not in largest or memory.peak > largest[crowd.name][1].memory.peak:
                largest[crowd.name] = (crowd, Need(f"actors ({crowd.name})", memory, node, room))
        wrong = [pair for pair in largest.values() if pair[1].memory.peak > pair[1].available]
        if not wrong:
            return [need for _, need in largest.values()]
        refusals.append(_refuse_actor(wrong[0][1], crowds, config, node, found))
    raise ResourceError(refusals[-1])


def _refuse_actor(need: Need, crowds: Sequence[Crowd], config: Config, node: PricedNode, found: Cluster) -> str:
    d = config.labeling
    halves = [d.batch_size >> k for k in range(1, d.batch_size.bit_length())]
    gpus = [n for n in (2, 4, 8) if d.gpus_per_actor and d.gpus_per_actor < n <= node.gpus]
    changes: list[list[nearest.Change]] = [
        [(f"labeling.batch_size={n}", {"batch_size": n}) for n in halves],
        [("labeling.precision=bf16", {"precision": "bf16"})] if d.precision == "fp32" and d.gpus_per_actor else [],
        [(f"labeling.gpus_per_actor={n}", {"gpus_per_actor": n}) for n in gpus],
    ]

    def fits_on(node: PricedNode, values: nearest.Values) -> bool:
        other = config.model_copy(update={"labeling": d.model_copy(update=values)})
        return all(crowd.memory(other, node).peak <= crowd.room(other, node, found.prices) for crowd in crowds)

    advice = nearest.smallest(changes, lambda values: fits_on(node, values))
    return _refusal(need, advice, _larger(found.prices, node, d, lambda other: fits_on(other, {})))
