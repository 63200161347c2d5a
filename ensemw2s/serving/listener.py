"""An ASGI app that listens by itself in the event loop that it is part of: for a front that no proxy stands before."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the process, not to this server."""
        yield


@asynccontextmanager
async def listening(app: Any, address: tuple[str, int]) -> AsyncGenerator[None]:
    """Lifespan of an app: it listens, and at the end answers what has come in.

    Args:
        app: The app.
        address: Host and port.

    Raises:
        OSError: If the address is taken or not allowed.
    """
    listener = socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    server = _Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving
