"""The HTTP side: requests of the OpenAI API come in, jobs go to whoever holds the models, JSON or a stream goes out.

Knows no Ray: it talks to a `Backend`. Everything that can go wrong ends in the OpenAI error body.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ensemw2s import __version__
from ensemw2s.serving import protocol
from ensemw2s.serving.jobs import Facts, Job, Piece, Refused, Token
from ensemw2s.serving.protocol import ApiError, ChatRequest, Common, CompletionRequest
from ensemw2s.serving.settings import Limits

PAGE = Path(__file__).parent / "ui" / "index.html"
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in {
        400: "The request is wrong.",
        401: "No valid API key.",
        404: "No such model.",
        413: "The body is too large.",
        429: "Too many at a time; see Retry-After.",
        500: "Decoding failed.",
        503: "The model is not up; see Retry-After.",
        504: "It took too long.",
    }.items()
}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
STREAMED = {
    "description": "The answer; with stream: true, server-sent events.",
    "content": {"text/event-stream": {"schema": {"type": "object", "properties": {"data": {"type": "string"}}}}},
}
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Backend(Protocol):
    """Whoever holds the models."""

    async def facts(self) -> dict[str, Facts]:
        """What each model is, by name; the first is the default."""

    def answer(self, model: str, job: Job) -> AsyncGenerator[Piece | Refused]:
        """Pieces of an answer, or a refusal.

        Raises:
            ApiError: If it cannot go on.
        """

    async def metrics(self) -> str:
        """Figures in Prometheus' text format."""

    async def ready(self) -> bool:
        """Whether every model can answer."""


def make_api(backend: Backend, limits: Limits, keys: Iterable[str] = ()) -> FastAPI:
    """The ASGI app.

    Args:
        backend: Whoever holds the models.
        limits: Bounds of requests.
        keys: API keys, of which a request must have one; none: no check.
    """
    api = FastAPI(
        title="ensemw2s",
        version=__version__,
        description="Token-level ensembles of weak experts, their students and single experts, by the OpenAI API.",
    )
    front = _Front(backend, limits, [hashlib.sha256(key.encode()).digest() for key in keys])
    v1: dict[str, Any] = {"dependencies": [Depends(front.check_key)], "responses": ERRORS}
    answers: dict[str, Any] = {**v1, "responses": {**ERRORS, 200: STREAMED}}

    @api.post("/v1/completions", **answers)
    async def completions(body: CompletionRequest) -> Any:
        """Continue a text."""
        return await front.complete(body, "cmpl", body.prompts(), body.logprobs)

    @api.post("/v1/chat/completions", **answers)
    async def chat_completions(body: ChatRequest) -> Any:
        """Answer a message."""
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        wanted = (body.top_logprobs or 0) if body.logprobs else None
        return await front.complete(body, "chatcmpl", [[one.plain() for one in body.messages]], wanted)

    @api.get("/v1/models", **v1)
    async def models() -> dict[str, Any]:
        """What is hosted."""
        cards = [protocol.model_card(facts, front.began) for facts in (await backend.facts()).values()]
        return {"object": "list", "data": cards}

    @api.get("/v1/models/{model}", **v1)
    async def model(model: str) -> dict[str, Any]:
        """One of them."""
        return protocol.model_card((await front.facts_of(model)), front.began)

    @api.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The front is alive."""
        return "ok"

    @api.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "Not ready."}})
    async def readyz() -> PlainTextResponse:
        """Every model can answer."""
        ready = await backend.ready()
        return PlainTextResponse("ready" if ready else "not ready", 200 if ready else 503)

    @api.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Figures for Prometheus."""
        return PlainTextResponse(await backend.metrics(), media_type="text/plain; version=0.0.4")

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE.read_text(encoding="utf-8"))

    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(RequestValidationError, _wrong_body)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_middleware(_BodyLimit, most=limits.body_bytes)
    _mend_schema(api)
    return api


class _Front:
    """What the routes have in common."""

    def __init__(self, backend: Backend, limits: Limits, keys: list[bytes]) -> None:
        self.backend, self.limits, self.keys = backend, limits, keys
        self.began, self.open = protocol.created(), 0

    async def check_key(self, request: Request) -> None:
        """Raises ApiError without a valid key; all keys are compared, each in constant time."""
        if not self.keys:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(given.strip().encode()).digest()
        valid = [hmac.compare_digest(digest, key) for key in self.keys]
        if scheme.lower() != "bearer" or not any(valid):
            raise ApiError(401, "no valid API key: send the header Authorization: Bearer KEY", code="invalid_api_key")

    async def facts_of(self, name: str | None) -> Facts:
        """The model that a request names."""
        known = await self.backend.facts()
        if name is None:
            return next(iter(known.values()))
        if name not in known:
            raise ApiError(
                404, f"there is no model {name!r}; available: {', '.join(known)}", param="model", code="model_not_found"
            )
        return known[name]

    async def complete(self, body: Common, kind: str, prompts: list[Any], logprobs: int | None) -> Any:
        """Answers a request, as a whole or as a stream."""
        facts = await self.facts_of(body.model)
        n = body.n or 1
        if not 0 < len(prompts) * n <= self.limits.n:
            raise ApiError(
                400, f"{len(prompts)} prompts with n = {n}; a request has 1 to {self.limits.n} answers", param="n"
            )
        if body.ensemble and body.ensemble.weights is not None:
            _check_weights(body.ensemble.weights, facts)
        most = body.max_tokens
        if isinstance(body, ChatRequest):
            most = body.max_completion_tokens or most
        elif most is None:
            most = 16  # as the API has it
        jobs = [
            replace(
                body.job(
                    prompt, likeliest=logprobs or 0, tokens=logprobs is not None, max_tokens=most, limits=self.limits
                ),
                seed=seed,
            )
            for prompt in prompts
            for seed in body.seeds(n)
        ]
        if self.open + len(jobs) > self.limits.concurrent:
            raise ApiError(429, "too many requests are under way", code="overloaded", retry_after=1)
        reply = _Reply(self, body, kind, facts, logprobs, jobs)
        if not body.stream:
            return JSONResponse(await reply.whole())
        first = await reply.start()  # so that what is wrong is a status, not a line of a stream
        return StreamingResponse(reply.stream(first), media_type="text/event-stream", headers=SSE_HEADERS)


Item = tuple[int, Piece]


class _Reply:
    """One request's answers."""

    def __init__(
        self, front: _Front, body: Common, kind: str, facts: Facts, logprobs: int | None, jobs: list[Job]
    ) -> None:
        self.front, self.body, self.kind, self.facts, self.logprobs, self.jobs = (
            front,
            body,
            kind,
            facts,
            logprobs,
            jobs,
        )
        self.chat = kind == "chatcmpl"
        self.id, self.created = protocol.new_id(kind), protocol.created()
        self.offsets = [0] * len(jobs)
        self.prompt_tokens, self.completion_tokens = [0] * len(jobs), 0
        self.items = self._items()

    async def whole(self) -> dict[str, Any]:
        """The body of an answer that is no stream."""
        text, finish = [""] * len(self.jobs), [""] * len(self.jobs)
        tokens: list[list[Token]] = [[] for _ in self.jobs]
        async with aclosing(self.items) as items:
            async for i, piece in items:
                text[i] += piece.text
                tokens[i] += piece.tokens
                finish[i] = piece.finish or ""
        choices = []
        for i in range(len(self.jobs)):
            choice = self._choice(i, tokens[i], finish[i])
            if self.chat:
                choice["message"] = {"role": "assistant", "content": text[i], "refusal": None}
            else:
                choice["text"] = text[i]
            choices.append(choice)
        return {**self._head(chunk=False), "choices": choices, "usage": self._usage()}

    async def start(self) -> Item:
        """The first piece. Raises ApiError if there is none."""
        try:
            return await anext(self.items)
        except BaseException:
            await self.items.aclose()
            raise

    async def stream(self, first: Item) -> AsyncGenerator[str]:
        """Server-sent events."""
        async with aclosing(self.items) as items:
            try:
                if self.chat:
                    for i in range(len(self.jobs)):
                        opening = {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                        yield self._event([opening])
                yield self._event([self._delta(*first)])
                async for i, piece in items:
                    yield self._event([self._delta(i, piece)])
                if self.body.stream_options and self.body.stream_options.include_usage:
                    yield _sse({**self._head(chunk=True), "choices": [], "usage": self._usage()})
            except ApiError as error:
                yield _sse(error.body())
            yield "data: [DONE]\n\n"

    async def _items(self) -> AsyncGenerator[Item]:
        """Pieces of all answers as they come, within the time that a request has."""
        queue: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(maxsize=4 * len(self.jobs))
        self.front.open += len(self.jobs)
        tasks = [asyncio.create_task(self._take(i, queue)) for i in range(len(self.jobs))]
        left = len(tasks)
        end = asyncio.get_running_loop().time() + self.front.limits.request_seconds
        try:
            while left:
                try:
                    async with asyncio.timeout_at(end):
                        item = await queue.get()
                except TimeoutError:
                    seconds = self.front.limits.request_seconds
                    raise ApiError(504, f"the request took more than {seconds:g} seconds", code="timeout") from None
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            self.front.open -= len(self.jobs)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, i: int, queue: asyncio.Queue[Item | BaseException | None]) -> None:
        try:
            async with aclosing(self.front.backend.answer(self.facts.name, self.jobs[i])) as pieces:
                async for piece in pieces:
                    if isinstance(piece, Refused):
                        raise ApiError(piece.status, piece.message, retry_after=1 if piece.status == 503 else None)
                    self.prompt_tokens[i] = piece.prompt_tokens
                    self.completion_tokens += piece.count
                    await queue.put((i, piece))
            await queue.put(None)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await queue.put(error if isinstance(error, ApiError) else ApiError(500, f"decoding failed: {error}"))

    def _delta(self, i: int, piece: Piece) -> dict[str, Any]:
        choice = self._choice(i, piece.tokens, piece.finish)
        if self.chat:
            choice["delta"] = {"content": piece.text} if piece.text or not piece.finish else {}
        else:
            choice["text"] = piece.text
        return choice

    def _choice(self, i: int, tokens: list[Token], finish: str | None) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": i, "finish_reason": finish, "logprobs": None}
        if self.logprobs is not None:
            if self.chat:
                choice["logprobs"] = protocol.chat_logprobs(tokens, self.logprobs)
            else:
                choice["logprobs"] = protocol.text_logprobs(tokens, self.logprobs, self.offsets[i])
                self.offsets[i] += sum(len(token.text) for token in tokens)
        if self.body.ensemble is not None and self.body.ensemble.votes:
            choice["ensemble"] = protocol.votes(tokens, self.facts)
        return choice

    def _head(self, *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.facts.name}

    def _event(self, choices: list[dict[str, Any]]) -> str:
        return _sse({**self._head(chunk=True), "choices": choices})

    def _usage(self) -> dict[str, int]:
        each = self.body.n or 1  # a prompt counts once, however many answers it has
        return protocol.usage(sum(self.prompt_tokens[::each]), self.completion_tokens)


def _sse(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"


def _check_weights(weights: dict[str, float], facts: Facts) -> None:
    names = [expert["name"] for expert in facts.experts]
    if unknown := [name for name in weights if name not in names]:
        raise ApiError(
            400, f"no expert is called {unknown[0]!r}; available: {', '.join(names)}", param="ensemble.weights"
        )
    if not sum(weights.values()) > 0:
        raise ApiError(400, "no expert has a positive weight", param="ensemble.weights")


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse(error.body(), error.status, headers)


async def _wrong_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part != "body"]
    param = ".".join(place) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    return await _api_error(request, ApiError(400, f"{param or 'body'}: {message}", param=param))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    response = await _api_error(request, ApiError(error.status_code, str(error.detail)))
    response.headers.update(error.headers or {})
    return response


class _BodyLimit:
    """Refuses bodies over a size, whether they say their length or not."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most:
                raise HTTPException(413, f"the body has more than {self.most} bytes")
            return message

        await self.app(scope, counted, send)


def _mend_schema(api: FastAPI) -> None:
    """Replaces FastAPI's own validation error, which never goes out, by the one that does."""
    make = api.openapi

    def openapi() -> dict[str, Any]:
        schema = make()
        schema.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR_SCHEMA
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
