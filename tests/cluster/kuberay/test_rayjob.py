"""The manifest of a run: KubeRay takes it, and the run takes its config and plans for the groups of the cluster."""

import json
import shlex
from collections import Counter
from pathlib import Path

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from ensemw2s.cluster.resources import Node, plan_resources, with_autoscaling
from ensemw2s.config import load_config

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def job(manifests):
    [made] = manifests("rayjob.yaml")
    return made


@pytest.fixture(scope="module")
def loaded(job):
    """The config of the run, as its entrypoint says."""
    python, script, *words = shlex.split(job["spec"]["entrypoint"])
    assert (python, (ROOT / script.removeprefix("/app/")).is_file()) == ("python", True)
    options = list(zip(words[::2], words[1::2], strict=True))
    [config] = [value for name, value in options if name == "--config"]
    return load_config(config, [value for name, value in options if name == "--set"])


@pytest.fixture(scope="module")
def kinds(manifests):
    [cluster] = manifests("raycluster.yaml")
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


def test_kuberay_takes_it(job, problems):
    assert problems(job) == []


def test_it_runs_on_the_cluster_that_is_there_with_the_driver_on_its_head(job, loaded, manifests, kinds):
    [cluster] = manifests("raycluster.yaml")
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    [(resource, amount)] = json.loads(job["spec"]["entrypointResources"]).items()
    assert [name for name, kind in kinds.items() if kind["resources"].get(resource, 0) >= amount] == ["headgroup"]
    assert loaded.cluster.driver_resource == resource


def test_what_may_come_is_what_one_market_of_each_kind_has(loaded, kinds):
    """Either the spot group or the on-demand group of a kind: to count both would be to plan for twice the nodes."""
    groups = [
        (resource, kinds[resource]) for resource in (loaded.training.node_resource, loaded.labeling.node_resource)
    ]
    assert all(resource in group["resources"] for resource, group in groups)
    said = Counter((kind.cpus, kind.gpus, kind.nodes, *kind.resources) for kind in loaded.cluster.autoscales_to)
    assert said == Counter(
        (g["resources"]["CPU"], g["resources"]["GPU"], g["max_workers"], resource) for resource, g in groups
    )


def test_the_plan_is_one_for_which_each_kind_of_node_has_room(loaded, kinds):
    plan = plan_resources(loaded, with_autoscaling([Node(0.0, 0.0)], loaded.cluster.autoscales_to))
    training, decoding = kinds[loaded.training.node_resource], kinds[loaded.labeling.node_resource]
    workers = plan.lanes * loaded.training.workers.max
    assert workers * loaded.training.gpus_per_worker <= training["max_workers"] * training["resources"]["GPU"]
    assert plan.actors * loaded.labeling.gpus_per_actor <= decoding["max_workers"] * decoding["resources"]["GPU"]
    assert (plan.lanes, plan.actors, plan.keep_lanes) == (16, 8, True), "all GPUs of either kind"
