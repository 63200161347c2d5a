"""Prometheus is sent where metrics are: Ray's dashboard for the nodes, and the endpoint's own page."""

import re
from urllib.parse import urlsplit

import pytest

pytestmark = pytest.mark.slow  # the import of Ray's dashboard


@pytest.fixture(scope="module")
def jobs(committed):
    return {job["job_name"]: job for job in committed("prometheus.yaml")["scrape_configs"]}


def test_nodes_are_asked_for_where_the_dashboard_is_and_with_a_token(jobs, committed):
    from ray.dashboard.modules.reporter.reporter_head import ReportHead

    [found] = jobs["ray"]["http_sd_configs"]
    url = urlsplit(found["url"])
    assert found["authorization"]["type"] == "Bearer"
    assert url.netloc == "127.0.0.1:8265"
    [start] = [command for command in committed("aws.yaml")["head_start_ray_commands"] if "--head" in command]
    assert "--dashboard-host=127.0.0.1" in start
    assert "--dashboard-port" not in start, "8265 is Ray's default"
    assert url.path in _paths(ReportHead)


def _paths(module) -> set[str]:
    """Paths that a module of Ray's dashboard answers, of its source."""
    import inspect

    return set(re.findall(r"@routes\.get\(\"([^\"]+)\"\)", inspect.getsource(module)))


def test_the_endpoint_is_asked_once_for_all_of_its_replicas(jobs, committed):
    job, options = jobs["ensemw2s"], committed("serve.yaml")["http_options"]
    assert job["static_configs"] == [{"targets": [f"{options['host']}:{options['port']}"]}]
    assert job["metrics_path"] == "/metrics"
