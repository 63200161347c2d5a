"""Which worker processes Ray gets as forks."""

import json
import os
import sys
from pathlib import Path

import pytest

from ensemw2s.cluster import fork_request

WORKER = "/ray/workers/default_worker.py"


def context(**values: object) -> str:
    return "--serialized-runtime-env-context=" + json.dumps(values)


def asked(*arguments: str) -> dict[str, object] | None:
    found = fork_request.request([WORKER, *arguments])
    return None if found is None else json.loads(found)


@pytest.mark.parametrize("language", [(), ("--language=PYTHON",)])
def test_a_plain_worker_is_asked_for_with_what_ray_gave(language):
    found = asked("--startup-token=3", *language)
    assert found is not None
    assert found["arguments"] == [WORKER, "--startup-token=3"]
    assert found["folder"] == os.getcwd()
    assert found["environment"]["PATH"] == os.environ["PATH"]


def test_variables_of_a_runtime_environment_are_part_of_the_environment():
    found = asked(context(env_vars={"RAY_TRAIN_V2_ENABLED": "1"}, py_executable=sys.executable), "--language=PYTHON")
    assert found is not None
    assert found["environment"]["RAY_TRAIN_V2_ENABLED"] == "1"
    assert found["arguments"] == [WORKER]


@pytest.mark.parametrize(
    "arguments",
    [
        (context(env_vars={"LD_PRELOAD": "libfoo.so"}),),
        (context(env_vars={"OMP_NUM_THREADS": "2"}),),
        (context(env_vars={"WHERE": "${HOME}/x"}),),
        (context(command_prefix=["conda activate own"]),),
        (context(py_executable="/other/python"),),
        (context(override_worker_entrypoint="/own.py"),),
        ("--language=JAVA",),
    ],
)
def test_what_a_fork_cannot_be_is_not_asked_for(arguments):
    assert asked(*arguments) is None


@pytest.mark.parametrize(
    ("arguments", "then"),
    [
        ([WORKER, "--startup-token=3"], [WORKER, "--startup-token=3"]),
        (
            [WORKER, context(), "--language=PYTHON"],
            ["/ray/workers/setup_worker.py", WORKER, context(), "--language=PYTHON"],
        ),
    ],
)
def test_without_a_server_the_process_starts_as_ray_does_it(monkeypatch, tmp_path, arguments, then):
    ran = []
    monkeypatch.setattr(fork_request, "__file__", str(tmp_path / "fork_request.py"))
    monkeypatch.setattr(os, "execv", lambda program, line: ran.append((program, line)))
    fork_request.main(arguments)
    assert ran == [(sys.executable, [sys.executable, *then])]


def test_it_runs_without_the_package():
    text = Path(fork_request.__file__).read_text(encoding="utf-8")
    assert "import ensemw2s" not in text
    assert "from ensemw2s" not in text
