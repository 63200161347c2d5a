"""The manifest of the endpoint: KubeRay takes it, Serve takes its config, and it hosts what cluster/serve.yaml does."""

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from ensemw2s import env
from ensemw2s.serving.settings import ServeSettings


@pytest.fixture(scope="module")
def service(manifests):
    [made] = manifests("rayservice.yaml")
    return made


@pytest.fixture(scope="module")
def endpoint(service):
    return yaml.safe_load(service["spec"]["serveConfigV2"])


def test_kuberay_takes_it(service, problems):
    assert problems(service) == []


def test_serve_takes_its_config_and_the_app_its_arguments(endpoint, committed):
    ServeDeploySchema.model_validate(endpoint)
    [app], [reference] = endpoint["applications"], committed("serve.yaml")["applications"]
    for key in ("name", "import_path", "route_prefix"):
        assert app[key] == reference[key]
    ours, theirs = (ServeSettings.model_validate(a["args"]) for a in (app, reference))
    assert [model.path for model in ours.models] == [model.path for model in theirs.models]


def test_a_replica_finds_room_on_a_worker_and_a_stream_its_end(service, endpoint):
    settings = ServeSettings.model_validate(endpoint["applications"][0]["args"])
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    [model] = settings.models
    assert model.cpus <= int(limits["cpu"])
    assert model.gpus <= int(limits["nvidia.com/gpu"])
    assert model.min_replicas <= group["minReplicas"]
    assert model.max_replicas <= group["maxReplicas"]
    assert pod["terminationGracePeriodSeconds"] > settings.limits.request_seconds


def test_requests_go_to_workers_whose_proxy_answers(service):
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    [container] = group["template"]["spec"]["containers"]
    assert "http://localhost:8000/-/healthz" in container["readinessProbe"]["exec"]["command"][-1]


def test_keys_of_clients_come_from_a_secret_wherever_a_front_may_be(service):
    spec = service["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        [variable] = group["template"]["spec"]["containers"][0]["env"]
        assert variable["name"] == env.API_KEYS.name
        assert variable["valueFrom"]["secretKeyRef"]["optional"], "an endpoint without keys is a choice"
