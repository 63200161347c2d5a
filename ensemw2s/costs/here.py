"""What a run takes on this machine: a plan goes in, time and memory come out, as an estimate.

The machine is described as a cluster of one node without a price. Speeds are those of finished trainings in the same
storage; of what was never trained there, they follow from a matrix product and a copy of memory that are timed here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import psutil

from ensemw2s.cluster.resources import Resources
from ensemw2s.config import Config
from ensemw2s.costs import needs
from ensemw2s.costs.disk import Disk
from ensemw2s.costs.estimate import Estimate, estimate
from ensemw2s.costs.hardware import Assumptions, Cluster, Instance, PricedNode, Prices, Processor
from ensemw2s.costs.lengths import Lengths, lengths
from ensemw2s.costs.memory import GIB
from ensemw2s.costs.throughput import Measured, trained_in
from ensemw2s.errors import EnsemW2SError
from ensemw2s.evaluation.wording import seconds as duration
from ensemw2s.pipeline.graph import Graph
from ensemw2s.pipeline.plan import Plan
from ensemw2s.pipeline.plan_record import PlanRecord
from ensemw2s.pipeline.scan import Scan
from ensemw2s.storage.record import Record

NAME = "this machine"
STARTUP = 6.0
"""Seconds until Ray is up."""

STEP = 0.010
"""Seconds of a training step on a CPU beside its arithmetic: DeepSpeed, Python and many small operations."""

TRAINING = 1.5
"""Seconds of a training beside its steps, in a lane that is up."""

LAYER, ROW = 0.0005, 0.000015
"""Seconds of a decoding step on a CPU for a layer's operations, and more of it for each prompt of the batch."""

PROCESS, RAY = 0.5, 1.5
"""GiB of a worker or an actor for Python, torch and Ray's library; and of Ray itself with the driver."""

CHARACTERS = {True: 2.5, False: 4.0}
"""Characters a token where no tokenizer is at hand: of the tiny models' small one, and of others."""


class StageTime(Record):
    """Seconds of a stage; see `estimate.Row`."""

    name: str
    seconds: float


class Here(Record):
    """What is left of a run on this machine, estimated.

    Attributes:
        seconds: From start to end; None: it cannot be said.
        stages: The stages that take most of it; what only prepares data is not counted.
        memory_gib: Memory of all processes at a time, at their worst; None: it cannot be said.
        machine_gib: Memory that the machine has.
        trained_before: Whether the speeds of all trainings are those of finished ones in the same storage.
        problem: Why it cannot be said; empty where it can.
    """

    seconds: float | None
    stages: tuple[StageTime, ...]
    memory_gib: float | None
    machine_gib: float
    trained_before: bool
    problem: str

    def lines(self) -> dict[str, str]:
        """The lines of a plan, by their heading."""
        return {"Time": self.time_words(), "Memory": self.memory_words()}

    def time_words(self) -> str:
        """Time, in a sentence."""
        if self.seconds is None:
            return f"no estimate: {self.problem}"
        parts = ", ".join(f"{stage.name} {duration(stage.seconds)}" for stage in self.stages)
        whence = (
            "from finished trainings in this storage"
            if self.trained_before
            else "from a matrix product timed on this machine; rough, by a factor of two either way"
        )
        return f"about {duration(self.seconds)} ({parts}). An estimate, {whence}"

    def memory_words(self) -> str:
        """Memory, in a sentence."""
        if self.memory_gib is None:
            return f"this machine has {self.machine_gib:.1f} GiB"
        most = f"at most about {self.memory_gib:.1f} GiB of {self.machine_gib:.1f} GiB"
        return f"{most}. An estimate, for the longest examples that are allowed"


class PlanHere(PlanRecord):
    """What `ensemw2s plan --json` prints without --cluster.

    Attributes:
        rows: How far the rows were read.
        here: Time and memory on this machine; None for a cluster, or if nothing is left to run.
        disk: What the run's weights take in storage.
    """

    rows: Scan
    here: Here | None
    disk: Disk


def on_this_machine(
    graph: Graph,
    plan: Plan,
    resources: Resources,
    *,
    speed: Callable[[], tuple[float, float]] | None = None,
) -> Here | None:
    """Estimates time and memory of what is left of a run.

    Args:
        graph: The run's stages.
        plan: What is left of them.
        resources: What this machine has.
        speed: Operations a second of a core, and bytes a second; default: they are timed.

    Returns:
        The estimate; None if nothing is left to run.
    """
    if plan.complete:
        return None
    config, total = graph.config, psutil.virtual_memory().total / GIB

    def unknown(problem: str) -> Here:
        return Here(seconds=None, stages=(), memory_gib=None, machine_gib=total, trained_before=False, problem=problem)

    if config.training.gpus_per_worker or config.labeling.gpus_per_actor:
        return unknown("the speed of its GPUs is not known before a run; describe them in a cluster file (--cluster)")
    try:
        sizes = needs.shapes(graph)
        found = _machine(config, resources, total, *(speed or measure)())
        known = trained_in(Path(config.storage)) if "://" not in config.storage else {}
        measured = Measured(trained=known)
        mean = _lengths(config, found)
        result = estimate(graph, plan, sizes, found, mean, measured)
        jobs = needs.jobs(graph, plan)
    except EnsemW2SError as error:
        return unknown(str(error))
    trained = [sizes[j.base.name].adapters(j.base.lora) or sizes[j.base.name].parameters for j in jobs]
    return Here(
        seconds=result.seconds,
        stages=tuple(StageTime(name=row.name, seconds=row.seconds) for row in result.rows),
        memory_gib=_memory(config, result),
        machine_gib=total,
        trained_before=all(measured.of_size(weights) for weights in trained),
        problem="",
    )


def _machine(config: Config, resources: Resources, memory: float, flops: float, copied: float) -> Cluster:
    """This machine as a cluster of one node."""
    node, slots = resources.nodes[0], config.labeling.batch_size
    assumed = Assumptions(
        training_mfu=0.35,
        reading_mfu=0.35,
        decoding_bandwidth=0.6,
        seconds_a_layer=LAYER + slots * ROW,
        overhead_gib=0,
        startup_minutes=STARTUP / 60,
        spot_share=1,
        characters_a_token=CHARACTERS[config.models.weak[0].is_tiny],
        seconds_a_step=STEP,
        seconds_a_training=TRAINING,
    )
    processor = Processor(
        memory_gib=memory, bf16_tflops=None, fp32_tflops=flops * node.cpus / 1e12, gb_per_second=copied / 1e9
    )
    instance = Instance(cpus=max(1, round(node.cpus)), memory_gib=memory, processor=NAME, on_demand=0)
    prices = Prices(as_of=NAME, assumptions=assumed, processors={NAME: processor}, instances={NAME: instance})
    one = PricedNode(NAME, NAME, instance, processor, node.cpus, 0.0, 1, False, True)
    return Cluster(NAME, (one,), 1, 0.0, prices)


@cache
def measure() -> tuple[float, float]:
    """Operations of float32 a second of one core, and bytes a second that a copy reads and writes; within 0.1 s."""
    # short work, many times: some of it is left alone even where the machine is busy; products so small have one thread
    a, b = np.ones((32, 64, 64), np.float32), np.ones((64, 64), np.float32)
    here, there = np.ones(4_000_000, np.float32), np.empty(4_000_000, np.float32)
    return 2 * a.size * 64 / best(lambda: a @ b, 200), 2 * here.nbytes / best(lambda: np.copyto(there, here), 10)


def best(work: Callable[[], object], turns: int) -> float:
    """Seconds of the fastest of some turns."""
    times = []
    for _ in range(turns):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


_known_lengths: dict[str, Lengths] = {}
"""Mean lengths by data and model: cells of a study share theirs."""


def _lengths(config: Config, found: Cluster) -> Lengths:
    key = config.data.model_dump_json() + config.models.weak[0].model_dump_json()
    if key not in _known_lengths:
        _known_lengths[key] = lengths(config, found.prices.assumptions.characters_a_token)
    return _known_lengths[key]


def _memory(config: Config, result: Estimate) -> float:
    """GiB of all processes that are up at a time, each at its worst."""
    t, division = config.training, result.division
    trainers = division.lanes * t.workers.min
    trained = max((need.memory.peak + need.memory.host for need in _of(result, training=True)), default=0) / GIB
    decoded = max((need.memory.peak for need in _of(result, training=False)), default=0) / GIB
    sizes = (trainers * (PROCESS + trained), division.actors * (PROCESS + decoded))
    return RAY + (sum(sizes) if division.keep_lanes else max(sizes))


def _of(result: Estimate, *, training: bool) -> Iterable[needs.Need]:
    return (need for need in result.needs if (need.stage is not None) == training)


def together(parts: Sequence[Here]) -> Here | None:
    """Runs that go one after another on one Ray: times add up, memory is that of the largest."""
    if not parts:
        return None
    wrong = next((part for part in parts if part.problem), None)
    if wrong is not None:
        return wrong
    seconds: dict[str, float] = {}
    for stage in (stage for part in parts for stage in part.stages):
        seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
    return parts[0].model_copy(
        update={
            "seconds": sum(part.seconds or 0.0 for part in parts) - STARTUP * (len(parts) - 1),
            "stages": tuple(StageTime(name=name, seconds=time) for name, time in seconds.items()),
            "memory_gib": max(part.memory_gib or 0.0 for part in parts),
            "trained_before": all(part.trained_before for part in parts),
        }
    )
