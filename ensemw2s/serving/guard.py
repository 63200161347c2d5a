"""What stands before the API: it decides by a request's head alone whether the body is read.

Host names, keys and declared lengths are checked here. Every answer gets the number of its request, and no error goes
out with more than a reference to the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ensemw2s.serving.protocol import ApiError

log = logging.getLogger("ray.serve")

WITH_KEY = ("/v1", "/tokenize", "/detokenize")
"""Where paths begin that ask for a key."""

METRICS = "/metrics"
SMALL_BODY = 2**17
"""Bytes of a body that are read at once."""

LARGE_RATE = 2**25
"""Bytes per second of all larger bodies together: reading and parsing them takes the time in which others wait."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        keys: Digests of API keys; none: no key is asked for.
        hosts: Host names that a request may use, beside localhost and IP addresses; None: any.
        metrics_key: Whether /metrics asks for a key.
    """

    keys: tuple[bytes, ...] = ()
    hosts: frozenset[str] | None = None
    metrics_key: bool = False

    @classmethod
    def of(cls, keys: Iterable[str], hosts: Iterable[str] | None = None, *, metrics_key: bool = False) -> Access:
        """From keys and names as people write them."""
        digests = tuple(hashlib.sha256(key.encode()).digest() for key in keys)
        return cls(digests, None if hosts is None else frozenset(map(str.lower, hosts)), metrics_key)

    def check(self, path: str, headers: Headers) -> None:
        """Raises ApiError unless a request may come in."""
        if self.hosts is not None and not self._is_here(headers.get("host", "")):
            raise ApiError(
                403,
                f"{headers['host']!r} is no name of this endpoint: use its IP address or localhost, add the name to "
                "hosts in the settings, or use API keys",
                code="unknown_host",
            )
        if self.keys and (path.startswith(WITH_KEY) or (self.metrics_key and path.startswith(METRICS))):
            self._check_key(headers.get("authorization", ""))

    def _is_here(self, host: str) -> bool:
        """Whether a Host header is no name that somebody else may have pointed at this address."""
        assert self.hosts is not None
        name = re.sub(r":\d*$", "", host).lower()
        if name in ("", "localhost") or name.endswith(".localhost") or name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True

    def _check_key(self, header: str) -> None:
        """All keys are compared, each in constant time."""
        scheme, _, given = header.partition(" ")
        digest = hashlib.sha256(given.strip().encode(errors="replace")).digest()
        valid = [hmac.compare_digest(digest, key) for key in self.keys]
        if scheme.lower() != "bearer" or not any(valid):
            raise ApiError(401, "no valid API key: send the header Authorization: Bearer KEY", code="invalid_api_key")


def incident(error: BaseException, what: str) -> ApiError:
    """Logs an error that is not the client's, and gives what the client is told of it."""
    reference = uuid.uuid4().hex[:12]
    log.error("%s, reference %s", what, reference, exc_info=error)
    return ApiError(500, f"{what}: an error in the endpoint, whose log has it under the reference {reference}")


class Pace:
    """Bounds the rate at which large bodies are read, over all clients. Slow senders take nothing from others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Args: `clock` gives the time in seconds."""
        self._clock, self._free = clock, 0.0

    async def wait(self, size: int) -> None:
        """Returns when so many more bytes fit in."""
        now = self._clock()
        self._free = max(self._free, now) + size / LARGE_RATE
        await asyncio.sleep(self._free - now)


class Guard:
    """Lets requests through to an app, or not."""

    def __init__(self, app: ASGIApp, access: Access, body_bytes: int) -> None:
        self.app, self.access, self.body_bytes = app, access, body_bytes
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        number = given if REQUEST_ID.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        seen, started, head = 0, False, scope["method"] == "HEAD"
        whole = not int(headers.get("content-length", 0)) and "transfer-encoding" not in headers

        async def counted() -> Message:
            nonlocal seen, whole
            message = await receive()
            seen += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if seen > self.body_bytes:
                raise HTTPException(413, f"the body has more than {self.body_bytes} bytes")
            if seen > SMALL_BODY and message.get("body"):
                await self._pace.wait(len(message["body"]))
            return message

        async def answered(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["x-request-id"] = number
                if not whole:  # the listener ends the connection of a body that nobody reads
                    MutableHeaders(scope=message)["connection"] = "close"
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            self.access.check(scope["path"], headers)
            if int(headers.get("content-length", 0)) > self.body_bytes:
                raise ApiError(413, f"the body has more than {self.body_bytes} bytes")
            await self.app({**scope, "method": "GET"} if head else scope, counted, answered)
        except Exception as error:
            if started:
                raise
            refusal = error if isinstance(error, ApiError) else incident(error, "the request failed")
            await response(refusal)(scope, receive, answered)


def response(error: ApiError) -> JSONResponse:
    """An error as it goes out."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="ensemw2s"'
    return JSONResponse(error.body(), error.status, headers)
