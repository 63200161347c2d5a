"""An address at which no Ray answers is refused in a line, soon."""

import socket
import time

import pytest

from ensemw2s.cluster import join
from ensemw2s.errors import ConfigError


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(join, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(join, "ANSWER_SECONDS", 0.2)


def test_nobody_who_listens(capsys, free_port):
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"no Ray answers at {address} \(.*refused\): start the cluster, or change"):
        join.check(address)
    assert capsys.readouterr().err == f"waiting 0.1 s for Ray at {address}\n"


def test_somebody_else_who_listens():
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ConfigError, match=rf"what listens at {address} does not answer as Ray"):
            join.check(address)
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("there", [True, False])
def test_a_token_is_sent_where_the_cluster_asks_for_one_and_there_is_one(monkeypatch, there):
    from ray.exceptions import AuthenticationError

    sent = []

    def ask(*_: str) -> None:
        if not sent:
            raise AuthenticationError("no token")

    def send() -> bool:
        sent.extend([True] * there)
        return there

    monkeypatch.setattr(join, "_ask", ask)
    monkeypatch.setattr(join, "_send_token", send)
    with socket.create_server(("", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if there:
            join.check(address)
            return
        with pytest.raises(ConfigError, match="asks for a token: set RAY_AUTH_MODE=token"):
            join.check(address)


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match="Ray at nonsense cannot be found"):
        join.check("nonsense")
