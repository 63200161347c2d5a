"""The endpoint on Ray Serve: settings come in, an application of one front and a deployment for each model goes out.

A request goes to a replica of the front, which speaks HTTP, and from there to a replica of the model, which has the
engine. Scaling, queues and replicas that die are Serve's; pieces of answers go from one to the other past it (`link`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import ray
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from ensemw2s import env
from ensemw2s.errors import ConfigError
from ensemw2s.serving.api import Gate, make_api
from ensemw2s.serving.exchange import LOST, Job, ModelCard, Piece, Prompt, PromptPart, Refused
from ensemw2s.serving.link import Inbox, Outbox, ReplyTo
from ensemw2s.serving.listener import listening
from ensemw2s.serving.models import Models
from ensemw2s.serving.settings import FRONT, HostedSettings, Limits, ServeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ensemw2s.ensemble.engine import Engine
    from ensemw2s.serving.hosted import HostedModel


ONE_LOOP = {
    "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
}
"""Serve's loop, the code here and the handles in one thread of a replica: nothing here blocks, and threads that wake
each other for every request take turns with the engine's.
"""

logger = logging.getLogger("ray.serve")


class Content(TypedDict):
    """What Serve may change of a model while it is up: its folder, and the version of what is in it."""

    path: str
    version: str


class ModelReplica:
    """Holds a model. `reconfigure` replaces it; answers under way are finished by the old one."""

    def __init__(
        self, settings: Mapping[str, object], limits: Mapping[str, object], log_prompts: bool, interval: float
    ) -> None:
        from ensemw2s.serving.metrics import ReplicaMetrics

        self._settings, self._limits = HostedSettings.model_validate(settings), Limits.model_validate(limits)
        self._log, self._interval = log_prompts, interval
        self._model: HostedModel | None = None
        self._metrics = ReplicaMetrics()
        self._outboxes: tuple[Outbox, ...] = ()
        self._connecting = asyncio.Lock()

    async def reconfigure(self, config: Content) -> None:
        """Loads the content that is to be hosted, beside the one that is."""
        from ensemw2s.serving import hosted

        settings = HostedSettings.model_validate({**self._settings.model_dump(), **config})
        model = await asyncio.to_thread(hosted.HostedModel, settings, self._limits, self._after_step)
        old, self._model = self._model, model
        if old is not None:
            old.close()

    async def card(self) -> ModelCard:
        """What the endpoint says of the model."""
        return self._held().card

    async def metrics(self) -> tuple[dict[str, str], str]:
        """Labels and figures."""
        context = serve.get_replica_context()
        labels = {"model": context.deployment, "replica": context.replica_tag}
        return labels, self._metrics.text(self._held().loop.engine)

    async def encoded(self, prompt: Prompt, special: bool) -> PromptPart | Refused:
        """A prompt as text and as token ids."""
        return await self._held().encoded(prompt, special=special)

    async def answer(self, job: Job, reply: ReplyTo) -> Refused | None:
        """Answers a job; the pieces go the way of `reply`. The slot is free again when the caller goes away."""
        if self._log:
            logger.warning("prompt %r", job.prompt)  # the level that replicas log at
        watch = self._metrics.watch()
        outbox = await self._outbox(reply)

        def put(piece: Piece) -> None:
            watch.piece(piece.count, piece.finish)
            outbox.put(reply.number, piece)

        try:
            with outbox.used():
                refused = await self._held().answer(job, put, self._interval)
        except asyncio.CancelledError:
            if not outbox.lost:
                raise
            return Refused("the connection to the front was lost", LOST)
        except Exception:
            watch.outcome = "error"
            raise
        else:
            if refused is not None:
                watch.outcome = "refused"
            return refused
        finally:
            watch.end()

    def _held(self) -> HostedModel:
        assert self._model is not None, "Serve calls reconfigure before it sends requests"
        return self._model

    def _after_step(self, engine: Engine) -> None:
        self._metrics.after_step(engine)
        for outbox in self._outboxes:
            outbox.flush()

    async def _outbox(self, reply: ReplyTo) -> Outbox:
        """The connection to a front."""
        async with self._connecting:
            for outbox in self._outboxes:
                if outbox.front == reply.front and not outbox.lost:
                    return outbox
            outbox = await Outbox.connect(reply.front)
            self._outboxes = (*(one for one in self._outboxes if not one.lost), outbox)
            return outbox

    def check_health(self) -> None:
        """Raises when the engine is not to be trusted any more; Serve then starts another replica."""
        if self._model is not None and self._model.loop.failure is not None:
            raise RuntimeError(f"decoding failed: {self._model.loop.failure}")


class Front:
    """Speaks HTTP: to Serve's proxy, or by itself where it is told to listen."""

    def __init__(
        self, settings: Mapping[str, object], listen: tuple[str, int] | None, *handles: DeploymentHandle
    ) -> None:
        self._settings, self._listen = ServeSettings.model_validate(settings), listen
        self._handles = handles
        self._gate = Gate()

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The app of this replica."""
        names = [model.name for model in self._settings.models]
        inbox = Inbox(ray.util.get_node_ip_address())
        models = Models(dict(zip(names, self._handles, strict=True)), self._settings.retries, inbox)
        settings, keys = self._settings, api_keys(self._settings.api_keys_file)
        here = [*settings.hosts, *(self._listen[:1] if self._listen else ())]
        api = make_api(
            models,
            settings.limits,
            keys,
            self._gate,
            hosts=None if keys or settings.insecure else here,
            cors_origins=settings.cors_origins,
            metrics_key=settings.metrics_key,
        )
        if self._listen is not None:
            api.router.lifespan_context = partial(listening, address=self._listen, limits=settings.limits)
        return api

    async def drain(self) -> int:
        """Refuses further requests; returns how many answers are under way."""
        self._gate.draining = True
        return self._gate.open


def api_keys(file: str | None) -> list[str]:
    """The keys of the file and of the environment.

    Raises:
        ConfigError: If there is a file and it cannot be read, or holds no key.
    """
    keys = (env.API_KEYS.get() or "").split(",")
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"the file of API keys {file} cannot be read: {error.strerror}") from error
        keys += [line for line in lines if not line.startswith("#")]
        if not any(line.strip() for line in lines):
            raise ConfigError(f"the file of API keys {file} is empty; expected one key per line")
    return [key.strip() for key in keys if key.strip()]


def build(settings: ServeSettings | dict[str, object]) -> Application:
    """The application as `serve deploy` builds it from `args`: Serve takes builders of one parameter only.

    Raises:
        ValidationError: If the arguments are no settings.
    """
    return compose(settings)


def compose(settings: ServeSettings | dict[str, object], listen: tuple[str, int] | None = None) -> Application:
    """The application, as `ensemw2s serve` runs it.

    Args:
        settings: What.
        listen: Address on this node on which the front listens by itself, without Serve's proxy: each piece of a
            stream has one process less to go through.

    Raises:
        ValidationError: If the arguments are no settings.
    """
    settings = ServeSettings.model_validate(settings)
    limits, patience = settings.limits, settings.limits.request_seconds + 10
    models = [
        _deployment(model, settings, patience).bind(
            model.model_dump(),
            limits.model_dump(),
            settings.log_prompts,
            settings.stream_interval,
        )
        for model in settings.models
    ]
    here = {f"node:{ray.util.get_node_ip_address()}": 0.001} if listen is not None else {}
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name=FRONT,
        max_ongoing_requests=limits.concurrent + 64,  # those over the limit are told so by the front itself
        graceful_shutdown_timeout_s=patience,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 0, "resources": here, "runtime_env": ONE_LOOP},
    )
    return front.bind(settings.model_dump(), listen, *models)


def _deployment(model: HostedSettings, settings: ServeSettings, patience: float) -> Any:
    return serve.deployment(
        ModelReplica,
        name=model.name,
        user_config=Content(path=model.path, version=model.version),
        max_ongoing_requests=2 * model.slots,
        max_queued_requests=settings.limits.queue,
        graceful_shutdown_timeout_s=patience,
        graceful_shutdown_wait_loop_s=0.2,
        autoscaling_config={
            "min_replicas": model.min_replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": model.slots,
            "upscale_delay_s": model.scale_up_after,
            "downscale_delay_s": model.scale_down_after,
        },
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.gpus, "runtime_env": ONE_LOOP},
    )
