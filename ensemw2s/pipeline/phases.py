"""Does the phases of a run in the order of `Graph.phases`; what is done already is skipped.

Baselines wait for no boosting round. Where there is room they are trained beside the rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from ensemw2s.pipeline import steps
from ensemw2s.pipeline.anchoring import find_anchor
from ensemw2s.pipeline.consensus import run_passes
from ensemw2s.pipeline.context import Context
from ensemw2s.pipeline.graph import Phase, PhaseName
from ensemw2s.pipeline.rounds import run_rounds

_WORK: Mapping[PhaseName, tuple[str, Callable[[Context], None]]] = {
    "data": ("examples and splits", steps.make_data),
    "corpus": ("text for the tiny bases", steps.make_corpus),
    "models": ("pre-training of the tiny bases", steps.pretrain),
    "tokens": ("easy examples as tokens", steps.make_tokens),
    "anchor": ("how much of their bases the members keep", find_anchor),
    "ensemble": ("the experts as one artifact", steps.make_ensemble),
    "baselines": ("experts and students that the ensemble is compared with", steps.train_baselines),
    "labels": ("pseudo-labels for the hard prompts", steps.make_labels),
    "students": ("training on pseudo-labels", steps.train_students),
    "evaluation": ("every system on both test splits", steps.evaluate),
}
"""What people read while a phase is done, and what does it."""

_BY_PART: Mapping[PhaseName, Callable[[Context], None]] = {
    "rounds": run_rounds,
    "consensus": run_passes,
    "generations": steps.make_generations,
}
"""Phases that skip, show and record each of their parts by themselves."""


def prepare(context: Context) -> None:
    """Makes what no setting of boosting changes: data, text and bases, tokens."""
    _run(context, "tokens")


def run_stages(context: Context) -> None:
    """Does all that is not done yet, except the evaluation."""
    _run(context, "generations")


def evaluate(context: Context) -> None:
    """Evaluates what `run_stages` made, if it is not evaluated yet."""
    _do(context, context.graph.phases[-1])


def _run(context: Context, last: PhaseName) -> None:
    """Does the phases up to this one."""
    phases = {phase.name: phase for phase in context.graph.phases}
    with _Beside(context, phases["baselines"]) as baselines:
        for phase in phases.values():
            if phase.name == "rounds":
                baselines.begin()
            if phase.name == "baselines":
                baselines.end()
            else:
                _do(context, phase)
            if phase.name == last:
                return


def _do(context: Context, phase: Phase) -> None:
    if phase.name in _BY_PART:
        _BY_PART[phase.name](context)
    elif not all(map(steps.done, phase.stages)):
        what, work = _WORK[phase.name]
        with context.stage(phase.name, what):
            work(context)


class _Beside:
    """A phase in the background, on what the main line leaves free; in its own turn where lanes are not kept."""

    def __init__(self, context: Context, phase: Phase) -> None:
        self._context, self._phase = context, phase
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=phase.name)
        self._running: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Starts it, where lanes are kept."""
        if self._context.plan.keep_lanes:
            self._running = self._thread.submit(_do, self._context, self._phase)

    def end(self) -> None:
        """Waits for its end, or does it."""
        if self._running is not None:
            self._running.result()
        else:
            _do(self._context, self._phase)

    def __exit__(self, *_: object) -> None:
        if self._running is not None and not self._running.done():  # the main line failed
            self._context.lanes.close(abandon=True)  # else the end of the background work would be waited for
        self._thread.shutdown()
