"""Pieces of answers on their way from replicas to the front: over one connection for each pair of them, all at once.

A call through Serve carries a job and says how it ended; a message of Serve's for every piece would cost more than its
decoding. Frames are JSON behind their length; a connection begins with the front's secret. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import hmac
import itertools
import json
import secrets
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple, cast

from ensemw2s.serving.exchange import Piece, PromptPart, Token

LENGTH = struct.Struct("!I")
MOST = 2**26
"""Bytes of a frame; what says more is no replica of ours."""


class Address(NamedTuple):
    """Where a front can be reached, and the secret that a connection begins with."""

    host: str
    port: int
    secret: str


class ReplyTo(NamedTuple):
    """Where the pieces of an answer go: to which front, and its number for the answer."""

    front: Address
    number: int


class Inbox:
    """Takes pieces in the front's event loop."""

    def __init__(self, host: str) -> None:
        """Args: the address to listen on, which replicas can reach."""
        self.host, self.secret = host, secrets.token_hex(16)
        self._numbers = itertools.count()
        self._takers: dict[int, Callable[[Piece], None]] = {}
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()

    @contextmanager
    def expect(self, take: Callable[[Piece], None]) -> Iterator[int]:
        """Lets `take` have the pieces of one answer, under the number that this gives; later ones are dropped."""
        number = next(self._numbers)
        self._takers[number] = take
        try:
            yield number
        finally:
            del self._takers[number]

    async def reply(self, number: int) -> ReplyTo:
        """Where a replica sends the pieces of an answer; listens from the first time on."""
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.get_running_loop().create_server(lambda: _Reader(self), self.host, 0)
        return ReplyTo(Address(self.host, self._server.sockets[0].getsockname()[1], self.secret), number)

    def close(self) -> None:
        """Ends listening; connections that are open stay until replicas close them."""
        if self._server is not None:
            self._server.close()

    def dispatch(self, frame: bytes) -> None:
        """Hands over what is in a frame."""
        for number, text, count, prompt_tokens, tokens, finish, prompt in json.loads(frame):
            take = self._takers.get(number)
            if take is not None:
                part = PromptPart(prompt[0], [Token(*token) for token in prompt[1]], prompt[2]) if prompt else None
                take(Piece(text, count, prompt_tokens, [Token(*token) for token in tokens], finish, part))


class _Reader(asyncio.Protocol):
    """One replica's connection."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._known = False
        self._came = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        came = self._came
        came += data
        while len(came) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(came)
            if length > (MOST if self._known else len(self._inbox.secret)):
                self._transport.abort()
                return
            if len(came) < LENGTH.size + length:
                return
            frame = bytes(came[LENGTH.size : LENGTH.size + length])
            del came[: LENGTH.size + length]
            if self._known:
                self._inbox.dispatch(frame)
            elif hmac.compare_digest(frame, self._inbox.secret.encode()):
                self._known = True
            else:
                self._transport.abort()
                return


class Outbox(asyncio.Protocol):
    """A replica's connection to one front. Pieces are put on any thread and go out together with `flush`.

    Attributes:
        front: Which.
        lost: Whether the connection is gone; what was put may not have arrived.
    """

    def __init__(self, front: Address) -> None:
        self.front, self.lost = front, False
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._rows: list[tuple[int, Piece]] = []
        self._users: set[asyncio.Task[Any]] = set()
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, front: Address) -> Outbox:
        """Raises OSError if the front cannot be reached."""
        loop = asyncio.get_running_loop()
        transport, outbox = await loop.create_connection(lambda: cls(front), front.host, front.port)
        transport.write(_framed(front.secret.encode()))
        return outbox

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one, but not by its class

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        for task in self._users:
            task.cancel()

    @contextmanager
    def used(self) -> Iterator[None]:
        """While the current task needs the connection; a loss of it cancels the task."""
        task = asyncio.current_task()
        assert task is not None
        self._users.add(task)
        try:
            yield
        finally:
            self._users.discard(task)

    def put(self, number: int, piece: Piece) -> None:
        """Adds a piece to what goes out next."""
        with self._lock:
            self._rows.append((number, piece))

    def flush(self) -> None:
        """Lets go out what was put."""
        with self._lock:
            rows, self._rows = self._rows, []
        if not rows:
            return
        plain = [(number, p.text, p.count, p.prompt_tokens, p.tokens, p.finish, p.prompt) for number, p in rows]
        frame = _framed(json.dumps(plain, separators=(",", ":")).encode())
        with suppress(RuntimeError):  # the event loop of a process that ends
            self._loop.call_soon_threadsafe(self._send, frame)

    def _send(self, frame: bytes) -> None:
        assert self._transport is not None
        if not self._transport.is_closing():
            self._transport.write(frame)

    def close(self) -> None:
        """Ends the connection."""
        assert self._transport is not None
        self._transport.close()


def _framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body
