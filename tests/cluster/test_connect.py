"""Which Ray a command joins, and what a Ray job may write."""

import subprocess

import psutil
import pytest

from ensemw2s import env
from ensemw2s.cluster import connect
from ensemw2s.cluster.connect import TOO_SLOW, _patiently, check_lasting, cluster_address
from ensemw2s.config import ClusterConfig
from ensemw2s.errors import ConfigError, ResourceError


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


def test_a_node_that_starts_too_slowly_is_started_again_without_what_is_left_of_it():
    started = []

    def start() -> None:
        if len(started) == 2:
            return
        started.append(subprocess.Popen(["sleep", "600"]))
        raise Exception(f"The current node {TOO_SLOW}. This could happen")

    before = subprocess.Popen(["sleep", "600"])
    try:
        _patiently(start)
        assert before.poll() is None, "what was there before stays"
    finally:
        before.kill()
        before.wait()
    assert len(started) == 2
    assert not any(psutil.pid_exists(process.pid) for process in started)


def test_a_machine_that_is_too_busy_for_ray_is_said_in_words():
    def start() -> None:
        raise Exception(f"The current node {TOO_SLOW}.")

    with pytest.raises(ResourceError, match="did not start in 2 tries of 30 seconds: this machine is too busy"):
        _patiently(start, 2)


def test_other_faults_of_a_start_are_not_tried_again():
    tries = []

    def start() -> None:
        tries.append(1)
        raise RuntimeError("no such version")

    with pytest.raises(RuntimeError, match="no such version"):
        _patiently(start)
    assert len(tries) == 1


@pytest.mark.parametrize(("debug", "level"), [(False, "fatal"), (True, None)])
def test_notes_of_rays_core_are_shown_with_debug_alone(monkeypatch, debug, level):
    seen = []
    monkeypatch.delenv(env.RAY_LOG_LEVEL.name, raising=False)
    monkeypatch.setattr("ray.init", lambda **_: seen.append(env.RAY_LOG_LEVEL.get()))
    connect._start(ClusterConfig(), "somewhere:6379", debug)
    connect._start(ClusterConfig(), None, debug)
    assert seen == [level, level]
    assert env.RAY_LOG_LEVEL.get() is None, "the next Ray of this process may be another one"
