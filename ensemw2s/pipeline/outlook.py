"""What is still to come of a run, for its progress: a graph in, the stages that people see and their steps out.

People see fewer stages than there are folders: the models of a phase are one stage, and so are the experts of a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from ensemw2s.pipeline.graph import Graph, stages_of_rounds
from ensemw2s.pipeline.plan import training_steps
from ensemw2s.storage.store import Stage


def seen(graph: Graph) -> Iterator[tuple[str, Iterable[Stage]]]:
    """Each stage as `Context.stage` announces it, in the order of the pipeline, and the stages of the graph in it."""
    for phase in graph.phases:
        if phase.name == "rounds":
            yield from ((r.stage.name, stages_of_rounds([r])) for r in graph.rounds)
        elif phase.name == "consensus":
            for p in graph.passes:
                yield from ((stage.name, [stage]) for stage in (p.answers, p.kept))
                yield from ((r.stage.name, stages_of_rounds([r])) for r in p.rounds)
        elif phase.name == "generations":
            for generation in graph.generations:
                students = graph.learning_from([generation.name])
                made = [generation.ensemble, generation.labels, *(student.stage for student in students)]
                yield f"generations/{generation.number}", made
        elif phase.stages:
            yield phase.name, phase.stages


def outlook(graph: Graph, done: Mapping[str, bool]) -> tuple[dict[str, int], set[str]]:
    """What a run has before it. Pure.

    Args:
        graph: The run.
        done: Whether each stage of the graph is done, by name.

    Returns:
        Each stage that people see → the optimizer steps that it has left; and those that are done.
    """
    steps, left, complete = training_steps(graph), {}, set()
    for name, stages in seen(graph):
        waiting = [stage.name for stage in stages if not done[stage.name]]
        left[name] = sum(steps.get(stage, 0) for stage in waiting)
        if not waiting:
            complete.add(name)
    return left, complete
