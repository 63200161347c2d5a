"""The way to a cluster that is running already: an address goes in, and where nobody answers as Ray does, one line.

Ray itself tries for minutes without a word.
"""

from __future__ import annotations

import socket
import sys
import threading
import time

from ensemw2s import env
from ensemw2s.errors import ConfigError

CONNECT_SECONDS = 10.0
"""How long nobody may listen: a cluster that is coming up."""

ANSWER_SECONDS = 15.0
"""How long whoever listens may take to answer as Ray does."""

ADVICE = "start the cluster, or change --address, cluster.address or RAY_ADDRESS; without any, a Ray starts here"


def check(address: str) -> None:
    """Waits for the head of a cluster, and lets this process send the token that it asks for.

    Args:
        address: `host:port` or `auto`; a `ray://` address is left to Ray.

    Raises:
        ConfigError: If there is none.
    """
    if "://" in address:
        return
    from ray._private import services

    try:
        where = services.canonicalize_bootstrap_address(address)
    except (ConnectionError, ValueError, OSError) as error:
        raise ConfigError(f"Ray at {address} cannot be found: {' '.join(str(error).split())}; {ADVICE}") from None
    if where is not None:
        _wait_for_listener(address, where)
        _wait_for_answer(address, where)


def _wait_for_listener(address: str, where: str) -> None:
    host, _, port = where.rpartition(":")
    end, said = time.monotonic() + CONNECT_SECONDS, False
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
                return
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or error
                raise ConfigError(f"no Ray answers at {address} ({reason}): {ADVICE}") from None
        if not said:
            print(f"waiting {CONNECT_SECONDS:g} s for Ray at {address}", file=sys.stderr, flush=True)
            said = True
        time.sleep(0.5)


def _wait_for_answer(address: str, where: str) -> None:
    from ray.exceptions import AuthenticationError

    try:
        _ask(address, where)
    except AuthenticationError:
        if not _send_token():
            raise ConfigError(
                f"Ray at {address} asks for a token: set {env.RAY_AUTH_MODE.name}=token, and {env.RAY_AUTH_TOKEN.name} "
                f"or {env.RAY_AUTH_TOKEN_PATH.name}"
            ) from None
        try:
            _ask(address, where)
        except AuthenticationError:
            raise ConfigError(
                f"Ray at {address} refuses the token: set {env.RAY_AUTH_TOKEN.name} or {env.RAY_AUTH_TOKEN_PATH.name}"
            ) from None


def _ask(address: str, where: str) -> None:
    """Asks the head for anything. In a thread, as Ray's client waits for longer than anybody should."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    failed: list[Exception] = []

    def ask() -> None:
        try:
            GcsClient(address=where).internal_kv_get(b"ensemw2s", None, timeout=ANSWER_SECONDS)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=ask, name="first question to Ray", daemon=True)
    thread.start()
    thread.join(ANSWER_SECONDS)
    if failed:
        from ray.exceptions import AuthenticationError

        if isinstance(failed[0], AuthenticationError) or "auth" in str(failed[0]).lower():
            raise AuthenticationError(str(failed[0])) from None
    if failed or thread.is_alive():
        import ray

        raise ConfigError(
            f"what listens at {address} does not answer as Ray {ray.__version__} does: is it the port of a cluster's "
            f"head, and of the same version? Else {ADVICE}"
        )


def _send_token() -> bool:
    """Lets this process send the token that the environment or the home folder has; whether there is one to send."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    return bool(maybe_enable_token_auth_if_token_available(warn_if_disabled=False))
