"""What a run takes of a cluster and what it costs: trainings, actors and hardware in, stages with hours and money out.

Every stage gets its time and the share of nodes that it uses; every kind of node is billed for the phases in which it
is up, whole, with its start and the idling at its end. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from ensemw2s.boosting.anchors import ANCHORS, PROMPTS
from ensemw2s.cluster.resources import ResourcePlan, pieces, plan_resources
from ensemw2s.config import Config
from ensemw2s.costs import needs
from ensemw2s.costs.hardware import Cluster, PricedNode
from ensemw2s.costs.lengths import Lengths
from ensemw2s.costs.memory import Members
from ensemw2s.costs.needs import Need, Shapes, TrainingJob
from ensemw2s.costs.processes import check_speed
from ensemw2s.costs.throughput import Measured, Share, decoding_rate, reading_rate, share_of, training_rate
from ensemw2s.errors import ConfigError
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.plan import Plan

HOUR = 3600.0


@dataclass(frozen=True)
class Row:
    """A stage.

    Attributes:
        name: Its name.
        what: Its work in words.
        node: Where it runs; None: nothing is left to do.
        parts: How much of such nodes it takes at a time, in nodes.
        seconds: How long.
        gpu_seconds: Of all GPUs together, while they work.
        money: For the part of the nodes that it uses.
    """

    name: str
    what: str
    node: PricedNode
    parts: float
    seconds: float
    gpu_seconds: float
    money: float

    @property
    def nodes(self) -> int:
        """Nodes that it is on."""
        return math.ceil(self.parts - 1e-9)


@dataclass(frozen=True)
class Bill:
    """Nodes of a kind over the whole run.

    Attributes:
        node: The kind.
        nodes: The most at a time.
        hours: Node-hours that are paid.
        money: At the price that the cluster asks for.
        on_demand: At the on-demand price.
    """

    node: PricedNode
    nodes: int
    hours: float
    money: float
    on_demand: float


@dataclass(frozen=True)
class Estimate:
    """What a run needs and costs.

    Attributes:
        seconds: From its start to its end.
    """

    cluster: Cluster
    division: ResourcePlan
    lengths: Lengths
    measured: Measured | None
    needs: tuple[Need, ...]
    rows: tuple[Row, ...]
    bills: tuple[Bill, ...]
    seconds: float

    @property
    def money(self) -> float:
        return sum(bill.money for bill in self.bills)

    @property
    def on_demand(self) -> float:
        return sum(bill.on_demand for bill in self.bills)


def estimate(
    graph: Graph, plan: Plan, sizes: Shapes, found: Cluster, lengths: Lengths, measured: Measured | None = None
) -> Estimate:
    """Works everything out.

    Args:
        graph: The run's stages.
        plan: What is left of them, and the steps of each training.
        sizes: Sizes of the bases (`needs.shapes`).
        found: The cluster.
        lengths: Mean tokens of an example.
        measured: Speeds of a run like this one; default: the table's model.

    Raises:
        ResourceError: If something can never be placed, does not fit into memory, or runs at a speed that nobody knows.
        ConfigError: If what was measured does not have such a speed either.
    """
    config, todo = graph.config, needs.jobs(graph, plan)
    if measured is None and not plan.complete:
        check_speed(found, [*([config.training] if todo else []), config.labeling])
    trainings = needs.place_trainings(graph, todo, sizes, found) if todo else []
    actors = needs.place_actors(graph, sizes, found)
    actor, trainer = actors[0].node.name, (trainings or actors)[0].node.name
    found = found.within_limit({actor, trainer})
    division = plan_resources(config, found.resources())
    work = _Schedule(graph, plan, sizes, found, lengths, measured, division, trainer, actor)
    phases = work.phases(todo)
    rows = tuple(row for phase in phases for row in phase)
    bills, seconds = work.bills(phases)
    return Estimate(found, division, lengths, measured, (*trainings, *actors), rows, bills, seconds)


class _Schedule:
    """Times and nodes of the stages of one run."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        sizes: Shapes,
        found: Cluster,
        lengths: Lengths,
        measured: Measured | None,
        division: ResourcePlan,
        trainer: str,
        actor: str,
    ) -> None:
        self.graph, self.plan, self.sizes, self.found = graph, plan, sizes, found
        self.lengths, self.measured, self.division = lengths, measured or Measured(), division
        kinds = {node.name: node for node in found.nodes}
        self.trainer, self.actor = kinds[trainer], kinds[actor]
        self.config: Config = graph.config
        self.waiting = set(plan.names("to do", "changed"))

    def phases(self, todo: Sequence[TrainingJob]) -> list[list[Row]]:
        """Stages that run at the same time, phase after phase."""
        part = {name: [j for j in todo if j.part == name] for name in ("models", "rounds", "baselines", "students")}
        lanes = self.lanes
        beside = self.division.keep_lanes and lanes > self.config.boosting.width and bool(part["rounds"])
        turns = (self._rounds(part["rounds"]), self._scoring(part["rounds"]), self._answers(), self._votes())
        rounds = [row for row in turns if row is not None]
        baselines = self._trainings(
            "baselines", part["baselines"], lanes - self.config.boosting.width if beside else lanes
        )
        together = [[*rounds, *baselines]] if beside else [rounds, baselines]
        phases = [
            self._trainings("models", part["models"], lanes),
            *together,
            self._labels("labels", self.graph.labels),
            self._trainings("students", self._of_makers(part["students"], [None, *self.graph.labels]), lanes),
            *self._generations(part["students"], lanes),
            self._evaluation(),
        ]
        return [phase for phase in phases if phase]

    def _of_makers(self, students: Sequence[TrainingJob], makers: Collection[str | None]) -> list[TrainingJob]:
        """Those that learn from the labels of these."""
        names = {student.stage.name for student in self.graph.learning_from(makers)}
        return [job for job in students if job.name in names]

    def _generations(self, students: Sequence[TrainingJob], lanes: int) -> Iterator[list[Row]]:
        """A generation labels, then the students of the next one are trained."""
        for g in self.graph.generations:
            yield self._labels(f"labels, generation {g.number}", [g.name])
            yield self._trainings(f"students, generation {g.number + 1}", self._of_makers(students, [g.name]), lanes)

    @property
    def lanes(self) -> int:
        """Lanes at a time, on the kind of node that trains."""
        return max(1, min(self.division.lanes, self.trainer.most * self._per_node(self.trainer) // self.workers))

    @property
    def workers(self) -> int:
        return self.config.training.workers.min

    @property
    def actors(self) -> int:
        """Actors at a time, on the kind of node that decodes."""
        d = self.config.labeling
        each = pieces((self.actor.cpus, self.actor.gpus), d.cpus_per_actor, d.gpus_per_actor)
        return max(1, min(self.division.actors, self.actor.most * each))

    def _per_node(self, node: PricedNode) -> int:
        t = self.config.training
        return pieces((node.cpus, node.gpus), t.cpus_per_worker, t.gpus_per_worker)

    def _share(self, node: PricedNode, precision: str, cpus: float, gpus: float) -> Share:
        processor = node.processor if gpus or not node.gpus else None  # the table says how fast its GPUs are
        if processor is None:
            raise ConfigError(
                f"the table of prices does not say how fast {node.kind} is for what has no GPU: give it a processor, "
                "or take the speeds of a finished run with --measured RUN"
            )
        parts = gpus if gpus else min(1.0, cpus / node.cpus)
        return share_of(processor, width=needs.width(precision, node, gpus), parts=parts)

    def _row(self, name: str, what: str, node: PricedNode, at_a_time: int, seconds: float, busy: float) -> Row:
        """A row of `busy` process-seconds, `at_a_time` processes at a time."""
        t, d = self.config.training, self.config.labeling
        trains = node is self.trainer and not _decodes(name)
        cpus, gpus = (t.cpus_per_worker, t.gpus_per_worker) if trains else (d.cpus_per_actor, d.gpus_per_actor)
        each = pieces((node.cpus, node.gpus), cpus, gpus)
        money = busy / each / HOUR * node.price(self.found.prices)
        return Row(name, what, node, at_a_time / each, seconds, busy * gpus, money)

    def _seconds(self, job: TrainingJob) -> float:
        """Time of a training."""
        tokens, assumed = job.steps * job.recipe.batch_size * self.lengths.whole, self.found.prices.assumptions
        shape = self.sizes[job.base.name]
        adapters = shape.adapters(job.base.lora) if job.part != "models" else 0
        known = self.measured.student if job.part == "students" else self.measured.expert
        measured, beside = self.measured.of_size(adapters or shape.parameters) or known, assumed.seconds_a_training
        if measured is None:
            t = self.config.training
            share = self._share(self.trainer, t.precision, t.cpus_per_worker, min(1.0, t.gpus_per_worker))
            measured = training_rate(shape, adapters, share, assumed, checkpointing=t.gradient_checkpointing)
            beside += job.steps * assumed.seconds_a_step
        return beside + tokens / measured / self.workers

    def _trainings(self, name: str, todo: Sequence[TrainingJob], lanes: int) -> list[Row]:
        if not todo:
            return []
        times = [self._seconds(job) for job in todo]
        seconds, used = makespan(times, lanes), min(lanes, len(times))
        what = f"{len(times)} trainings, {used} at a time" if len(times) > 1 else "1 training"
        return [self._row(name, what, self.trainer, used * self.workers, seconds, sum(times) * self.workers)]

    def _rounds(self, todo: Sequence[TrainingJob]) -> Row | None:
        """Experts of a round train side by side, rounds one after the other."""
        if not todo:
            return None
        rounds: dict[str, list[float]] = {}
        for job in todo:
            rounds.setdefault(job.name.partition("/experts/")[0], []).append(self._seconds(job))
        used = min(self.lanes, max(len(times) for times in rounds.values()))
        seconds = sum(makespan(times, used) for times in rounds.values())
        busy = sum(sum(times) for times in rounds.values()) * self.workers
        what = f"{len(todo)} experts, one round after the other"
        return self._row("rounds", what, self.trainer, used * self.workers, seconds, busy)

    def _scoring(self, todo: Sequence[TrainingJob]) -> Row | None:
        """Every expert reads the easy examples once, after its round."""
        if not todo:
            return None
        examples = self.config.data.sizes.easy_train
        once = [self._read(examples, [Members(self.sizes[job.base.name], 1, False)]) for job in todo]
        busy = sum(once) * (2 if self.config.boosting.prior == "pretrained" else 1)
        return self._decoding("scoring", f"{len(todo)} × {examples} examples", busy, examples)

    def _votes(self) -> Row | None:
        """Fitted votes: the experts read easy validation together, after a fit of temperatures once more with these."""
        ensemble, examples = self.config.ensemble, self.config.data.sizes.easy_validation
        if not ensemble.fitted or self.graph.ensemble.name not in self.waiting:
            return None
        passes = 2 if ensemble.calibration == "temperature" else 1
        voting = needs.team(self.graph.boosted, self.sizes)
        busy = passes * self._read(examples, voting)
        return self._decoding("ensemble", f"votes fitted, {passes} × {examples} examples", busy, examples)

    def _answers(self) -> Row | None:
        """What the members answer to find an anchor and in consensus passes."""
        graph, asked = self.graph, (self.config.data.sizes.easy_validation, self.config.data.sizes.hard_unlabelled)
        tried = len(ANCHORS) * sum(min(PROMPTS, n) for n in asked)
        passes = sum(asked) * sum(p.answers.name in self.waiting for p in graph.passes)
        answers = passes * (2 if self.config.consensus.judge != "none" else 1)  # the bases answer, too
        answers += tried if graph.anchor and graph.anchor.name in self.waiting else 0
        busy = self._answer(answers, needs.team(graph.boosted, self.sizes))
        if self.config.consensus.agreement == "answer":
            busy += sum(self._answer(passes, needs.team([expert], self.sizes)) for expert in graph.boosted)
        return self._decoding("consensus", f"{answers} answers", busy, answers) if answers else None

    def _labels(self, name: str, makers: Iterable[str]) -> list[Row]:
        crowds, labels = needs.label_crowds(self.graph, self.sizes), self.graph.all_labels
        waiting = [crowds[maker] for maker in makers if labels[maker].name in self.waiting]
        prompts, samples = self.config.data.sizes.hard_unlabelled, self.config.labeling.samples
        busy = sum(self._answer(prompts * samples, crowd.teams[0]) for crowd in waiting)
        row = self._decoding(name, f"{len(waiting)} × {prompts * samples} answers", busy, prompts * len(waiting))
        return [row] if waiting else []

    def _evaluation(self) -> list[Row]:
        if self.graph.evaluation.name not in self.waiting:
            return []
        s, rounds = self.config.data.sizes, self.graph.rounds
        tests, crowds = s.id_test + s.ood_test, needs.evaluation_crowds(self.graph, self.sizes)
        teams = [team for crowd in crowds for team in crowd.teams]
        teams += [needs.team(self.graph.boosted, self.sizes)] * len(self.graph.passes)  # before each pass
        busy = sum(self._answer(tests, team) + self._read(tests, team) for team in teams)
        # without decoding: weak systems on easy validation, all on hard, ensembles of the first rounds on the rest
        busy += sum(
            self._read(s.easy_validation, team) for crowd in crowds if crowd.name == needs.WEAK for team in crowd.teams
        )
        busy += sum(self._read(s.hard_validation, team) for team in teams)
        for count in range(1, len(rounds) + 1):
            voting = [expert for r in rounds[:count] for expert in r.experts]
            busy += self._read(tests + s.easy_validation, needs.team(voting, self.sizes))
        return [self._decoding("evaluation", f"{len(teams)} systems, {tests} examples each", busy, tests * len(teams))]

    def _decoding(self, name: str, what: str, busy: float, prompts: int) -> Row:
        used = max(1, min(self.actors, math.ceil(prompts / self.config.labeling.chunk_size)))
        return self._row(name, f"{what}, {used} actors" if used > 1 else what, self.actor, used, busy / used, busy)

    def _read(self, examples: int, team: Sequence[Members]) -> float:
        """Actor-seconds in which a team reads examples with their answers."""
        return examples * self.lengths.whole / self._reading(team)

    def _answer(self, prompts: int, team: Sequence[Members]) -> float:
        """Actor-seconds in which a team reads prompts and answers them."""
        members = sum(voter.members for voter in team)
        measured = self.measured.members if members > 1 else self.measured.alone
        if measured is not None:  # of a run, which reads prompts in the same time
            return prompts * self.lengths.answer * members / measured
        d, assumed = self.config.labeling, self.found.prices.assumptions
        share = self._share(self.actor, d.precision, d.cpus_per_actor, d.gpus_per_actor)
        context = self.lengths.prompt + self.lengths.answer / 2
        rate = decoding_rate(team, share, assumed, slots=d.batch_size, context=context)
        return prompts * (self.lengths.prompt / self._reading(team) + self.lengths.answer / rate)

    def _reading(self, team: Sequence[Members]) -> float:
        d = self.config.labeling
        if not d.gpus_per_actor and self.measured.alone is not None:  # reading is no slower than decoding
            return self.measured.alone / sum(voter.members for voter in team)
        share = self._share(self.actor, d.precision, d.cpus_per_actor, d.gpus_per_actor)
        return reading_rate(team, share, self.found.prices.assumptions)

    def bills(self, phases: Sequence[Sequence[Row]]) -> tuple[tuple[Bill, ...], float]:
        """Node-hours of each kind, the head's among them, and the seconds of the run.

        Lanes that stay up hold their nodes until the last student is trained. A kind of node starts once and idles
        once; its minutes are paid.
        """
        start = self.found.prices.assumptions.startup_minutes * 60
        trains = [sum(row.parts for row in rows if not _decodes(row.name)) for rows in phases]
        decodes = [max((row.parts for row in rows if _decodes(row.name)), default=0.0) for rows in phases]
        if self.division.keep_lanes:
            last = max((i for i, parts in enumerate(trains) if parts), default=-1)
            trains = [max(trains) if i <= last else 0.0 for i in range(len(trains))]
        times = [elapsed(rows) for rows in phases]
        seconds = start + sum(times) if phases else 0.0
        use: dict[str, list[float]] = {}
        for node, parts in ((self.trainer, trains), (self.actor, decodes)):
            use[node.name] = [a + b for a, b in zip(use.get(node.name, [0.0] * len(parts)), parts, strict=True)]
        found: list[Bill] = []
        for node in {node.name: node for node in (self.trainer, self.actor)}.values():
            counts = [min(node.most, math.ceil(parts - 1e-9)) for parts in use[node.name]]
            most = max(counts, default=0)
            held = sum(count * time for count, time in zip(counts, times, strict=True))
            found.append(self._bill(node, most, (held + most * (start + self.found.idle_minutes * 60)) / HOUR))
        heads = [node for node in self.found.nodes if node.is_head and node.name not in use]
        found += [self._bill(node, 1, seconds / HOUR) for node in heads]
        return tuple(bill for bill in found if bill.nodes and bill.hours), seconds

    def _bill(self, node: PricedNode, nodes: int, hours: float) -> Bill:
        prices = self.found.prices
        return Bill(node, nodes, hours, hours * node.price(prices), hours * node.price(prices, spot=False))


_TURNS = ("rounds", "scoring", "consensus", "ensemble")


def _decodes(name: str) -> bool:
    """Whether a row of this name is work of actors, and not of training workers."""
    return name.startswith(("scoring", "consensus", "ensemble", "labels", "evaluation"))


def elapsed(rows: Iterable[Row]) -> float:
    """Time of a phase: rounds, their scoring and answers and the fit of votes take turns, baselines run beside."""
    rows = list(rows)
    turns = sum(row.seconds for row in rows if row.name in _TURNS)
    return max([turns, *(row.seconds for row in rows if row.name not in _TURNS)])


def makespan(times: Sequence[float], lanes: int) -> float:
    """Seconds until the last of some trainings ends; the longest begin first, `lanes` at a time."""
    ends = [0.0] * max(1, lanes)
    for time in sorted(times, reverse=True):
        first = ends.index(min(ends))
        ends[first] += time
    return max(ends)
