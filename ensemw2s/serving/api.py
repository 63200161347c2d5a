"""The HTTP side: requests of the OpenAI API come in, jobs go to whoever holds the models, JSON or a stream goes out.

Knows no Ray: it talks to a `Backend`. Every error ends in the error body of the OpenAI API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ensemw2s import __version__
from ensemw2s.serving import bodies
from ensemw2s.serving.bodies import ModelList, ModelObject, TokenList, TokenText
from ensemw2s.serving.exchange import ModelCard, Prompt, PromptPart, Refused
from ensemw2s.serving.guard import Access, Guard, response
from ensemw2s.serving.protocol import (
    ApiError,
    ChatRequest,
    Common,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from ensemw2s.serving.reply import Answers, Backend, Reply
from ensemw2s.serving.settings import Limits
from ensemw2s.serving.wording import JSON_ONLY, explain

PAGE = Path(__file__).parent / "ui" / "index.html"
ERRORS: dict[int | str, dict[str, object]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    for status, text in {
        400: "The request is wrong.",
        401: "No valid API key.",
        403: "The Host header names no endpoint here.",
        404: "No such model.",
        413: "The body is too large.",
        429: "Too many at a time; see Retry-After.",
        500: "An error in the endpoint; its log has the reference.",
        503: "The model is not up, or the endpoint is going down; see Retry-After.",
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
USUAL_TOKENS = 16
"""Length of a completion that asks for none, as OpenAI has it."""
T = TypeVar("T")
SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Gate:
    """Whether requests are let in, and how many answers are under way.

    Attributes:
        draining: Whether new requests are refused, with a time after which to come back.
        open: Answers under way.
    """

    def __init__(self) -> None:
        self.draining, self.open = False, 0


def make_api(
    backend: Backend,
    limits: Limits,
    keys: Iterable[str] = (),
    gate: Gate | None = None,
    *,
    hosts: Iterable[str] | None = None,
    cors_origins: Sequence[str] = (),
    metrics_key: bool = False,
) -> FastAPI:
    """The ASGI app.

    Args:
        backend: Whoever holds the models.
        limits: Bounds of requests.
        keys: API keys, of which a request must have one; default: no check.
        gate: Where the caller closes the endpoint and counts the answers under way.
        hosts: Host names that requests may use, beside localhost and IP addresses; default: any.
        cors_origins: Origins whose pages may use it from a browser.
        metrics_key: Whether /metrics asks for a key.
    """
    api = FastAPIOffline(
        redoc_url=None,  # its script loads a logo from elsewhere
        title="ensemw2s",
        version=__version__,
        description="Token-level ensembles of weak experts, their students and single experts, by the OpenAI API.",
    )
    front = _Front(backend, limits, gate or Gate())
    get = partial(api.get, responses=ERRORS, response_model=None)
    plain_post = partial(api.post, responses=ERRORS, response_model=None)
    post = partial(api.post, responses={**ERRORS, 200: STREAMED}, response_model=None)

    @post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue a text."""
        most = body.max_tokens if "max_tokens" in body.model_fields_set else USUAL_TOKENS
        return await front.complete(request, body, "cmpl", body.prompts(), body.logprobs, most)

    @post("/v1/chat/completions")
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a message."""
        if body.top_logprobs and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        wanted = (body.top_logprobs or 0) if body.logprobs else None
        prompts = [[one.plain() for one in body.messages]]
        most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
        return await front.complete(request, body, "chatcmpl", prompts, wanted, most)

    @plain_post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenList:
        """The token ids of a text or a chat."""
        card, found = await front.encoded(body.model, body.asked(limits), special=body.add_special_tokens is not False)
        return bodies.token_list(found, card)

    @plain_post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> TokenText:
        """The text of token ids."""
        _, found = await front.encoded(body.model, body.tokens, special=False)
        return {"prompt": found.text}

    @get("/v1/models")
    async def models() -> ModelList:
        """The models that are hosted."""
        cards = (await backend.cards()).values()
        return {"object": "list", "data": [bodies.model_object(card, front.began) for card in cards]}

    @get("/v1/models/{model}")
    async def model(model: str) -> ModelObject:
        """One of the models."""
        return bodies.model_object(await front.card_of(model), front.began)

    @api.get("/healthz", response_class=PlainTextResponse)
    async def healthz() -> str:
        """The front is alive."""
        return "ok"

    @api.get("/readyz", response_class=PlainTextResponse, responses={503: {"description": "Not ready."}})
    async def readyz() -> PlainTextResponse:
        """Every model can answer."""
        ready = not front.gate.draining and await backend.ready()
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
    access = Access.of(keys, hosts, metrics_key=metrics_key)
    api.add_middleware(Guard, access=access, body_bytes=limits.body_bytes)
    if cors_origins:
        api.add_middleware(
            CORSMiddleware, allow_origins=cors_origins, allow_methods=["*"], allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip
    _mend_schema(api)
    return api


class _Front:
    """What the routes have in common."""

    def __init__(self, backend: Backend, limits: Limits, gate: Gate) -> None:
        self.backend, self.limits, self.gate = backend, limits, gate
        self.began = bodies.created()

    async def card_of(self, name: str | None) -> ModelCard:
        """The model that a request names."""
        known = await self.backend.cards()
        if name is None:
            return next(iter(known.values()))
        if name not in known:
            raise ApiError(
                404, f"there is no model {name!r}; available: {', '.join(known)}", param="model", code="model_not_found"
            )
        return known[name]

    async def encoded(self, model: str | None, prompt: Prompt, *, special: bool) -> tuple[ModelCard, PromptPart]:
        """A prompt as text and as token ids, by the tokenizer of a model."""
        card = await self.card_of(model)
        found = await self.backend.encoded(card.name, prompt, special=special)
        if isinstance(found, Refused):
            raise ApiError(found.status, found.message, param=found.param, code=found.code)
        return card, found

    async def complete(
        self,
        request: Request,
        body: Common,
        kind: str,
        prompts: Sequence[Prompt],
        logprobs: int | None,
        most: int | None,
    ) -> Response:
        """Answers a request, as a whole or as a stream.

        Args:
            request: Where the client may hang up.
            body: The request.
            kind: `cmpl` or `chatcmpl`.
            prompts: What is to be answered.
            logprobs: How many likeliest tokens to show at each place; None: no tokens at all.
            most: Longest answer in tokens; None: as long as the endpoint allows.
        """
        if self.gate.draining:
            raise ApiError(503, "the endpoint is going down", code="draining", retry_after=5)
        card = await self.card_of(body.model)
        n = body.n or 1
        if not 0 < len(prompts) * n <= self.limits.n:
            raise ApiError(
                400,
                f"{len(prompts)} prompts with n = {n} want {len(prompts) * n} answers; a request may have 1 to "
                f"{self.limits.n} answers",
                param="n" if len(prompts) == 1 else "prompt",
            )
        if most is not None and most > self.limits.max_tokens:
            name = "max_completion_tokens" if "max_completion_tokens" in body.model_fields_set else "max_tokens"
            raise ApiError(400, f"{name} is {most}; this endpoint allows {self.limits.max_tokens}", param=name)
        if body.ensemble and body.ensemble.weights is not None:
            _check_weights(body.ensemble.weights, card)
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
        if self.gate.open + len(jobs) > self.limits.concurrent:
            raise ApiError(429, "too many requests are under way", code="overloaded", retry_after=1)
        pieces = Answers(self.backend, self.gate, card.name, jobs, self.limits.request_seconds)
        reply = Reply(pieces, body, kind, card, logprobs)
        if not body.stream:
            return JSONResponse(await _unless_gone(request, reply.whole()))
        first = await _unless_gone(request, reply.start())  # so that what is wrong is a status, not a line of a stream
        return StreamingResponse(reply.stream(first), media_type="text/event-stream", headers=SSE_HEADERS)


def _check_weights(weights: dict[str, float], card: ModelCard) -> None:
    names = [expert["name"] for expert in card.experts]
    if unknown := [name for name in weights if name not in names]:
        raise ApiError(
            400, f"no expert is called {unknown[0]!r}; available: {', '.join(names)}", param="ensemble.weights"
        )
    if not sum(weights.values()) > 0:
        raise ApiError(400, "no expert has a positive weight", param="ensemble.weights")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What comes of the work, which ends when the client hangs up.

    Raises:
        ApiError: If it has; nobody reads it.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client hung up")
    finally:
        leaving.cancel()
        if working.cancel():
            await asyncio.wait({working})


async def _gone(request: Request) -> None:
    """Returns when the client has hung up. The body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return response(error)


async def _wrong_body(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if not isinstance(error.body, dict | list) and error.errors()[0]["type"] != "json_invalid":
        return response(ApiError(400, JSON_ONLY))
    kind = ChatRequest if "chat" in request.url.path else CompletionRequest
    message, param = explain(error.errors()[0], error.body, list(kind.model_fields))
    return response(ApiError(400, message, param=param))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = response(ApiError(error.status_code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


def _mend_schema(api: FastAPI) -> None:
    """Replaces FastAPI's own validation error, which never goes out, by the one that does."""
    make = api.openapi

    def openapi() -> dict[str, Any]:  # FastAPI's own type of a schema
        schema = make()
        schema.setdefault("components", {}).setdefault("schemas", {})["Error"] = ERROR_SCHEMA
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return schema

    api.openapi = openapi  # type: ignore[method-assign]
