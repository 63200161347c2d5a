"""cluster/aws.yaml against Ray's checks; what `ray up` and the autoscaler do with it, against a stand-in for AWS."""

import copy
import json
import threading
import time
from collections import Counter
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws
from moto.iam.access_control import IAMPolicy, PermissionResult
from ray.autoscaler._private.commands import _bootstrap_config
from ray.autoscaler._private.providers import _get_node_provider
from ray.autoscaler._private.util import prepare_config
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

from ensemw2s.cluster.nodes.aws import SpotFirstAWS
from ensemw2s.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "cluster"
pytestmark = pytest.mark.slow


BUCKET = "mine"


@pytest.fixture(scope="module")
def file(committed):
    return committed("aws.yaml")


@pytest.fixture(scope="module")
def aws():
    """A stand-in for AWS in this process: an account that has the two profiles, as cluster/README.md says."""
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        patch.delenv("AWS_PROFILE", raising=False)
        iam = boto3.client("iam")
        for profile in ("ensemw2s-head", "ensemw2s-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        yield boto3.client("ec2", region_name="us-west-2")


@pytest.fixture(scope="module")
def up(aws, usable, home):
    """What `ray up` makes of the file before it starts the head."""
    return _bootstrap_config(usable("aws.yaml"), no_config_cache=True)


def workers(config):
    return {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}


def test_ray_up_finds_all_that_it_needs(up, aws, file):
    kinds = up["available_node_types"]
    assert set(kinds) == {"head", "training", "decoding"}
    subnets = {subnet["SubnetId"]: subnet["AvailabilityZone"] for subnet in aws.describe_subnets()["Subnets"]}
    for name, kind in kinds.items():
        node = kind["node_config"]
        zones = [subnets[subnet] for subnet in node["SubnetIds"]]
        assert ",".join(zones) == file["provider"]["availability_zone"]
        assert node["KeyName"] in {pair["KeyName"] for pair in aws.describe_key_pairs()["KeyPairs"]}
        assert node["SecurityGroupIds"] == kinds["head"]["node_config"]["SecurityGroupIds"]
        assert node["IamInstanceProfile"] == file["available_node_types"][name]["node_config"]["IamInstanceProfile"]
    assert "IamInstanceProfile" not in up["head_node"], "Ray's own profile may do everything with every bucket"


def test_what_a_kind_of_node_is_said_to_have_is_what_aws_gives(aws, file):
    for kind in workers(file).values():
        [facts] = aws.describe_instance_types(InstanceTypes=[kind["node_config"]["InstanceType"]])["InstanceTypes"]
        assert kind["resources"]["CPU"] == facts["VCpuInfo"]["DefaultVCpus"]
        assert kind["resources"]["GPU"] == sum(gpu["Count"] for gpu in facts["GpuInfo"]["Gpus"])
        assert "spot" in facts["SupportedUsageClasses"]


def test_ray_refuses_the_file_as_long_as_no_image_is_named(file):
    with pytest.raises(AssertionError, match="Must provide a container & image name"):
        prepare_config(file)


def test_what_else_is_empty_is_refused_before_anything_is_made(usable, file):
    config = usable("aws.yaml")
    config["available_node_types"]["head"]["node_config"]["ImageId"] = None
    with pytest.raises(ConfigError, match=r"only you know them: head\.node_config\.ImageId$"):
        SpotFirstAWS.bootstrap_config(prepare_config(config))


class Cloud:
    """The provider of a cluster that is up, in a cloud that can run out of instances."""

    def __init__(self, config, ec2) -> None:
        self.config, self.ec2 = config, ec2
        self.spot, self.on_demand, self._counting = 100, 100, threading.Lock()
        self.provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
        self._events = self.provider.ec2_fail_fast.meta.client.meta.events
        self._events.register("before-parameter-build.ec2.RunInstances", self._sell, unique_id="stock")

    def _sell(self, params, **_) -> None:
        market = "spot" if "InstanceMarketOptions" in params else "on_demand"
        with self._counting:
            if getattr(self, market) == 0:
                said = {"Code": "InsufficientInstanceCapacity", "Message": f"no {market} capacity"}
                raise ClientError({"Error": said}, "RunInstances")
            setattr(self, market, getattr(self, market) - 1)

    def close(self) -> None:
        self._events.unregister("before-parameter-build.ec2.RunInstances", unique_id="stock")
        ids = self.provider.non_terminated_nodes({})
        if ids:
            self.provider.terminate_nodes(ids)

    def launch(self, kind: str, count: int) -> None:
        """As the autoscaler asks for it."""
        node = copy.deepcopy(self.config["available_node_types"][kind])
        self.provider.create_node_with_resources_and_labels(
            node["node_config"], {"ray-node-type": "worker", "ray-user-node-type": kind}, count, node["resources"], {}
        )

    def markets(self, kind: str) -> list[str]:
        """How each running instance of a kind was bought."""
        ids = self.provider.non_terminated_nodes({"ray-user-node-type": kind})
        found = self.ec2.describe_instances(InstanceIds=ids)["Reservations"] if ids else []
        bought = [instance.get("InstanceLifecycle", "on-demand") for r in found for instance in r["Instances"]]
        return sorted(bought, reverse=True)


@pytest.fixture
def cloud(up, aws):
    made = Cloud(up, aws)
    yield made
    made.close()


def test_workers_are_spot_instances(cloud):
    cloud.launch("training", 2)
    cloud.launch("decoding", 1)
    assert cloud.markets("training") == ["spot", "spot"]
    assert cloud.markets("decoding") == ["spot"]


def test_where_spot_runs_out_the_rest_is_on_demand_and_of_the_same_kind(cloud):
    cloud.spot = 1
    cloud.launch("training", 3)
    assert cloud.markets("training") == ["spot", "on-demand", "on-demand"]
    cloud.spot = 1
    cloud.launch("training", 1)
    assert cloud.markets("training") == ["spot", "spot", "on-demand", "on-demand"]


def test_the_autoscaler_on_the_head_gets_what_it_asked_for(cloud, tmp_path):
    """By the file and the classes that `ray up` leaves it with: version 2, which is what it starts."""
    file = tmp_path / "ray_bootstrap_config.yaml"
    file.write_text(json.dumps({key: value for key, value in cloud.config.items() if key != "head_node"}))
    adapter = NodeProviderAdapter(cloud.provider, FileConfigReader(str(file)))
    cloud.spot = 1
    adapter.launch({"training": 2, "decoding": 1}, "request")
    until = time.monotonic() + 30
    while len(adapter.get_non_terminated()) < 3:
        assert time.monotonic() < until, adapter.poll_errors()
        time.sleep(0.05)
    assert Counter(node.node_type for node in adapter.get_non_terminated().values()) == {"training": 2, "decoding": 1}
    assert sorted(cloud.markets("training") + cloud.markets("decoding")) == ["on-demand", "on-demand", "spot"]
    assert adapter.poll_errors() == []


def test_where_there_is_neither_the_autoscaler_hears_of_it(cloud):
    cloud.spot = cloud.on_demand = 0
    with pytest.raises(NodeLaunchException, match="no on_demand capacity"):
        cloud.launch("decoding", 1)
    assert cloud.markets("decoding") == []


def test_rays_autoscaler_itself_learns_nothing_from_a_launch_that_was_refused():
    """Which is why cluster/aws.yaml has a provider of its own; nodes that came and never joined do count."""
    monitor = CloudResourceMonitor()
    refused = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_FAILED, instance_type="spot")
    silent = InstanceUpdateEvent(new_instance_status=Instance.ALLOCATION_TIMEOUT, instance_type="spot")
    monitor.notify([refused])
    assert monitor.get_recoverable_resource_availabilities() == {}
    monitor.notify([silent])
    assert monitor.get_recoverable_resource_availabilities() == {"spot": 0.0}


def test_only_the_head_has_room_for_drivers_and_only_workers_are_spot(file):
    head = file["available_node_types"]["head"]
    assert head["resources"]["driver"] > 0
    assert head["resources"]["CPU"] == 0
    assert "InstanceMarketOptions" not in head["node_config"]
    for name, kind in workers(file).items():
        assert "driver" not in kind["resources"]
        assert kind["resources"][name] == 1
        assert kind["min_workers"] == 0
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def permits(policy: str, action: str, resource: str) -> bool:
    document = (FOLDER / policy).read_text().replace("YOUR-BUCKET", BUCKET)
    return IAMPolicy(document).is_action_permitted(action, resource) == PermissionResult.PERMITTED


@pytest.mark.parametrize("action", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"])
def test_a_worker_may_use_the_bucket_and_no_other(action):
    assert permits("aws-policy.json", action, "arn:aws:s3:::mine/runs/quickstart/results.json")
    assert not permits("aws-policy.json", action, "arn:aws:s3:::theirs/runs/quickstart/results.json")
    assert not permits("aws-policy.json", action, "arn:aws:s3:::mine-too/x")


def test_a_worker_may_list_the_bucket_and_start_nothing():
    assert permits("aws-policy.json", "s3:ListBucket", "arn:aws:s3:::mine")
    assert not permits("aws-policy.json", "s3:DeleteBucket", "arn:aws:s3:::mine")
    assert not permits("aws-policy.json", "s3:ListBucket", "arn:aws:s3:::theirs")
    assert not permits("aws-policy.json", "ec2:RunInstances", "*")


def test_the_head_gives_workers_their_profile_and_no_other():
    assert permits("aws-head-policy.json", "ec2:RunInstances", "arn:aws:ec2:us-west-2:123456789012:instance/*")
    assert permits("aws-head-policy.json", "iam:PassRole", "arn:aws:iam::123456789012:role/ensemw2s-worker")
    assert not permits("aws-head-policy.json", "iam:PassRole", "arn:aws:iam::123456789012:role/admin")
    assert not permits("aws-head-policy.json", "iam:CreateRole", "*")


def test_iam_takes_the_policies(aws):
    iam = boto3.client("iam", region_name="us-west-2")
    for path in FOLDER.glob("aws-*policy.json"):
        iam.create_policy(PolicyName=path.stem, PolicyDocument=path.read_text().replace("YOUR-BUCKET", BUCKET))
    assert len(iam.list_policies(Scope="Local")["Policies"]) == 2


def test_the_dashboard_stays_on_the_head_and_nobody_gets_in_without_the_token(file):
    [start] = [command for command in file["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--env RAY_AUTH_MODE=token" in file["docker"]["run_options"]
    assert file["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
