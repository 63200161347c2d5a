"""A Ray that is started here shares no folder, no token and no process group with others."""

import os
import subprocess
import tempfile
from contextlib import suppress

import pytest

from ensemw2s.cluster import own
from ensemw2s.errors import ConfigError


def test_the_folder_is_of_this_user_and_has_a_short_path(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert own.temporary_folder() == f"/tmp/ensemw2s-ray-{os.getuid()}"
    long = tmp_path / ("long" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert own.temporary_folder() == f"/tmp/ensemw2s-ray-{os.getuid()}", "sockets have short paths"


def test_whoever_chooses_a_folder_gets_it_or_a_line_that_names_the_choice(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert own.temporary_folder() is None, "Ray reads the variable itself"
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot be written: set RAY_TMPDIR to another"):
        own.temporary_folder()


def test_the_token_is_for_the_block_alone_and_touches_no_home(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tokens = []
    for _ in range(2):
        with own.own_token():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        assert not {"RAY_AUTH_TOKEN", "RAY_AUTH_MODE"} & os.environ.keys()
    assert len(set(tokens)) == 2
    assert all(len(token) == 64 for token in tokens)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [("RAY_AUTH_TOKEN", "mine"), ("RAY_AUTH_TOKEN_PATH", "file"), ("RAY_AUTH_MODE", "disabled")]
)
def test_what_the_environment_says_of_tokens_stands(monkeypatch, name, value):
    for other in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with own.own_token():
        assert dict(os.environ) == before


def test_processes_of_ray_lead_sessions_of_their_own():
    from ray._private import services

    usual = services.ConsolePopen
    with own.own_session(), services.ConsolePopen(["sleep", "60"]) as process:
        assert os.getsid(process.pid) == process.pid != os.getsid(0)
        process.kill()
    assert services.ConsolePopen is usual
    with subprocess.Popen(["sleep", "60"]) as process:
        assert os.getsid(process.pid) == os.getsid(0)
        process.kill()


@pytest.mark.parametrize("chosen", [None, "debug"])
def test_a_quiet_core_leaves_the_logs_of_rays_processes_as_the_user_has_them(monkeypatch, chosen):
    from ray._private import services

    name = own.env.RAY_LOG_LEVEL.name
    monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv(name, chosen)
    with own.own_session(), own.quiet_core():
        assert os.environ[name] == (chosen or "fatal")
        shell = ["sh", "-c", f"echo ${name}"]
        for environment in (None, dict(os.environ)):
            with services.ConsolePopen(shell, env=environment, stdout=subprocess.PIPE) as process:
                assert process.stdout.read().decode().strip() == (chosen or "")
    assert os.environ.get(name) == chosen


def test_a_quiet_core_says_all_but_the_level_that_was_chosen_for_it(capfd):
    with own.quiet_core():
        os.write(2, b"I 7 7] Set ray log level from environment variable RAY_BACKEND_LOG_LEVEL to 3\nanother line\n")
    os.write(2, b"later\n")
    assert capfd.readouterr().err == "another line\nlater\n"
    with suppress(RuntimeError), own.quiet_core():
        os.write(2, b"the reason\n")
        raise RuntimeError
    assert capfd.readouterr().err == "the reason\n"
