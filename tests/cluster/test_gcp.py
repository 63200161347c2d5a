"""cluster/gcp.yaml against Ray's own checks; there is no stand-in for Google Cloud here that could start it."""

import pytest
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

from ensemw2s.cluster.nodes.gcp import SpotFirstGCP
from ensemw2s.cluster.nodes.spot import check
from ensemw2s.errors import ConfigError


@pytest.fixture(scope="module")
def file(committed):
    return committed("gcp.yaml")


def test_ray_takes_the_file_once_it_is_filled_in(usable, home):
    config = prepare_config(usable("gcp.yaml"))
    validate_config(config)
    check(config)
    assert _get_node_provider_cls(config["provider"]) is SpotFirstGCP


def test_what_is_empty_is_refused_before_google_is_asked(usable, file):
    config = usable("gcp.yaml")
    config["provider"] = file["provider"]
    with pytest.raises(ConfigError, match=r"only you know them: provider\.project_id$"):
        SpotFirstGCP.bootstrap_config(prepare_config(config))


def test_both_clouds_have_the_same_kinds_of_nodes_started_the_same_way(file, committed):
    aws = committed("aws.yaml")
    for key in ("docker", "file_mounts", "head_start_ray_commands", "worker_start_ray_commands", "max_workers"):
        assert file[key] == aws[key]
    for name, kind in aws["available_node_types"].items():
        other = file["available_node_types"][name]
        assert {key: other[key] for key in other if key != "node_config"} == {
            key: kind[key] for key in kind if key != "node_config"
        }


def test_a_gpu_machine_has_the_cores_of_its_name(file):
    for kind in file["available_node_types"].values():
        if kind["resources"].get("GPU"):
            assert kind["node_config"]["machineType"].endswith(f"-{kind['resources']['CPU']}")


def test_workers_are_spot_instances_and_the_head_is_not(file):
    for name, kind in file["available_node_types"].items():
        spot = kind["node_config"] != SpotFirstGCP.on_demand(kind["node_config"])
        assert spot == (name != "head")
