"""Which kinds of node may run a process: by room, by the resource that the config names, and by whether it has GPUs."""

import pytest

from ensemw2s.costs.processes import candidates, check_speed
from ensemw2s.errors import ResourceError


def names(found, work):
    return [node.name for node in candidates(found, work)]


def test_names_of_kinds_say_nothing_and_the_cheapest_room_comes_first(make_config, make_cluster):
    found = make_cluster(training=("x.four", 1), decoding=("x.old", 1), big=("x.big", 1))
    config = make_config()
    assert names(found, config.training) == names(found, config.labeling) == ["decoding", "training", "big"]


def test_a_node_resource_is_looked_for_among_the_resources_of_each_kind(make_config, make_cluster):
    found = make_cluster(a=("x.four", 1), b=("x.one", 2))
    config = make_config(training__node_resource="a", labeling__node_resource="b")
    assert (names(found, config.training), names(found, config.labeling)) == (["a"], ["b"])
    missing = make_config(training__node_resource="trainings").training
    with pytest.raises(
        ResourceError,
        match=r"^training\.node_resource trainings: no node type of test has it in its resources, which are a, b$",
    ):
        candidates(found, missing)


def test_nodes_with_the_resource_have_to_be_enough(make_config, make_cluster):
    found = make_cluster(a=("x.four", 1), b=("x.one", 2))
    config = make_config(training__node_resource="b", training__workers=3)
    with pytest.raises(ResourceError, match=r"node_resource b: there is room for 2 workers on such nodes, not for 3"):
        candidates(found, config.training)
    assert names(found, make_config(training__node_resource="a", training__workers=3).training) == ["a"]


def test_a_process_that_no_node_has_room_for_is_refused(make_config, make_cluster):
    found = make_cluster(one=("x.one", 4), four=("x.four", 1))
    assert names(found, make_config(training__gpus_per_worker=2).training) == ["four"]
    with pytest.raises(ResourceError, match="no node type of test has 1 CPUs and 8 GPUs"):
        candidates(found, make_config(training__gpus_per_worker=8).training)
    with pytest.raises(ResourceError, match="no node type of test with one has 1 CPUs and 2 GPUs"):
        candidates(found, make_config(training__gpus_per_worker=2, training__node_resource="one").training)


def test_nodes_with_gpus_are_left_to_those_who_ask_for_some(make_config, make_cluster):
    config = make_config(training__gpus_per_worker=0, training__cpus_per_worker=2)
    assert names(make_cluster(old=("x.old", 1), cpu=("x.cpu", 1)), config.training) == ["cpu"]
    assert names(make_cluster(old=("x.old", 1)), config.training) == ["old"]


def test_processes_without_gpus_are_advised_to_ask_for_some(make_config, make_cluster):
    gpus = make_cluster(one=("x.one", 1))
    both = make_config(training__gpus_per_worker=0, labeling__gpus_per_actor=0)
    check_speed(gpus, [make_config().training, make_config().labeling])
    check_speed(make_cluster(cpu=("x.cpu", 1)), [both.training, both.labeling])
    with pytest.raises(
        ResourceError,
        match=r"how fast x\.one is for what has no GPU: ask for some with --set training\.gpus_per_worker=1 --set "
        r"labeling\.gpus_per_actor=1, or take the speeds of a finished run with --measured RUN$",
    ):
        check_speed(gpus, [both.training, both.labeling])
    with pytest.raises(ResourceError, match=r"no GPU: ask for some with --set labeling\.gpus_per_actor=1, or take"):
        check_speed(gpus, [make_config().training, both.labeling])
    with pytest.raises(ResourceError, match=r"how fast x\.head is for what has no GPU: give it a processor there, or"):
        check_speed(make_cluster(plain=("x.head", 1)), [both.training])
