"""What a run takes in storage: a graph goes in, bytes of weights come out, as an upper bound."""

from __future__ import annotations

from pathlib import Path

from ensemw2s.costs.needs import Shapes
from ensemw2s.pipeline.graph import Base, Graph
from ensemw2s.storage.record import Record

WEIGHT = 4
"""Bytes of a weight in a file; models that are trained in bf16 take half."""

CHECKPOINT = 12
"""Bytes of a checkpoint per trained weight: the weight and two moments of the optimizer."""


class Disk(Record):
    """Bytes of weights that a run takes at most, what is there already included.

    Attributes:
        models: Of all models when everything is done, pre-trained bases in the cache included.
        passes: Of these, members of consensus passes.
        checkpoints: Of the trainings that go on side by side, while they do.
    """

    models: int
    passes: int
    checkpoints: int

    def words(self) -> str:
        """In a sentence."""
        passes = f" ({_amount(self.passes)} of them in consensus passes)" if self.passes else ""
        during = f", and {_amount(self.checkpoints)} of checkpoints during training" if self.checkpoints else ""
        return (
            f"at most about {_amount(self.models)} of weights{passes}{during}. `ensemw2s clean` frees a part at the end"
        )


def disk(graph: Graph, sizes: Shapes, lanes: int) -> Disk:
    """What a run takes.

    Args:
        graph: The run.
        sizes: Of its bases (`needs.shapes`).
        lanes: Trainings side by side.
    """

    def trained(base: Base) -> int:
        return sizes[base.name].adapters(base.lora) if base.lora is not None else sizes[base.name].parameters

    tries = 2 if graph.config.boosting.on_failure == "retry" else 1
    members = [expert.base for r in graph.rounds for expert in r.experts]
    passes = tries * sum(trained(expert.base) for p in graph.passes for r in p.rounds for expert in r.experts)
    copied = {base.location: sizes[base.name].parameters for base in members if base.lora is not None and _here(base)}
    students = graph.learning_from([None, *graph.all_labels])
    again = [student for generation in graph.generations for student in generation.students]
    weights = [
        sum(sizes[base.name].parameters for base in graph.pretrained),
        (tries + 1) * sum(map(trained, members)),  # the ensemble has copies
        sum(copied.values()),  # and the bases of its adapters
        passes,
        sum(trained(expert.base) for expert in graph.baseline_experts),
        (len(students) + len(again)) * trained(graph.strong),
    ]
    largest = max(trained(base) for base in graph.bases)
    kept = graph.config.training.checkpoint_seconds is not None
    return Disk(
        models=WEIGHT * sum(weights),
        passes=WEIGHT * passes,
        checkpoints=CHECKPOINT * lanes * largest if kept else 0,
    )


def _here(base: Base) -> bool:
    return Path(base.location).exists()


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
