"""Time and memory on this machine: an estimate that says what it rests on, and that finished trainings make better."""

from dataclasses import replace
from pathlib import Path

import pytest

from ensemw2s.cluster.resources import Node, Resources
from ensemw2s.costs.here import on_this_machine, together
from ensemw2s.models.tiny import tiny_parameters
from ensemw2s.pipeline.build import build_graph
from ensemw2s.pipeline.plan import lay_out, parameters
from ensemw2s.pipeline.survey import survey
from ensemw2s.training.records import TrainRecord

from ..pipeline.test_plan import config, finish

TWO_CORES = Resources((Node(2.0, 0.0),))
OLDER = Path(__file__).parent.parent / "older_run"


def estimated(settings, *, flops=1e11):
    graph = build_graph(settings)
    plan = lay_out(graph, survey(graph), parameters(graph))
    return on_this_machine(graph, plan, TWO_CORES, speed=lambda: (flops, 2e10))


def seconds(here, stage):
    return next(s.seconds for s in here.stages if s.name == stage)


def test_time_and_memory_are_estimated_and_say_from_what(tmp_path):
    here = estimated(config(tmp_path))
    assert here.seconds == pytest.approx(6 + sum(stage.seconds for stage in here.stages), rel=0.01)
    assert 2 < here.memory_gib < here.machine_gib * 10
    assert "models" in here.time_words()
    assert here.time_words().endswith(
        "An estimate, from a matrix product timed on this machine; rough, by a factor of two either way"
    )
    assert seconds(estimated(config(tmp_path), flops=1e9), "rounds") > seconds(here, "rounds")


def test_finished_trainings_of_the_same_size_give_their_speed(tmp_path):
    before = estimated(config(tmp_path))
    weights = tiny_parameters("tiny-weak", config(tmp_path).models.pretraining.vocabulary)
    record = TrainRecord.read(next((OLDER / "rounds").rglob("train.json")).parent)
    trained = Path(config(tmp_path).storage) / "earlier" / "rounds" / "1" / "experts" / "0"
    trained.mkdir(parents=True)
    record.model_copy(update={"trained_parameters": weights, "seconds": 3997.0}).write(trained)
    after = estimated(config(tmp_path))
    assert seconds(after, "rounds") > 10 * seconds(before, "rounds")
    assert seconds(after, "students") == seconds(before, "students"), "no student was trained here"
    assert not after.trained_before


def test_a_plan_for_gpus_says_that_their_speed_is_not_known(tmp_path):
    graph = build_graph(config(tmp_path, training__gpus_per_worker=1))
    here = on_this_machine(graph, lay_out(graph, survey(graph), parameters(graph)), Resources((Node(2.0, 1.0),)))
    assert here.seconds is None
    assert "no estimate: the speed of its GPUs is not known before a run" in here.time_words()


def test_a_finished_run_has_nothing_to_estimate(tmp_path):
    graph = build_graph(config(tmp_path))
    finish(graph.evaluation)
    plan = lay_out(graph, survey(graph), parameters(graph))
    assert on_this_machine(graph, replace(plan, complete=True), TWO_CORES) is None


def test_runs_one_after_another_add_up(tmp_path):
    here = estimated(config(tmp_path))
    both = together([here, here])
    assert both.seconds == pytest.approx(2 * here.seconds - 6)
    assert seconds(both, "rounds") == pytest.approx(2 * seconds(here, "rounds"))
    assert both.memory_gib == here.memory_gib
