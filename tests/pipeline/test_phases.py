"""The order in which a run does its phases, with work that only notes that it was done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ensemw2s.errors import BoostingError
from ensemw2s.pipeline import phases
from ensemw2s.pipeline.graph import Graph
from ensemw2s.storage import store

from .test_build import graph

WAIT = 30.0


class Noted:
    """A run whose phases leave empty folders."""

    def __init__(self, made: Graph, *, keep_lanes: bool) -> None:
        self.graph, self.plan, self.lanes = made, self, self
        self.keep_lanes = keep_lanes
        self.did: list[str] = []
        self.shown: list[str] = []
        self.abandoned = False
        self.before: dict[str, Callable[[], Any]] = {}

    @contextmanager
    def stage(self, name: str, _: str) -> Iterator[None]:
        self.shown.append(name)
        yield

    def close(self, *, abandon: bool) -> None:
        self.abandoned = abandon

    def does(self, name: str) -> Callable[[Any], None]:
        def work(_: Any) -> None:
            self.before.get(name, lambda: None)()
            self.did.append(name)
            for stage in next(phase for phase in self.graph.phases if phase.name == name).stages:
                with store.publish(stage.path, stage.description):
                    pass

        return work


@pytest.fixture
def noted(tmp_path, monkeypatch) -> Callable[..., Noted]:
    def make(*, keep_lanes: bool = False, **values: Any) -> Noted:
        made = Noted(graph(storage=str(tmp_path), **values), keep_lanes=keep_lanes)
        work = {name: (what, made.does(name)) for name, (what, _) in phases._WORK.items()}
        monkeypatch.setattr(phases, "_WORK", work)
        monkeypatch.setattr(phases, "_BY_PART", {name: made.does(name) for name in phases._BY_PART})
        return made

    return make


ORDER = ["data", "corpus", "models", "tokens", "rounds", "ensemble", "baselines", "labels", "students", "generations"]


def test_everything_is_done_in_the_order_of_the_graph(noted):
    run = noted(**{"student.generations": 2})
    assert [phase.name for phase in run.graph.phases] == [*ORDER, "evaluation"]
    phases.run_stages(run)
    assert run.did == ORDER
    phases.evaluate(run)
    assert run.did[-1] == run.shown[-1] == "evaluation"
    assert all(store.is_done(stage.path, stage.description) for stage in run.graph.stages())


def test_what_is_done_is_skipped_and_rounds_and_generations_look_for_themselves(noted):
    run = noted()
    phases.run_stages(run)
    run.did, run.shown = [], []
    phases.run_stages(run)
    assert run.did == ["rounds", "generations"]
    assert run.shown == []


def test_a_search_prepares_what_no_setting_of_boosting_changes(noted):
    run = noted()
    phases.prepare(run)
    assert run.did == ["data", "corpus", "models", "tokens"]


def test_bases_that_exist_are_not_pretrained(noted):
    run = noted(**{"models.weak": [{"base": "some/model"}], "models.strong": {"base": "some/other"}})
    phases.prepare(run)
    assert run.did == ["data", "tokens"]


def test_baselines_are_trained_beside_the_rounds_where_lanes_are_kept(noted):
    run = noted(keep_lanes=True)
    trained, boosted = threading.Event(), threading.Event()
    run.before["rounds"] = lambda: trained.wait(WAIT) or pytest.fail("the baselines waited for the rounds")
    run.before["baselines"] = trained.set
    run.before["labels"] = boosted.set
    phases.run_stages(run)
    assert run.did.index("baselines") < run.did.index("labels")
    assert boosted.is_set()
    assert not run.abandoned


def test_labels_wait_for_the_baselines(noted):
    run = noted(keep_lanes=True)
    made = threading.Event()
    run.before["ensemble"] = made.set
    run.before["baselines"] = lambda: made.wait(WAIT) or pytest.fail("nothing else went on")
    phases.run_stages(run)
    assert run.did[ORDER.index("rounds") :] == ["rounds", "ensemble", "baselines", "labels", "students", "generations"]


def test_baselines_that_are_still_trained_are_given_up_when_a_round_fails(noted):
    run = noted(keep_lanes=True)
    closed = threading.Event()
    run.close = lambda *, abandon: closed.set()
    run.before["baselines"] = lambda: closed.wait(WAIT) or pytest.fail("their end was waited for")

    def fail() -> None:
        raise BoostingError("no round gave an expert")

    run.before["rounds"] = fail
    with pytest.raises(BoostingError, match="no round gave"):
        phases.run_stages(run)
    assert closed.is_set()


def test_baselines_that_fail_end_the_run(noted):
    run = noted(keep_lanes=True)

    def fail() -> None:
        raise BoostingError("too little memory")

    run.before["baselines"] = fail
    with pytest.raises(BoostingError, match="too little memory"):
        phases.run_stages(run)
    assert "labels" not in run.did
