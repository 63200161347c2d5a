"""The endpoint on Ray Serve: settings come in, an application of one front and a deployment for each model goes out.

A request goes from Serve's proxy to a replica of the front, which speaks HTTP, and from there to a replica of the
model, which has the engine. An answer is a pure function of the request and its seed: when a replica dies, another one
takes over, and the stream goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ensemw2s.errors import ConfigError
from ensemw2s.serving.api import make_api
from ensemw2s.serving.jobs import Facts, Job, Piece, Refused
from ensemw2s.serving.protocol import ApiError
from ensemw2s.serving.settings import HostedSettings, Limits, ServeSettings

KEYS_VARIABLE = "ENSEMW2S_API_KEYS"
FACTS_SECONDS = 2.0
"""How long the front believes what a model said of itself."""

UP_SECONDS = 10.0
"""How long the front waits for a model to say it."""

logger = logging.getLogger("ray.serve")


class ModelReplica:
    """Holds a model. `reconfigure` replaces it; answers under way come from the old one to their end."""

    def __init__(self, settings: dict[str, Any], limits: dict[str, Any], log_prompts: bool, interval: float) -> None:
        from ensemw2s.serving.metrics import ReplicaMetrics

        self._settings, self._limits = HostedSettings.model_validate(settings), Limits.model_validate(limits)
        self._log, self._interval = log_prompts, interval
        self._model: Any = None
        self._metrics = ReplicaMetrics()

    async def reconfigure(self, config: dict[str, Any]) -> None:
        """Loads what is to be hosted, beside what is hosted now."""
        from ensemw2s.serving.hosted import HostedModel

        settings = HostedSettings.model_validate({**self._settings.model_dump(), **config})
        model = await asyncio.to_thread(HostedModel, settings, self._limits, self._metrics.after_step)
        old, self._model = self._model, model
        if old is not None:
            old.close()

    async def facts(self) -> Facts:
        """What the model is."""
        return self._model.facts

    async def metrics(self) -> tuple[dict[str, str], str]:
        """Labels and figures."""
        context = serve.get_replica_context()
        return {"model": context.deployment, "replica": context.replica_tag}, self._metrics.text(
            self._model.loop.engine
        )

    async def answer(self, job: Job) -> AsyncGenerator[Piece | Refused]:
        """Answers a job; the slot is free again when the caller goes away."""
        began = last = time.perf_counter()
        if self._log:
            logger.info("prompt %r", job.prompt)
        outcome, first = "cancelled", True
        try:
            async with aclosing(self._model.answer(job, self._interval)) as pieces:
                async for piece in pieces:
                    now = time.perf_counter()
                    if isinstance(piece, Refused):
                        outcome = "refused"
                    elif first:
                        self._metrics.first.observe(now - began)
                    elif piece.count:
                        self._metrics.between.observe((now - last) / piece.count)
                    first, last = False, now
                    if isinstance(piece, Piece) and piece.finish:
                        outcome = piece.finish
                    yield piece
        except Exception:
            outcome = "error"
            raise
        finally:
            self._metrics.requests.labels(outcome).inc()
            self._metrics.whole.observe(time.perf_counter() - began)

    def check_health(self) -> None:
        """Raises when the engine is not to be trusted any more; Serve then starts another replica."""
        if self._model is not None and self._model.loop.failure is not None:
            raise RuntimeError(f"decoding failed: {self._model.loop.failure}")


class Models:
    """The models as the front sees them: handles of deployments."""

    def __init__(self, handles: dict[str, DeploymentHandle], retries: int) -> None:
        self._handles, self._retries = handles, retries
        self._facts: dict[str, tuple[float, Facts]] = {}

    async def facts(self) -> dict[str, Facts]:
        """See `api.Backend`."""
        found = await asyncio.gather(*(self._facts_of(name) for name in self._handles))
        return dict(zip(self._handles, found, strict=True))

    async def answer(self, model: str, job: Job) -> AsyncGenerator[Piece | Refused]:
        """See `api.Backend`."""
        text, tokens = 0, 0  # what has gone out
        for again in range(self._retries + 1):
            skip = _Skip(text, tokens)
            stream: Any = self._handles[model].options(stream=True).answer.remote(job)
            try:
                async for piece in stream:
                    if isinstance(piece, Piece):
                        piece = skip.of(piece)
                        text, tokens = text + len(piece.text), tokens + piece.count
                    yield piece
                return
            except BackPressureError as error:
                raise ApiError(429, "the model's queue is full", code="overloaded", retry_after=1) from error
            except DeploymentUnavailableError as error:
                raise ApiError(503, f"model {model} is not up", retry_after=5) from error
            except (RayActorError, ReplicaUnavailableError) as error:
                if again == self._retries:
                    raise ApiError(503, f"replicas of model {model} died {again + 1} times", retry_after=5) from error
            finally:
                stream.cancel()

    async def metrics(self) -> str:
        """See `api.Backend`."""
        from ensemw2s.serving.metrics import merged

        calls = [
            handle.broadcast("metrics").results_async(timeout_s=UP_SECONDS, return_exceptions=True)
            for handle in self._handles.values()
        ]
        pages = [page for found in await asyncio.gather(*calls) for page in found]
        return merged([page for page in pages if not isinstance(page, BaseException)])

    async def ready(self) -> bool:
        """See `api.Backend`."""
        self._facts = {}
        try:
            await self.facts()
        except ApiError:
            return False
        return True

    async def _facts_of(self, name: str) -> Facts:
        known = self._facts.get(name)
        if known is None or time.monotonic() - known[0] > FACTS_SECONDS:
            try:
                async with asyncio.timeout(UP_SECONDS):
                    known = time.monotonic(), await self._handles[name].facts.remote()
            except (TimeoutError, RayActorError, DeploymentUnavailableError, BackPressureError) as error:
                if known is None:
                    raise ApiError(503, f"model {name} is not up", retry_after=5) from error
            self._facts[name] = known
        return known[1]


class _Skip:
    """Leaves out what a replica that died had sent already."""

    def __init__(self, text: int, tokens: int) -> None:
        self.text, self.tokens = text, tokens

    def of(self, piece: Piece) -> Piece:
        text, count = min(self.text, len(piece.text)), min(self.tokens, piece.count)
        self.text, self.tokens = self.text - text, self.tokens - count
        return replace(piece, text=piece.text[text:], count=piece.count - count, tokens=piece.tokens[count:])


class Front:
    """Speaks HTTP."""

    def __init__(self, settings: dict[str, Any], *handles: DeploymentHandle) -> None:
        self._settings = ServeSettings.model_validate(settings)
        self._handles = handles

    def __serve_build_asgi_app__(self) -> Any:
        """The app of this replica."""
        names = [model.name for model in self._settings.models]
        models = Models(dict(zip(names, self._handles, strict=True)), self._settings.retries)
        return make_api(models, self._settings.limits, api_keys(self._settings.api_keys_file))


def api_keys(file: str | None) -> list[str]:
    """The keys of the file and of the environment.

    Raises:
        ConfigError: If there is a file and it cannot be read, or holds no key.
    """
    keys = os.environ.get(KEYS_VARIABLE, "").split(",")
    if file is not None:
        try:
            lines = Path(file).expanduser().read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"the file of API keys {file} cannot be read: {error.strerror}") from error
        keys += [line for line in lines if not line.startswith("#")]
        if not any(line.strip() for line in lines):
            raise ConfigError(f"the file of API keys {file} is empty; expected a key a line")
    return [key.strip() for key in keys if key.strip()]


def build(settings: ServeSettings) -> Application:
    """The application: what `serve deploy` builds from `args`, and `ensemw2s serve` runs."""
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
    front: Any = serve.deployment(
        serve.ingress()(Front),
        name="front",
        max_ongoing_requests=limits.concurrent + 64,  # those over the limit are told so by the front itself
        graceful_shutdown_timeout_s=patience,
        graceful_shutdown_wait_loop_s=0.2,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(settings.model_dump(), *models)


def _deployment(model: HostedSettings, settings: ServeSettings, patience: float) -> Any:
    return serve.deployment(
        ModelReplica,
        name=model.name,
        user_config={"path": model.path, "version": model.version},
        max_ongoing_requests=2 * model.slots,
        max_queued_requests=settings.limits.queue,
        graceful_shutdown_timeout_s=patience,
        graceful_shutdown_wait_loop_s=0.2,
        autoscaling_config={
            "min_replicas": model.min_replicas,
            "max_replicas": model.max_replicas,
            "target_ongoing_requests": model.slots,
        },
        ray_actor_options={"num_cpus": model.cpus, "num_gpus": model.gpus},
    )
