"""One trial of a search: a point of the space goes in, the ensemble after each round is measured and reported to Tune.

Boosted ensembles are nested: T rounds give the ensembles of 1 to T rounds, so a trial measures every size. Consensus
passes follow the last round, and the ensemble is measured after each. Stages that another trial has made are taken from
there.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from ray import tune
from rich.console import Console

from ensemw2s.boosting.records import RoundRecord, members_of
from ensemw2s.cluster.connect import connect
from ensemw2s.cluster.resources import ResourcePlan
from ensemw2s.config import Config
from ensemw2s.config.search import SearchConfig
from ensemw2s.config.systems import ENSEMW2S, STUDENT_EASY_ONLY, STUDENT_ENSEMW2S
from ensemw2s.ensemble.voter import Voter
from ensemw2s.errors import BoostingError
from ensemw2s.evaluation.chunks import Rows
from ensemw2s.evaluation.evaluate import evaluate_all
from ensemw2s.evaluation.voters import EvaluationWork, VoterGroup
from ensemw2s.pipeline import steps
from ensemw2s.pipeline.anchoring import find_anchor
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.consensus import each_pass
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.rounds import each_round, is_last
from ensemw2s.pipeline.systems import ensemble_voter, one
from ensemw2s.pipeline.votes import weighed_members
from ensemw2s.progress import Progress
from ensemw2s.search import space
from ensemw2s.search.records import Measurement
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Stage


class Trial(tune.Trainable):
    """A trial as Tune's trainable: a step is a boosting round or a consensus pass, in the end one for the student.

    A class and not a function, because a function is killed when its trial is stopped, and Ray Train then keeps what
    it had reserved (Ray 2.60 without a dashboard); `cleanup` lets the lanes end. There is nothing to checkpoint: a
    trial that is started again takes its finished rounds from the disk.
    """

    def setup(  # type: ignore[override]  # `with_parameters` adds the others
        self,
        config: space.Point,
        *,
        base: Mapping[str, object],
        folder: str,
        home: str,
        lanes: int,
        actors: int,
        keep: bool,
    ) -> None:
        """Prepares the run of a point.

        Args:
            config: The point (Tune's name for it).
            base: The search's config.
            folder: Folder of the stages that trials share.
            home: Where the config's relative paths begin; Tune starts trials in folders of their own.
            lanes: Training lanes of this trial.
            actors: Its decoding actors, at most.
            keep: Whether there is room for both at a time.
        """
        from ensemw2s.training.launch import Lanes

        if Path(home).is_dir():
            os.chdir(home)
        searched = Config.model_validate(base)
        assert searched.search is not None
        graph = build_graph(trial_config(searched, config), Path(folder))
        self._open = ExitStack()
        self._open.enter_context(connect(graph.config.cluster))
        scratch = Path(folder) / ".ray" / str(self.trial_id)
        self._open.callback(remote.remove, scratch)
        running = Lanes(graph.config.training, lanes, scratch, keep=keep)
        self._open.callback(running.close, abandon=True)
        plan = ResourcePlan(lanes=lanes, actors=actors, keep_lanes=keep)
        context = Context(graph, plan, Progress(Console(quiet=True)), running, on_stage=lambda *_: None)
        self._rounds = measured(context, searched.search, space.sizes(searched)[0], space.passes(searched)[0])

    def step(self) -> dict[str, object]:
        """Runs a round or a pass, and measures its ensemble."""
        found = next(self._rounds)
        return {**found.for_tune(), "done": found.final}

    def cleanup(self) -> None:
        """Ends the lanes; what they were training is left."""
        self._rounds.close()
        self._open.close()


def trial_config(config: Config, point: space.Point) -> Config:
    """The config of a trial: the point's values, as many rounds and passes as count, and only what is measured."""
    (_, rounds), (_, passes) = space.sizes(config), space.passes(config)
    plain = config.model_copy(update={"search": None})
    chosen = space.apply(plain, {**point, space.ROUNDS: rounds, space.PASSES: passes})
    student = config.search is not None and config.search.objective == "student"
    systems = [ENSEMW2S, STUDENT_ENSEMW2S] if student else [ENSEMW2S]
    if student and chosen.student.asks_itself:
        systems.insert(1, STUDENT_EASY_ONLY)
    evaluation = chosen.evaluation.model_copy(update={"systems": systems})
    # only a run searches for the anchor of its ensemble; a trial's members are then as they were trained
    boosting = chosen.boosting.model_copy(update={"anchor": 1.0} if chosen.boosting.anchor == "auto" else {})
    tracking = chosen.tracking.model_copy(update={"kind": "none"})
    return chosen.model_copy(update={"evaluation": evaluation, "boosting": boosting, "tracking": tracking})


def measured(context: Context, search: SearchConfig, least: int, fewest: int = 0) -> Generator[Measurement]:
    """Runs the rounds and the passes, and measures the ensemble after each.

    Args:
        context: The trial's run.
        search: What is measured.
        least: Smallest number of rounds that may be chosen.
        fewest: Smallest number of passes that may be chosen.

    Yields:
        What Tune is told after each round that has an expert with a vote, and after each pass; a student's search ends
        with the student's.
    """
    began, progress = time.monotonic(), _Best(search, rounds=least, passes=fewest)
    history: list[RoundRecord] = []
    metrics: dict[str, float] = {}
    passes, by_ensemble = 0, search.objective == "ensemble"

    def measurement(value: float, *, final: bool, reason: str = "") -> Measurement:
        voting = [member for member in members_of(history) if member.weight > 0]
        return Measurement(
            rounds=len(context.graph.rounds) if passes else len(history),
            passes=passes,
            experts=len(voting),
            value=value,
            exact_match=metrics.get("exact_match"),
            token_accuracy=metrics.get("token_accuracy"),
            nll=metrics.get("nll"),
            option_accuracy=metrics.get("option_accuracy"),
            objective=value if progress.value is None else progress.value,
            best_rounds=progress.rounds,
            best_passes=progress.passes,
            seconds=time.monotonic() - began,
            final=final,
            reason=reason,
        )

    def measure_members() -> dict[str, float]:
        voter = ensemble_voter(context.graph, weighed_members(history, context.config.ensemble.weights))
        return measure(context, search, voter)

    try:
        for history in each_round(context, context.graph.rounds):
            if history[-1].accepted:
                metrics = measure_members()
            if not metrics:
                continue  # no expert has a vote so far
            value = metrics[search.metric]
            if not fewest and len(history) >= least:
                progress.take(value, len(history), 0)
            ends = is_last(context.graph, history) and not context.graph.passes
            yield measurement(value, final=ends and by_ensemble)
        if context.graph.anchor is not None:
            _once(context.graph.anchor, partial(find_anchor, context))
        for record, made in each_pass(context):
            passes = record.number
            if record.took_place:
                history = made
                metrics = measure_members()
            else:
                passes = max(passes, fewest)  # none of those that would follow changes anything
            value = metrics[search.metric]
            if passes >= fewest:
                progress.take(value, len(context.graph.rounds), passes)
            ends = not record.took_place or passes == len(context.graph.passes)
            yield measurement(value, final=ends and by_ensemble)
    except BoostingError as error:
        nothing = math.log(context.vocabulary) if search.metric == "nll" else 0.0
        yield measurement(nothing, final=True, reason=str(error))
        return
    if search.objective == "student":
        metrics = _student(context, search, progress.rounds, progress.passes)
        progress.value = metrics[search.metric]
        yield measurement(progress.value, final=True)


@dataclass
class _Best:
    """The best ensemble of a trial so far, among those that may be chosen."""

    search: SearchConfig
    rounds: int
    passes: int
    value: float | None = None

    def take(self, value: float, rounds: int, passes: int) -> None:
        """Takes a better one; of equal ones the first stays."""
        if self.value is None or better(self.search, value, self.value):
            self.value, self.rounds, self.passes = value, rounds, passes


def better(search: SearchConfig, value: float, best: float) -> bool:
    """Whether a value of the metric is better than another one."""
    return value < best if search.mode == "min" else value > best


def measure(context: Context, search: SearchConfig, voter: Voter) -> dict[str, float]:
    """The metrics of a voter on the validation examples; no test example is read."""
    path = context.graph.data.path / f"{search.validation}_validation.parquet"
    columns = evaluate_all(
        [EvaluationWork("validation", path, VoterGroup(name="trial", voters=(voter,)), decoded=False)],
        data=context.graph.rendering,
        labeling=context.config.labeling,
        pool=context.pool,
        shown=0,
    )
    [rows] = columns["validation"].values()
    return metrics_of(rows, store.read_table(path, ["answer"])["answer"].to_pylist())


def metrics_of(rows: Rows, answers: list[str]) -> dict[str, float]:
    """Means over examples (of tokens: over all tokens). `option_accuracy` only where there are options."""
    tokens = np.array(rows["n_tokens"])
    found = {
        "exact_match": float(np.mean(rows["forced"])),
        "token_accuracy": float(np.sum(rows["token_correct"]) / tokens.sum()),
        "nll": float(np.sum(rows["nll"]) / tokens.sum()),
    }
    if any(option is not None for option in rows["option"]):
        found["option_accuracy"] = float(np.mean([o == a for o, a in zip(rows["option"], answers, strict=True)]))
    return found


def _student(context: Context, search: SearchConfig, rounds: int, passes: int) -> dict[str, float]:
    """Trains the student on the labels of the ensemble after these rounds and passes, and measures it."""
    config = space.apply(context.config, {space.ROUNDS: rounds, space.PASSES: passes})
    graph = build_graph(config, context.graph.root)
    smaller = Context(graph, context.plan, context.progress, context.lanes, context.on_stage)
    _once(graph.ensemble, lambda: steps.make_ensemble(smaller))
    students = {student.name: student for student in graph.students}
    if STUDENT_EASY_ONLY in students:
        with store.alone(students[STUDENT_EASY_ONLY].stage.path):
            steps.train_baselines(smaller)
    for maker, stage in graph.labels.items():
        _once(stage, partial(steps.make_labels, smaller, [maker]))
    student = students[STUDENT_ENSEMW2S]
    with store.alone(student.stage.path):
        steps.train_students(smaller)
    voter = one("student", str(student.stage.path.resolve()))
    return measure(smaller, search, voter)


def _once(stage: Stage, work: Callable[[], None]) -> None:
    with store.alone(stage.path):
        if not steps.done(stage):
            work()
