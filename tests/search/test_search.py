import pytest

from ensemw2s.cluster.resources import Node, Resources
from ensemw2s.config import Config, parse_config
from ensemw2s.errors import ConfigError
from ensemw2s.search import search
from ensemw2s.storage import store

from .test_space import TREE


@pytest.fixture
def made(tmp_path) -> Config:
    (tmp_path / "x.jsonl").write_text('{"prompt": "a", "answer": "b", "level": 1}\n')
    return wanted(tmp_path)


def wanted(tmp_path, **changes) -> Config:
    tree = {**TREE, "storage": str(tmp_path / "runs"), **changes}
    tree["data"] = {**TREE["data"], "source": {**TREE["data"]["source"], "paths": [str(tmp_path / "x.jsonl")]}}
    tree["models"] = {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}}
    return parse_config({"search": {"space": {"expert.epochs": {"integer": [1, 2]}}}, **tree})


@pytest.mark.parametrize(
    ("nodes", "training", "labeling", "expected"),
    [
        # halves of a core on two cores: two trials with a lane and an actor each
        ([(2, 0)], {"cpus_per_worker": 0.5, "lanes": 2}, {"cpus_per_actor": 0.5}, (1, 1, True, 2)),
        # no room for a lane and an actor side by side: one trial, which takes turns
        ([(1, 0)], {}, {}, (1, 1, False, 1)),
        ([(8, 0)], {"workers": 2}, {"cpus_per_actor": 2}, (1, 1, True, 2)),
        # not more lanes than the config allows
        ([(64, 0)], {"lanes": 3}, {}, (1, 20, True, 3)),
        ([(64, 0)], {}, {"max_actors": 2}, (31, 1, True, 2)),
    ],
)
def test_trials_at_a_time_are_those_with_room_for_a_lane_and_actors(
    nodes, training, labeling, expected, tmp_path
) -> None:
    (tmp_path / "x.jsonl").write_text("")
    config = wanted(tmp_path, training=training, labeling=labeling)
    plan, count = search.divide(config, Resources(tuple(Node(*node) for node in nodes)))
    lanes, actors, keep, trials = expected
    assert (plan.keep_lanes, count) == (keep, trials)
    assert plan.lanes >= 1
    assert plan.actors >= 1
    if keep:
        need = trials * (plan.lanes * config.training.workers.max * config.training.cpus_per_worker)
        need += trials * plan.actors * config.labeling.cpus_per_actor
        assert need <= sum(cpus for cpus, _ in nodes)
    assert (plan.lanes, plan.actors) == (lanes, actors)


def test_only_nodes_that_actors_may_use_have_room_for_those_of_trials(tmp_path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    config = wanted(tmp_path, training={"node_resource": "a"}, labeling={"node_resource": "b"})
    plan, count = search.divide(config, Resources((Node(64, 0, frozenset({"a"})), Node(2, 0, frozenset({"b"})))))
    assert (plan.lanes, plan.actors, plan.keep_lanes, count) == (32, 1, True, 2)


def test_concurrency_can_be_bounded(tmp_path) -> None:
    (tmp_path / "x.jsonl").write_text("")
    space = {"expert.epochs": {"integer": [1, 2]}}
    config = wanted(tmp_path, search={"space": space, "concurrent": 3})
    assert search.divide(config, Resources((Node(64.0, 0.0),)))[1] == 3


def test_a_folder_of_another_search_is_refused_with_what_changed(made, tmp_path) -> None:
    folder = search.search_directory(made)
    folder.mkdir(parents=True)
    assert search.earlier(folder, search.describe(made)) == "none"
    store.write_json(folder / "description.json", search.describe(made).model_dump(exclude={"stage"}))
    assert search.earlier(folder, search.describe(made)) == "begun"
    store.write_json(folder / "search.json", {})
    assert search.earlier(folder, search.describe(made)) == "done"
    other = wanted(tmp_path, expert={"batch_size": 7})
    with pytest.raises(ConfigError, match=r"batch_size was 32, is 7.*--fresh"):
        search.earlier(folder, search.describe(other))
    elsewhere = wanted(tmp_path, cluster={"cpus": 2}, training={})
    assert search.earlier(folder, search.describe(elsewhere)) == "done"


def test_a_fresh_search_keeps_the_stages(made) -> None:
    folder = search.search_directory(made)
    for name in ("stages/data-1", "tune", "plots"):
        (folder / name).mkdir(parents=True)
    for name in ("description.json", "search.json", "best.yaml"):
        (folder / name).write_text("{}")
    search.clear(folder)
    assert [path.name for path in folder.iterdir()] == ["stages"]


def test_where_drivers_sit(made, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert search.driver_resources(made) == {"driver": 1}
    assert search.driver_resources(wanted(tmp_path, cluster={"address": "auto"})) == {"CPU": 0.1}
    assert search.driver_resources(wanted(tmp_path, cluster={"address": "auto", "driver_resource": "steady"})) == {
        "steady": 1
    }
