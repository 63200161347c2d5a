"""What a run says is still to come: the stages that people see, and the training that they have left."""

from pathlib import Path

from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.outlook import outlook, seen

from .test_plan import config


def test_every_stage_of_the_graph_is_in_one_that_people_see(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path, consensus__passes=1))
    names = [name for name, _ in seen(graph)]
    assert names[:6] == ["data", "corpus", "models", "tokens", "rounds/1", "rounds/2"]
    assert names[-1] == "evaluation"
    assert len(set(names)) == len(names)
    inside = [stage.name for _, stages in seen(graph) for stage in stages]
    assert sorted(inside) == sorted(stage.name for stage in graph.stages())


def test_what_is_left_are_the_steps_of_what_is_not_done(tmp_path: Path) -> None:
    graph = build_graph(config(tmp_path))
    status = {stage.name: stage.name in ("data", "corpus", "models/strong") for stage in graph.stages()}
    left, done = outlook(graph, status)
    assert done == {"data", "corpus"}
    assert left["models"] == 2 * 8, "the two weak bases"
    assert left["rounds/2"] == 12
    assert left["evaluation"] == 0
