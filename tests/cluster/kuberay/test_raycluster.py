"""The manifest of the cluster against KubeRay's schema, and what Ray's own autoscaler makes of it."""

import copy

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

GPU_GROUPS = {"training-spot", "training", "decoding-spot", "decoding"}


@pytest.fixture(scope="module")
def cluster(manifests):
    [made] = manifests("raycluster.yaml")
    return made


@pytest.fixture(scope="module")
def groups(cluster):
    return {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}


@pytest.fixture(scope="module")
def config(cluster):
    """What the autoscaler reads; Ray checks it against the schema of its cluster launcher."""
    return AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(copy.deepcopy(cluster)))


def test_kuberay_takes_it(cluster, problems):
    assert problems(cluster) == []


@pytest.mark.parametrize(
    ("place", "key"),
    [
        (["spec"], "gcsFaultToleranceOption"),
        (["spec", "autoscalerOptions"], "idleTimeoutSecond"),
        (["spec", "headGroupSpec", "template", "spec"], "nodeselector"),
        (["spec", "workerGroupSpecs", 0, "template", "spec", "containers", 0], "livenesProbe"),
    ],
)
def test_a_misspelt_key_is_found(cluster, problems, place, key):
    damaged = copy.deepcopy(cluster)
    inner = damaged
    for step in place:
        inner = inner[step]
    inner[key] = {}
    found = problems(damaged)  # an anchor of YAML can put it into two places
    assert found
    assert all(f"'{key}' was unexpected" in problem for problem in found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"minReplicas": "0"}, "'0' is not of type 'integer'"),
        ({"scaleStrategy": {"workersToDelete": "x"}}, "'x' is not of type 'array'"),
    ],
)
def test_a_value_of_another_type_is_found(cluster, problems, change, message):
    damaged = copy.deepcopy(cluster)
    damaged["spec"]["workerGroupSpecs"][1] |= change
    [found] = problems(damaged)
    assert message in found


def test_the_autoscaler_sees_nodes_for_training_and_for_decoding_and_a_head_for_drivers(config):
    kinds = {name: kind.resources for name, kind in config.get_node_type_configs().items()}
    assert set(kinds) == {"headgroup", *GPU_GROUPS}
    assert kinds["headgroup"]["CPU"] == 0
    assert kinds["headgroup"]["driver"] > 0
    for name in GPU_GROUPS:
        own = name.removesuffix("-spot")
        assert kinds[name] == kinds[own]
        assert kinds[name][own] == 1
        assert kinds[name]["GPU"] > 0
        assert "driver" not in kinds[name]
    assert all(kind.min_worker_nodes == 0 for kind in config.get_node_type_configs().values())


def chosen(config, monitor, own: str) -> set[str]:
    """The groups that Ray's scheduler starts for a worker or an actor of a kind."""
    demand = {"CPU": 1, "GPU": 1, own: 0.001}
    reply = ResourceDemandScheduler(None).schedule(
        SchedulingRequest(
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_nodes(),
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)]),
            cloud_resource_availabilities=monitor.get_resource_availabilities(),
            recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
            disable_launch_config_check=True,
        )
    )
    return {launch.instance_type for launch in reply.to_launch} - {"headgroup"}


@pytest.mark.parametrize("own", ["training", "decoding"])
def test_spot_comes_first_and_on_demand_when_spot_pods_stay_pending(config, own):
    monitor = CloudResourceMonitor()
    assert chosen(config, monitor, own) == {f"{own}-spot"}
    event = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_TIMEOUT, instance_type=f"{own}-spot")
    monitor.notify([event])
    assert chosen(config, monitor, own) == {own}


def test_a_pod_that_stays_pending_is_given_up_before_the_hour_that_is_rays_default(cluster):
    [variable] = cluster["spec"]["autoscalerOptions"]["env"]
    assert variable["name"] == "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S"
    assert 60 <= int(variable["value"]) < 3600


def test_only_spot_groups_tolerate_and_select_spot_nodes(groups):
    for name, group in groups.items():
        pod = group["template"]["spec"]
        spot = {"key": "ensemw2s/capacity", "operator": "Equal", "value": "spot", "effect": "NoSchedule"}
        assert (spot in pod["tolerations"]) == name.endswith("-spot")
        assert (pod["nodeSelector"]["ensemw2s/capacity"] == "spot") == name.endswith("-spot")
        assert pod["nodeSelector"]["ensemw2s/pool"] == name.removesuffix("-spot")
        assert any(t["key"] == "nvidia.com/gpu" for t in pod["tolerations"])
