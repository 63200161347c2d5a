"""`ensemw2s serve` and `ensemw2s ask`: options come in; an endpoint or an answer comes out."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import yaml

from ensemw2s.cluster.connect import cluster_address, connect
from ensemw2s.cluster.resources import Resources
from ensemw2s.config import ClusterConfig
from ensemw2s.config.messages import explain
from ensemw2s.ensemble.manifest import MANIFEST, read_manifest
from ensemw2s.errors import ArtifactError, ConfigError, EnsemW2SError, ModelError, ResourceError
from ensemw2s.labeling.inputs import refuse_run
from ensemw2s.models.info import ADAPTER_CONFIG, check_folder
from ensemw2s.serving.bodies import ModelObject
from ensemw2s.serving.settings import FRONT, HostedSettings, ServeSettings

APP = "ensemw2s"


def check(settings: ServeSettings) -> ServeSettings:
    """Checks what can be checked before Ray starts.

    Returns:
        The same, each model with the version that its folder has now.

    Raises:
        ConfigError: If a folder is no model, or the file of API keys cannot be used.
    """
    from ensemw2s.models.adapters import base_info
    from ensemw2s.serving.app import api_keys

    api_keys(settings.api_keys_file)
    models = []
    for model in settings.models:
        folder = Path(model.path).expanduser()
        if not folder.is_dir() and (model.path.startswith((".", "/", "~")) or model.path.count("/") != 1):
            raise ConfigError(f"model {model.name}: there is no folder {model.path}")
        if not folder.is_dir():
            models.append(model)
            continue
        refuse_run(f"model {model.name}:", folder)
        try:
            if (folder / MANIFEST).exists():
                read_manifest(folder)
            else:
                (base_info if (folder / ADAPTER_CONFIG).exists() else check_folder)(folder)
        except (ArtifactError, ModelError) as error:
            raise ConfigError(f"model {model.name}: {error}") from error
        models.append(model.model_copy(update={"path": str(folder.resolve()), "version": version(folder)}))
    return settings.model_copy(update={"models": models})


def version(folder: Path) -> str:
    """What changes when the content of a model's folder does."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    files_seen = [(str(file.relative_to(folder)), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(files_seen).encode()).hexdigest()[:16]


def serve(
    settings: ServeSettings,
    where: ClusterConfig,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    watch: float | None = None,
    debug: bool = False,
) -> None:
    """Serves until SIGINT or SIGTERM; then takes no more requests and ends those under way.

    Args:
        settings: What, as `check` gave it.
        where: Ray cluster to join, or the size of one that is started here.
        host: Address to listen on.
        port: Port to listen on.
        say: Takes lines for the user.
        watch: Seconds between two looks at the models' folders, whose new content is then served; default: never looks.
        debug: Show the logs of Ray.

    Raises:
        ConfigError: If the port is taken, or the address is open to all; see `_checked_host`.
        ResourceError: If the models do not come up.
    """
    host = _checked_host(settings, host)
    _check_port(host, port)
    stopped = threading.Event()
    with connect(where, forks=False, debug=debug) as resources:
        from ray import serve as ray_serve

        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray, whose own handler writes a trace
            signal.signal(number, lambda *_: stopped.set())
        try:
            _start(settings, resources, host, port, say, alone=True, debug=debug)
            say("Ctrl-C ends it")
            while not stopped.wait(watch):
                settings = _update(settings, say)
            say("stopping: requests under way are answered to their end")
            _drain(settings.limits.request_seconds)
        finally:
            _let_go()
            ray_serve.delete(APP)
            if cluster_address(where) is not None:  # the Ray that was started here takes Serve's controller along
                ray_serve.shutdown()


def deploy(
    settings: ServeSettings,
    where: ClusterConfig,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    debug: bool = False,
) -> None:
    """Brings an endpoint up on a cluster, or updates the one that is there, and leaves it; see `serve`.

    Raises:
        ConfigError: If there is no cluster to leave it to, or the address is open to all; see `_checked_host`.
        ResourceError: If the models do not come up.
    """
    if cluster_address(where) is None:
        raise ConfigError("--detach leaves the endpoint to a cluster: give --address, or set RAY_ADDRESS")
    host = _checked_host(settings, host)
    with connect(where, forks=False, debug=debug) as resources:
        _start(settings, resources, host, port, say, alone=False, debug=debug)
        say("it stays up; `serve shutdown` ends it")


def _start(
    settings: ServeSettings,
    resources: Resources,
    host: str,
    port: int,
    say: Callable[[str], None],
    *,
    alone: bool,
    debug: bool,
) -> None:
    """Starts Serve, if it is not up, and the application.

    Args:
        settings: What.
        resources: What there is.
        host: Address to listen on.
        port: Port to listen on.
        say: Takes lines for the user.
        alone: The front listens by itself; else Serve's proxy does, which keeps requests while a front is replaced.
        debug: Show the logs of Ray.

    Raises:
        ResourceError: If there is no room, or the models do not come up.
    """
    from ray import serve as ray_serve
    from ray.serve.schema import LoggingConfig

    from ensemw2s.serving.app import compose

    _check_room(settings, resources)
    if not debug:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
    log = LoggingConfig(log_level="INFO" if debug else "WARNING", enable_access_log=debug)
    ray_serve.start(
        proxy_location="Disabled" if alone else "HeadOnly",
        http_options={"host": host, "port": port},
        logging_config=log,
    )
    try:
        ray_serve.run(
            compose(settings, (host, port) if alone else None), name=APP, route_prefix="/", logging_config=log
        )
    except RuntimeError as error:
        raise ResourceError(f"the models did not come up: {error}") from error
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    say(f"serving {', '.join(model.name for model in settings.models)} on {url}")
    say(f"page {url}/, API {url}/v1, its description {url}/docs")


def _drain(seconds: float) -> None:
    """Lets the front take no more requests, and waits so long for those under way."""
    from ray import serve as ray_serve

    front = ray_serve.get_deployment_handle(FRONT, APP)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(front.broadcast("drain").results(timeout_s=seconds, return_exceptions=True)):
            return
        time.sleep(0.1)


def _let_go() -> None:
    """Ends the threads that speak to Serve from here: after the end of this Ray they would start one of their own."""
    from ray.serve.context import _get_global_client

    if (client := _get_global_client(raise_if_no_controller_running=False)) is not None:
        client.shutdown_cached_handles()


def _update(settings: ServeSettings, say: Callable[[str], None]) -> ServeSettings:
    """Lets replicas load the models whose folders have changed; a folder that is not whole is left alone.

    Returns:
        The settings with the versions that are served.
    """
    from ray import serve as ray_serve

    from ensemw2s.serving.app import Content

    try:
        found = check(settings)
    except EnsemW2SError as error:
        say(f"not updated: {error}")
        return settings
    for new, old in zip(found.models, settings.models, strict=True):
        if new != old:
            say(f"updating {new.name}")
            handle = ray_serve.get_deployment_handle(new.name, APP)
            config = Content(path=new.path, version=new.version)
            failed = [
                result
                for result in handle.broadcast("reconfigure", config).results(return_exceptions=True)
                if isinstance(result, BaseException)
            ]
            say(f"not updated: {failed[0]}" if failed else f"{new.name} is up to date")
    return found


def _checked_host(settings: ServeSettings, host: str) -> str:
    """The address to listen on, without brackets.

    Raises:
        ConfigError: If others can reach it, and there are no keys.
    """
    from ensemw2s.serving.app import api_keys

    host = host.removeprefix("[").removesuffix("]")
    if settings.insecure or _is_loopback(host) or api_keys(settings.api_keys_file):
        return host
    raise ConfigError(
        f"on {host}, everybody who can reach it could use the endpoint: give --api-keys FILE, or say --insecure"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def _check_room(settings: ServeSettings, resources: Resources) -> None:
    cpus = sum(model.cpus * model.min_replicas for model in settings.models)
    gpus = sum(model.gpus * model.min_replicas for model in settings.models)
    if cpus > resources.cpus or gpus > resources.gpus:
        raise ResourceError(
            f"the replicas take {cpus:g} CPUs and {gpus:g} GPUs, and there are {resources}: lower --cpus or replicas"
        )


def read_settings(file: Path) -> ServeSettings:
    """Settings of an endpoint from YAML.

    Raises:
        ConfigError: If it cannot be read, with all mistakes.
    """
    from pydantic import ValidationError

    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    try:
        return ServeSettings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            f"{file}: " + "; ".join(line for item in error.errors() for line in explain(item, ServeSettings))
        ) from error


def ask(url: str, body: Mapping[str, object], key: str | None, timeout: float = 600.0) -> Iterator[str]:
    """The answer to one message, as it comes.

    Args:
        url: The endpoint, in any form that `root_of` takes.
        body: A chat request.
        key: API key.
        timeout: Seconds without a byte.

    Raises:
        ResourceError: If the endpoint cannot be reached, or refuses.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = root_of(url)
    try:
        with requests.Session() as session:
            session.trust_env = not _is_here(url)  # a proxy of the environment does not reach this machine
            answer = session.post(
                f"{url}/v1/chat/completions",
                json={**body, "stream": True},
                headers=headers,
                stream=True,
                timeout=(10, timeout),
            )
            if not answer.ok:
                raise ResourceError(f"{url} says: {_message(answer)}")
            for line in answer.iter_lines():
                if not line.startswith(b"data: ") or line == b"data: [DONE]":
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                if "error" in chunk:
                    raise ResourceError(f"{url} says: {chunk['error']['message']}")
                for choice in chunk["choices"]:
                    yield choice["delta"].get("content") or ""
    except requests.RequestException as error:
        raise ResourceError(f"no endpoint at {url}: is `ensemw2s serve` running? ({type(error).__name__})") from error


def root_of(url: str) -> str:
    """An endpoint's address with a scheme and without `/v1`, from whatever people write: `host:port`, a base URL."""
    whole = url if "://" in url else f"http://{url}"
    return whole.rstrip("/").removesuffix("/v1").rstrip("/")


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def model_card(url: str, model: str | None, key: str | None) -> ModelObject:
    """What an endpoint says of a model; None: of its first.

    Raises:
        ResourceError: If the endpoint cannot be reached, or has no such model.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url, path = root_of(url), f"/v1/models/{model}" if model else "/v1/models"
    try:
        with requests.Session() as session:
            session.trust_env = not _is_here(url)
            answer = session.get(url + path, headers=headers, timeout=(10, 60))
        if not answer.ok:
            raise ResourceError(f"{url} says: {_message(answer)}")
        found = answer.json()
    except requests.RequestException as error:
        raise ResourceError(f"no endpoint at {url}: is `ensemw2s serve` running? ({type(error).__name__})") from error
    card: ModelObject = found if model else found["data"][0]
    return card


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason}"


def hosted(ensemble: str | None, models: list[str] | None, **options: Any) -> list[HostedSettings]:
    """Models of the command line: `--ensemble DIR` and `--model NAME=DIR`.

    Raises:
        ConfigError: If a name is missing, or an option has a value that it cannot have.
    """
    from pydantic import ValidationError

    named = [("ensemble", ensemble)] if ensemble is not None else []
    for text in models or []:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise ConfigError(f"--model {text}: expected NAME=DIR")
        named.append((name, path))
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return [HostedSettings(name=name, path=path, **given) for name, path in named]
    except ValidationError as error:
        raise ConfigError(f"--model: {error.errors()[0]['msg']}") from error
