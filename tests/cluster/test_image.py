"""What can be said of cluster/Dockerfile without an engine to build it: its files, its user, its versions."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps():
    """Instructions and their arguments, lines put together."""
    text = (ROOT / "cluster/Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in whole.splitlines() if line.strip()]


def arguments(steps, name):
    return [rest for step, rest in steps if step == name]


def test_every_instruction_is_one_of_docker_s(steps):
    assert {name for name, _ in steps} <= {"ARG", "FROM", "RUN", "ENV", "USER", "WORKDIR", "COPY"}


def test_what_it_copies_is_there_and_what_jobs_need_is_copied(steps):
    copied = [path for rest in arguments(steps, "COPY") for path in shlex.split(rest)[1:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    assert {"constraints.txt", "pyproject.toml", "ensemw2s", "jobs"} <= set(copied)


def test_it_runs_as_a_user_without_rights_whose_home_gets_the_token(steps, committed):
    assert arguments(steps, "USER") == ["1000:1000"]
    assert steps.index(("USER", "1000:1000")) < min(i for i, (name, _) in enumerate(steps) if name == "COPY")
    [environment] = arguments(steps, "ENV")
    home = dict(item.split("=", 1) for item in shlex.split(environment))["HOME"]
    [token] = committed("aws.yaml")["file_mounts"]
    assert token.startswith(f"{home}/.ray/")


def test_versions_are_those_of_the_constraints_and_the_extras_exist(steps):
    [install] = [rest for rest in arguments(steps, "RUN") if "pip install" in rest]
    assert "-c constraints.txt" in install
    assert not re.search(r"[\w-]+==\d", install), "a version has one place"
    extras = set(re.search(r"'\.\[([\w,]+)\]'", install)[1].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])
    assert {"aws", "gcp"} <= extras, "the head starts the workers"


def test_the_base_has_cuda_of_the_constraints_torch(steps):
    """torch 2.13 on PyPI is built for CUDA 13.0, whose compiler DeepSpeed wants where it builds something."""
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(r"^torch==2\.13\.", pins, flags=re.MULTILINE), "another torch may need another CUDA: look"
    assert re.fullmatch(r"CUDA_IMAGE=nvidia/cuda:13\.0\.\d+-devel-ubuntu24\.04", arguments(steps, "ARG")[0])
