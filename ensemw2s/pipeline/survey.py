"""What lies on disk for a graph: its stages go in, the state of each comes out. Only markers and records are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ensemw2s.boosting.consensus import PassRecord
from ensemw2s.boosting.records import RoundRecord
from ensemw2s.errors import ArtifactError
from ensemw2s.evaluation.records import RESULTS
from ensemw2s.pipeline.graph import Graph, Pass, Round, stages_of_rounds
from ensemw2s.storage import remote, store
from ensemw2s.storage.store import Stage
from ensemw2s.training import checkpoints

State = Literal["done", "to do", "changed", "not needed", "freed"]


@dataclass(frozen=True)
class StageState:
    """What lies on disk for a stage.

    Attributes:
        state: `changed`: it was made with another config. `not needed`: boosting ended with an earlier round. `freed`:
            it is gone (`ensemw2s clean`), and a run that is complete does not make it again.
        detail: The settings that changed (empty where only its inputs did), or why it is not needed.
    """

    state: State
    detail: str = ""


def survey(graph: Graph) -> dict[str, StageState]:
    """Looks up what is finished. Reads markers and round.json files only."""
    found = {stage.name: _look(stage) for stage in graph.stages()}
    for p, refused in _refused(graph, found):
        for stage in (p.answers, p.kept, *stages_of_rounds(p.rounds)):
            if found[stage.name].state == "to do":
                found[stage.name] = StageState("not needed", f"too few hard answers passed the gate of pass {refused}")
    for rounds in (graph.rounds, *(p.rounds for p in graph.passes)):
        ended = _end_of_boosting(graph, rounds, found)
        for stage in stages_of_rounds(rounds[ended or len(rounds) :]):
            if found[stage.name].state == "to do":
                found[stage.name] = StageState("not needed", f"boosting ended with round {ended}, which got no vote")
    if found[graph.evaluation.name].state == "done" and remote.exists(graph.root / RESULTS):  # as `run` looks at it
        found |= {name: StageState("freed") for name, stage in found.items() if stage.state == "to do"}
    return found


def _look(stage: Stage) -> StageState:
    try:
        done = store.is_done(stage.path, stage.description)
        checkpoints.check(checkpoints.folder_of(stage.path), stage.description)
        return StageState("done" if done else "to do")
    except ArtifactError as error:
        try:
            earlier = store.Description.read(stage.path / store.MARKER)
        except ArtifactError:
            earlier = None
        if earlier is None:
            return StageState("changed", str(error))
        own = earlier.settings != stage.settings
        return StageState("changed", store.difference(earlier, stage.description) if own else "")


def _end_of_boosting(graph: Graph, rounds: Sequence[Round], found: dict[str, StageState]) -> int | None:
    """The one of these rounds that was refused and with which boosting stopped."""
    if graph.config.boosting.on_failure == "skip":
        return None
    for r in rounds:
        if found[r.stage.name].state != "done":
            return None
        if not RoundRecord.read(r.stage.path).accepted:
            return r.number
    return None


def _refused(graph: Graph, found: dict[str, StageState]) -> Iterator[tuple[Pass, int]]:
    """The consensus passes that do not take place, each with the number of the one whose gate was in the way."""
    refused = None
    for p in graph.passes:
        if refused is None and found[p.kept.name].state == "done" and not PassRecord.read(p.kept.path).took_place:
            refused = p.number
        if refused is not None:
            yield p, refused
