"""Which Ray a command joins, and what a Ray job may write."""

import pytest

from ensemw2s.cluster.connect import check_lasting, cluster_address
from ensemw2s.config import ClusterConfig
from ensemw2s.errors import ConfigError


def test_the_config_says_where_ray_is_before_the_environment_does(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cluster_address(ClusterConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "ray-head:6379")
    assert cluster_address(ClusterConfig()) == "ray-head:6379"
    assert cluster_address(ClusterConfig(address="auto")) == "auto"


def test_a_job_writes_where_its_folder_does_not_take_it_away(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    check_lasting("runs", "storage")
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check_lasting(tmp_path, "storage")
    check_lasting("~/runs", "storage")
    check_lasting("s3://bucket/runs", "storage")
    with pytest.raises(ConfigError, match="storage runs is relative"):
        check_lasting("runs", "storage")
