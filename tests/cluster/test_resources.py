"""The resource plan: what runs at the same time, and what can never run."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.cluster.resources import (
    DRIVER,
    Node,
    ResourcePlan,
    Resources,
    local_resources,
    plan_resources,
    share_of,
    usable_cpus,
    with_autoscaling,
)
from ensemw2s.config import ClusterConfig, Config, NodeKind, parse_config
from ensemw2s.errors import ResourceError


def config(training: dict[str, Any] | None = None, labeling: dict[str, Any] | None = None) -> Config:
    return parse_config(
        {
            "name": "study",
            "data": {"source": {"kind": "reasoning_gym", "dataset": "number_sorting"}},
            "models": {"weak": [{"base": "tiny-weak"}], "strong": {"base": "tiny-strong"}},
            "training": training or {},
            "labeling": labeling or {},
        }
    )


def plan(*nodes: tuple[Any, ...], **sections: dict[str, Any]) -> tuple[int, int, bool]:
    made = plan_resources(config(**sections), Resources(tuple(Node(*node) for node in nodes)))
    assert isinstance(made, ResourcePlan)
    return made.lanes, made.actors, made.keep_lanes


def test_nodes_that_an_autoscaler_may_start_count_beside_those_that_are_there():
    head, spot = Node(2.0, 0.0), Node(16.0, 4.0)

    def kinds(*counts: int) -> list[NodeKind]:
        return [NodeKind(cpus=16, gpus=4, nodes=count) for count in counts]

    assert with_autoscaling([head], []).nodes == (head,)
    assert with_autoscaling([head], kinds(3)).nodes == (head, spot, spot, spot)
    assert with_autoscaling([head, spot, spot], kinds(3)).nodes == (head, spot, spot, spot)
    assert with_autoscaling([head, spot, spot], kinds(1)).nodes == (head, spot, spot)
    assert with_autoscaling([head], kinds(1, 2)).gpus == 12


def test_a_head_without_room_plans_for_the_nodes_that_may_come():
    resources = with_autoscaling([Node(0.0, 0.0)], [NodeKind(cpus=8, gpus=1, nodes=4)])
    made = plan_resources(config({"gpus_per_worker": 1}, {"gpus_per_actor": 1}), resources)
    assert (made.lanes, made.actors, made.keep_lanes) == (2, 2, True)


def test_a_thousand_workers_find_room_on_a_node_of_their_kind():
    assert share_of(None) == {}
    assert share_of("training") == {"training": 0.001}


TRAINING, DECODING = frozenset({"training"}), frozenset({"decoding"})


def test_lanes_and_actors_are_planned_for_nodes_with_their_resource_alone():
    nodes = ((8, 0), (4, 0, TRAINING), (2, 0, DECODING))
    both = {"training": {"node_resource": "training"}, "labeling": {"node_resource": "decoding"}}
    assert plan(*nodes) == (7, 7, True)
    assert plan(*nodes, **both) == (4, 2, True)
    assert plan(*nodes, training=both["training"]) == (4, 10, True)
    same = {section: {"node_resource": "training"} for section in both}
    assert plan(*nodes, **same) == (2, 2, True)
    assert plan((8, 0), (1, 0, TRAINING), **same) == (1, 1, False)


def test_lanes_that_may_lie_anywhere_leave_room_where_actors_have_to_be():
    here = {"training": {"lanes": 6}, "labeling": {"node_resource": "decoding", "min_actors": 2}}
    assert plan((8, 0), (4, 0, DECODING), **here) == (2, 2, True), "more lanes could take all of the second node"


def test_what_has_no_node_with_its_resource_is_refused():
    nodes = ((8, 0, TRAINING), (8, 0))
    with pytest.raises(
        ResourceError, match=r"only 0 fit on 0 nodes, .* with the resource a \(training\.node_resource\)"
    ):
        plan(*nodes, training={"node_resource": "a"})
    with pytest.raises(
        ResourceError, match=r"actor takes; nodes .* have it if cluster\.autoscales_to\.N\.resources says b"
    ):
        plan(*nodes, labeling={"node_resource": "b"})
    with pytest.raises(ResourceError, match=r"asks for 9 workers .* only 8 fit on 1 node, 8 CPUs, 0 GPUs with"):
        plan(*nodes, training={"node_resource": "training", "workers": 9})


def test_living_nodes_are_of_a_kind_by_their_size_and_its_resources():
    kinds = [NodeKind(cpus=8, nodes=2), NodeKind(cpus=8, nodes=2, resources=["training"])]
    come = (Node(8, 0, TRAINING),) * 2 + (Node(8, 0),) * 2
    assert with_autoscaling([], kinds).nodes == come
    living = [Node(8, 0, frozenset({"node:10.0.0.1"})), Node(8, 0, frozenset({"node:10.0.0.2", "training"}))]
    assert with_autoscaling(living, kinds).nodes == (*living, Node(8, 0, TRAINING), Node(8, 0))
    assert with_autoscaling(living, kinds[1:]).nodes == (*living, Node(8, 0, TRAINING)), "the first one is of no kind"


HALVES = {"training": {"cpus_per_worker": 0.5, "lanes": 2}, "labeling": {"cpus_per_actor": 0.5}}


def test_half_cores_leave_room_for_lanes_and_actors_on_two_cores():
    assert plan((2, 0), **HALVES) == (2, 2, True)


def test_on_one_core_half_of_it_trains_and_half_decodes():
    assert plan((1, 0), **HALVES) == (1, 1, True)


def test_whole_cores_on_two_cores_are_one_lane_and_one_actor():
    assert plan((2, 0)) == (1, 1, True)


def test_on_a_single_core_lanes_and_actors_take_turns():
    assert plan((1, 0)) == (1, 1, False)


def test_without_a_number_of_lanes_half_of_a_large_node_decodes():
    assert plan((16, 0)) == (8, 8, True)
    assert plan((16, 0), labeling={"min_actors": 12}) == (4, 12, True)


def test_a_number_of_lanes_leaves_at_least_the_smallest_pool():
    assert plan((16, 0), training={"lanes": 16}) == (15, 1, True)
    assert plan((16, 0), training={"lanes": 16}, labeling={"min_actors": 4}) == (12, 4, True)
    assert plan((16, 0), training={"lanes": 3}) == (3, 13, True)
    assert plan((16, 0), training={"lanes": 3}, labeling={"max_actors": 5}) == (3, 5, True)


def test_a_lane_is_all_of_its_workers():
    assert plan((8, 0), training={"workers": 3}) == (1, 5, True)
    assert plan((8, 0), training={"workers": 8}) == (1, 8, False)
    assert plan((8, 0), training={"workers": 4, "lanes": 9}) == (1, 4, True)


def test_when_taking_turns_each_has_the_whole_cluster():
    big = {"training": {"workers": 2, "cpus_per_worker": 2}, "labeling": {"cpus_per_actor": 4}}
    assert plan((4, 0), **big) == (1, 1, False)


def test_gpus_are_divided_like_cores():
    gpu = {"training": {"gpus_per_worker": 1}, "labeling": {"gpus_per_actor": 1}}
    assert plan((32, 8), **gpu) == (4, 4, True)
    assert plan((32, 1), **gpu) == (1, 1, False)
    shared = {"training": {"gpus_per_worker": 0.5, "lanes": 1}, "labeling": {"gpus_per_actor": 0.25}}
    assert plan((32, 1), **shared) == (1, 2, True)


def test_too_few_cores_beside_the_gpus_count_too():
    gpu = {"training": {"gpus_per_worker": 1, "cpus_per_worker": 4, "lanes": 8}, "labeling": {"cpus_per_actor": 1}}
    assert plan((8, 8), **gpu) == (1, 4, True)


def test_a_piece_lies_on_one_node():
    """Three nodes with 3 cores hold three workers of 2, not four."""
    assert Resources((Node(3, 0),) * 3).fits(2, 0) == 3
    assert Resources((Node(4, 1), Node(4, 0))).fits(1, 1) == 1
    assert Resources((Node(0.3, 0),)).fits(0.1, 0) == 3  # and not 2, by the rounding of 0.3 / 0.1
    assert Resources(()).fits(1, 0) == 0


def test_workers_of_a_lane_may_lie_on_several_nodes():
    assert plan((2, 0), (2, 0), training={"workers": 3}) == (1, 1, True)


def test_actors_are_counted_on_what_is_left_of_each_node():
    # the lane takes 3 of 4 cores of the first node: one core is left there, in which no actor of 2 fits
    sections = {"training": {"workers": 3, "lanes": 1}, "labeling": {"cpus_per_actor": 2}}
    assert plan((4, 0), (4, 0), **sections) == (1, 2, True)


def test_a_node_without_gpus_still_decodes_on_its_cores():
    sections = {"training": {"gpus_per_worker": 1}, "labeling": {"cpus_per_actor": 4}}
    assert plan((4, 1), (8, 0), **sections) == (1, 2, True)


@pytest.mark.parametrize(
    ("nodes", "training", "message"),
    [
        (
            ((2, 0),),
            {"workers": 3},
            r"asks for 3 workers of 1 CPUs and 0 GPUs, but only 2 fit on 1 node, 2 CPUs, 0 GPUs",
        ),
        (((64, 0),), {"gpus_per_worker": 1}, r"1 workers of 1 CPUs and 1 GPUs, but only 0 fit on 1 node, 64 CPUs"),
        (((3, 0), (3, 0)), {"cpus_per_worker": 4}, r"1 workers of 4 CPUs .* only 0 fit on 2 nodes, 6 CPUs, 0 GPUs"),
        ((), {}, r"only 0 fit on 0 nodes, 0 CPUs, 0 GPUs"),
    ],
)
def test_training_that_can_never_be_placed_is_refused(nodes, training, message):
    with pytest.raises(
        ResourceError, match=rf"training\.workers {message}" if message[0] == "a" else message
    ) as caught:
        plan(*nodes, training=training)
    assert "lower training.workers or what a worker takes" in str(caught.value)


@pytest.mark.parametrize(
    "labeling",
    [{"min_actors": 3}, {"cpus_per_actor": 2.5}, {"gpus_per_actor": 0.1}, {"min_actors": 2, "max_actors": 2}],
)
def test_actors_that_can_never_be_placed_are_refused(labeling):
    nodes = ((1, 0),) if "max_actors" in labeling else ((2, 0),)
    with pytest.raises(
        ResourceError, match=r"labeling\.min_actors asks for \d actors .* lower labeling\.min_actors or"
    ):
        plan(*nodes, labeling=labeling)


sizes = st.sampled_from([0.25, 0.5, 1, 2, 4])
node = st.tuples(st.integers(1, 16), st.integers(0, 4))


@settings(deadline=None)
@given(
    st.lists(node, min_size=1, max_size=4),
    st.integers(1, 6),
    sizes,
    st.sampled_from([0, 0, 0.5, 1]),
    st.one_of(st.none(), st.integers(1, 5)),
    sizes,
    st.sampled_from([0, 0, 0.5, 1]),
    st.integers(1, 3),
)
def test_whatever_is_planned_fits(nodes, workers, cpus, gpus, lanes, actor_cpus, actor_gpus, least):
    training = {"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus, "lanes": lanes}
    labeling = {"min_actors": least, "cpus_per_actor": actor_cpus, "gpus_per_actor": actor_gpus}
    resources = Resources(tuple(Node(*node) for node in nodes))
    try:
        made = plan_resources(config(training, labeling), resources)
    except ResourceError:
        assert resources.fits(cpus, gpus) < workers or resources.fits(actor_cpus, actor_gpus) < least
        return
    assert 1 <= made.lanes <= (lanes or math.inf)
    assert made.actors >= least
    assert made.lanes * workers <= resources.fits(cpus, gpus)
    assert made.actors <= resources.fits(actor_cpus, actor_gpus)
    at_once = made.keep_lanes
    assert made.lanes * workers * cpus + at_once * made.actors * actor_cpus <= resources.cpus + 1e-9
    assert made.lanes * workers * gpus + at_once * made.actors * actor_gpus <= resources.gpus + 1e-9


def test_a_ray_started_here_has_the_cores_of_this_machine_or_those_of_the_config(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert local_resources(ClusterConfig()).cpus == 3
    assert local_resources(ClusterConfig(cpus=7, gpus=2)).nodes == (Node(7.0, 2.0, frozenset({DRIVER})),)


QUOTAS = [
    ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 2),
    ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, 8),
    ("0::/a/b", {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3),
    ("0::/of/the/host", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 1),
    (
        "4:cpu,cpuacct:/docker/abc",
        {
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    ("4:cpu:/", {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, 8),
    ("5:memory:/", {}, 8),
    ("0::/", {"sys/fs/cgroup/cpu.max": "3200000 100000"}, 8),
]


@pytest.mark.parametrize(("group", "files", "cpus"), QUOTAS)
def test_a_quota_of_cpus_counts_rounded_up(tmp_path, monkeypatch, group, files, cpus):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    for name, text in {"proc/self/cgroup": group, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert usable_cpus(tmp_path) == cpus


def test_without_control_groups_all_cpus_count(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert usable_cpus(tmp_path) == 8
