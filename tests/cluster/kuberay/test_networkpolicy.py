"""What holds for all manifests: no rights, a token, probes, images by digest, and policies for every pod."""

import re
from pathlib import Path

import pytest

FILES = ["raycluster.yaml", "rayjob.yaml", "rayservice.yaml", "redis.yaml"]
PLACEHOLDER = re.compile(r"(REPOSITORY@sha256:DIGEST|redis@sha256:REDIS-DIGEST)")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")


def pods(value):
    """Every pod template in a tree."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield value
        for below in value.values():
            yield from pods(below)
    elif isinstance(value, list):
        for below in value:
            yield from pods(below)


def clusters(manifests):
    [cluster], [service] = manifests("raycluster.yaml"), manifests("rayservice.yaml")
    return [cluster["spec"], service["spec"]["rayClusterConfig"]]


@pytest.fixture(scope="module")
def templates(manifests):
    found = [pod for name in FILES for document in manifests(name) for pod in pods(document)]
    assert len(found) == 5 + 1 + 2 + 1  # cluster, submitter, endpoint, Redis
    return found


@pytest.fixture(scope="module")
def policies(manifests):
    return {
        document["spec"]["podSelector"]["matchLabels"]["app"]: document for document in manifests("networkpolicy.yaml")
    }


def test_nothing_runs_as_root_or_gains_rights(templates):
    for pod in templates:
        user = pod["spec"]["securityContext"]
        assert user["runAsNonRoot"]
        assert user["runAsUser"] > 0
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_every_container_has_bounds_and_an_image_by_its_digest(templates):
    for pod in templates:
        for container in pod["spec"]["containers"]:
            assert PLACEHOLDER.fullmatch(container["image"]) or DIGEST.fullmatch(container["image"])
            assert set(container["resources"]) == {"requests", "limits"}
            assert container["resources"]["limits"]["memory"]


def test_the_page_has_the_line_that_fills_in_the_image():
    page = (Path(__file__).parents[3] / "docs/cluster.md").read_text(encoding="utf-8")
    assert "sed -i 's|REPOSITORY@sha256:DIGEST|" in page
    assert "redis@sha256:REDIS-DIGEST" in page


def test_what_lasts_is_watched_by_probes(templates):
    for pod in templates:
        for container in pod["spec"]["containers"]:
            assert container["name"] == "submitter" or {"livenessProbe", "readinessProbe"} <= set(container)


def test_no_cluster_is_without_a_token_an_autoscaler_and_a_memory(manifests):
    for spec in clusters(manifests):
        assert spec["authOptions"] == {"mode": "token", "secretName": "ensemw2s-token"}
        assert spec["enableInTreeAutoscaling"]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["key"] == "password"
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_pod_is_under_a_policy_that_lets_in_what_it_names_alone(templates, policies):
    assert {pod["metadata"]["labels"]["app"] for pod in templates} == set(policies)
    for policy in policies.values():
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        for rule in policy["spec"]["ingress"]:
            assert rule["from"], "an empty rule lets in everybody"


@pytest.mark.parametrize("way", ["ingress", "egress"])
def test_rules_are_as_kubernetes_has_them(policies, problems, way):
    """KubeRay's schema of a cluster has Kubernetes' own of such rules in it."""
    place = ("RayCluster", "spec", "networkPolicy", "head", f"{way}Rules", "items")
    for policy in policies.values():
        for rule in policy["spec"][way]:
            assert problems(rule, *place) == []
    assert problems({"port": []}, *place)


def test_pods_that_kuberay_does_not_make_are_as_kubernetes_has_them(manifests, problems):
    place = ("RayCluster", "spec", "headGroupSpec", "template")
    [pod] = [pod for document in manifests("redis.yaml") for pod in pods(document)]
    assert problems(pod, *place) == []
    pod["spec"]["containers"][0]["volumeMount"] = []
    assert problems(pod, *place)


def test_redis_is_for_the_clusters_alone_at_the_address_that_they_have(manifests, policies):
    redis = policies["ensemw2s-redis"]["spec"]
    assert redis["ingress"][0]["from"] == [{"podSelector": {"matchLabels": {"app": "ensemw2s"}}}]
    assert redis["egress"] == []
    service = next(document for document in manifests("redis.yaml") if document["kind"] == "Service")
    for spec in clusters(manifests):
        host, port = spec["gcsFaultToleranceOptions"]["redisAddress"].split(":")
        assert (host, int(port)) == (service["metadata"]["name"], service["spec"]["ports"][0]["port"])


def test_prometheus_and_clients_reach_the_ports_that_are_there(templates, policies):
    ports = {p["containerPort"] for pod in templates for c in pod["spec"]["containers"] for p in c.get("ports", [])}
    named = {p["port"] for rule in policies["ensemw2s"]["spec"]["ingress"] for p in rule.get("ports", [])}
    assert named <= ports
