"""An ASGI app that listens by itself in the event loop that it is part of: for a front that no proxy stands before.

So it has to bear what comes from the network: senders that never end, heads without bounds, answers that nobody reads.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from ensemw2s.serving.settings import Limits

LINGER = 1.0
"""Seconds in which what a client still sends is dropped, before its connection ends."""


class Bounded(HttpToolsProtocol):
    """One connection, with bounds for what a client sends and for how long it takes."""

    def __init__(self, limits: Limits, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes, self._refused = True, 0, False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.connections:
            self._refuse(503, "too many connections are open; come back in a second")
        else:
            self._wait(self._limits.header_seconds, "the headers took too long")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > self._limits.header_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._wait(self._limits.header_seconds, "the headers took too long")

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._stop_waiting()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if self._refused or size > self._limits.header_bytes or len(self.headers) > self._limits.headers:
            self._refuse_head()
            return
        super().on_headers_complete()
        if not self.pipeline:  # else nothing of it is read before the request before it is answered
            self._wait(self._limits.body_seconds, "the body took too long")

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_waiting()
        if not self._refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        unread = self.cycle.more_body and not self.pipeline
        super().on_response_complete()
        if unread and not self.transport.is_closing():  # the answer is on its way; the rest of the body is not wanted
            self._leave()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self._limits.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _wait(self, seconds: float, message: str) -> None:
        self._stop_waiting()
        self._timer = self.loop.call_later(seconds, self._refuse, 408, message)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse_head(self) -> None:
        limits = self._limits
        self._refuse(
            431, f"the headers are too large: {limits.headers} of {limits.header_bytes} bytes together are allowed"
        )

    def _refuse(self, status: int, message: str) -> None:
        """Says so, unless an answer is under way, and ends the connection."""
        if self._refused or self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            kind = "server_error" if status >= 500 else "invalid_request_error"
            error = {"error": {"message": message, "type": kind, "param": None, "code": None}}
            body = json.dumps(error).encode()
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self._leave()

    def _leave(self) -> None:
        """Ends the connection, a moment after the answer: a client that still sends would lose it."""
        self._refused = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        self.loop.call_later(LINGER, self.transport.close)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to this server."""
        yield


@asynccontextmanager
async def listening(app: Any, address: tuple[str, int], limits: Limits) -> AsyncGenerator[None]:
    """Lifespan of an app: it listens, and at the end answers what has come in.

    Args:
        app: The app.
        address: Host and port.
        limits: Bounds of connections.

    Raises:
        OSError: If the address is taken or not allowed.
    """
    listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    protocol: Any = partial(Bounded, limits)
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False)
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
