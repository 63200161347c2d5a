"""Files of Ray's cluster launcher, and what a table says of their instance types."""

from pathlib import Path

import pytest
import yaml

from ensemw2s.costs.hardware import PRICES, read_cluster, read_prices
from ensemw2s.errors import ConfigError, ResourceError

ROOT = Path(__file__).parent.parent.parent


def write(folder, limit=3, **types):
    path, tree = folder / "cluster.yaml", {"head_node_type": "head", "available_node_types": types}
    path.write_text(yaml.safe_dump(tree if limit is None else {**tree, "max_workers": limit}))
    return path


def test_the_table_that_comes_along_is_valid_and_says_what_it_is():
    prices = read_prices(ROOT / "cluster" / PRICES)
    assert "to be checked" in prices.as_of
    used = {instance.gpu for instance in prices.instances.values() if instance.gpu}
    assert used == set(prices.processors), "no processor without an instance, and none without its facts"
    assert {instance.cloud for instance in prices.instances.values()} == {"aws", "gcp"}
    assert {"g5.12xlarge", "g6.12xlarge", "p4d.24xlarge", "p5.48xlarge", "g2-standard-48", "a2-highgpu-8g"} <= set(
        prices.instances
    )


def test_nodes_have_what_the_file_counts_or_else_what_the_table_says(make_cluster):
    found = make_cluster(gpu=("x.four", 2))
    gpu, head = sorted(found.nodes, key=lambda node: node.name)
    assert (head.is_head, head.cpus, head.most) == (True, 0, 1)
    assert (gpu.cpus, gpu.gpus, gpu.most, gpu.processor.memory_gib) == (32, 4, 2, 16)
    assert found.idle_minutes == 3
    assert [node.name for node in found.workers] == ["gpu"], "a head without CPUs does no work"
    assert str(found.resources()) == "2 nodes, 64 CPUs, 8 GPUs"


@pytest.mark.parametrize(
    "settings",
    [
        {"InstanceType": "x.four", "InstanceMarketOptions": {"MarketType": "spot"}},
        {"machineType": "x.four", "scheduling": [{"provisioningModel": "SPOT"}]},
        {"machineType": "zones/us-central1-a/machineTypes/x.four", "scheduling": {"preemptible": True}},
    ],
    ids=["aws", "gcp", "gcp-preemptible"],
)
def test_spot_nodes_of_both_clouds_cost_the_spot_price(make_cluster, tmp_path, settings):
    make_cluster()
    found = read_cluster(write(tmp_path, gpu={"node_config": settings}))
    [node] = found.nodes
    assert (node.kind, node.spot, node.most) == ("x.four", True, 3)
    assert (node.price(found.prices), node.price(found.prices, spot=False)) == (1.5, 4)


def test_a_spot_price_that_is_not_given_is_a_share_of_the_other(make_cluster):
    found = make_cluster(one=("x.one", 1))
    [one] = found.workers
    assert one.price(found.prices, spot=True) == 0.25


def test_an_instance_type_that_the_table_lacks_is_refused_with_the_ones_there(make_cluster, tmp_path):
    make_cluster()
    path = write(tmp_path, gpu={"node_config": {"InstanceType": "x.fore"}})
    with pytest.raises(
        ConfigError, match=r"gpu is x\.fore, which .*prices\.yaml does not know; did you mean x\.four\?"
    ):
        read_cluster(path)
    with pytest.raises(ConfigError, match=r"Valid: x\.big, x\.cpu"):
        read_cluster(path)


def test_a_file_of_something_else_and_a_missing_table_are_refused(tmp_path):
    (tmp_path / "other.yaml").write_text("kind: RayCluster\n")
    with pytest.raises(ConfigError, match="it has no available_node_types"):
        read_cluster(tmp_path / "other.yaml")
    path = write(tmp_path, gpu={"node_config": {"InstanceType": "x.one"}})
    with pytest.raises(ConfigError, match="give one with --prices FILE"):
        read_cluster(path)


def test_all_mistakes_of_a_table_are_said_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text(
        "as_of: 2026-01-31\nassumptions: {training_mfu: 2}\nprocessors: {}\ninstnces: {}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_prices(tmp_path / "bad.yaml")
    text = str(caught.value)
    assert "assumptions.training_mfu" in text
    assert "instnces: unknown key; did you mean instances?" in text
    assert "as_of:" not in text, "a date is a date"


def test_there_may_be_as_many_nodes_as_ray_itself_would_start(make_cluster, tmp_path):
    """`fill_node_type_min_max_workers` of Ray's autoscaler, beside the node that the head is."""
    from ray.autoscaler._private.util import fill_node_type_min_max_workers

    make_cluster()
    kinds = {"head": {}, "own": {"max_workers": 1}, "all": {}, "none": {"max_workers": 0}}
    types = {name: {"node_config": {"InstanceType": "x.one"}, **facts} for name, facts in kinds.items()}
    found = read_cluster(write(tmp_path, **types))
    fill_node_type_min_max_workers({"max_workers": 3, "head_node_type": "head", "available_node_types": types})
    ray = {name: facts["max_workers"] + (name == "head") for name, facts in types.items()}
    assert {node.name: node.most for node in found.nodes} == ray == {"head": 1, "own": 1, "all": 3, "none": 0}
    assert found.limit == 4, "the head and three more"
    types["own"]["max_workers"], types["head"]["max_workers"] = 7, 1
    most = {node.name: node.most for node in read_cluster(write(tmp_path, **types)).nodes}
    assert (most["own"], most["head"]) == (3, 2), "no more than there may be of all kinds together"


def test_without_a_number_of_workers_there_are_two(make_cluster, tmp_path):
    make_cluster()
    [node] = read_cluster(write(tmp_path, None, gpu={"node_config": {"InstanceType": "x.one"}})).nodes
    assert node.most == 2


def test_kinds_without_work_give_way_where_not_all_may_be_there(make_cluster):
    found = make_cluster(6, one=("x.one", 4), four=("x.four", 3), big=("x.big", 2))

    def most(*used):
        return {node.name: node.most for node in found.within_limit(used).workers}

    assert most("one", "four") == {"one": 3, "four": 3}
    assert most("big") == {"one": 2, "four": 2, "big": 2}
    assert make_cluster(one=("x.one", 4)).within_limit({"one"}).workers[0].most == 4
    with pytest.raises(ResourceError, match="work is planned on four and one, but max_workers of test is 1"):
        make_cluster(1, one=("x.one", 1), four=("x.four", 1)).within_limit({"one", "four"})
