"""An engine for an event loop: requests come in as coroutines, their tokens go out as they are decoded.

The engine steps on a thread of its own. Requests join and leave a running batch; one whose consumer goes away is
cancelled and frees its slot. Knows no Ray and no HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.errors import EnsemW2SError


@dataclass(frozen=True)
class Progress:
    """What came of a request since the last time.

    Attributes:
        token_ids: New tokens.
        details: What was recorded of these, if details were asked for.
        generation: The whole answer, once it has ended.
    """

    token_ids: list[int]
    details: Generation | None = None
    generation: Generation | None = None


@dataclass
class _Ticket:
    """A request and who waits for it."""

    request: Request
    details: bool
    loop: asyncio.AbstractEventLoop
    key: int | None = None
    seen: int = 0
    left: bool = False
    arrived: list[Progress] = field(default_factory=list)
    error: BaseException | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def deliver(self, progress: Progress | None, error: BaseException | None) -> None:
        """In the event loop: hands over what came."""
        if progress is not None:
            self.arrived.append(progress)
        self.error = error
        self.changed.set()
        if error is not None or (progress is not None and progress.generation is not None):
            self.ended.set()


class EngineLoop:
    """Steps an engine for coroutines.

    Attributes:
        engine: The engine; nobody else may step it.
        failure: What a step raised that no request can be blamed for; the engine is not to be trusted any more.
    """

    def __init__(self, engine: Engine, after_step: Callable[[Engine], None] | None = None) -> None:
        """Starts the thread.

        Args:
            engine: An engine with nothing to do.
            after_step: Called after every step, on the engine's thread.
        """
        self.engine = engine
        self._after_step = after_step
        self._changed = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._closed = False
        self._tickets: dict[int, _Ticket] = {}
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._tickets)

    async def stream(
        self, request: Request, *, details: bool = False, interval: float = 0.0
    ) -> AsyncGenerator[Progress]:
        """Decodes a request.

        Args:
            request: The request.
            details: Whether the new tokens come with what was recorded of them.
            interval: Seconds between two items, which hold all that came meanwhile; the last comes at once.

        Yields:
            Progress; the last has the generation.

        Raises:
            EnsemW2SError: If the request cannot be decoded.
            RuntimeError: If a step failed.
        """
        ticket = _Ticket(request, details, asyncio.get_running_loop())
        self._do(lambda: self._submit(ticket))
        try:
            while True:
                await ticket.changed.wait()
                ticket.changed.clear()
                came, ticket.arrived = ticket.arrived, []
                for progress in _joined(came):
                    yield progress
                    if progress.generation is not None:
                        return
                if ticket.error is not None:
                    raise ticket.error
                if interval and not ticket.ended.is_set():
                    await _wait(ticket.ended, interval)
        finally:
            if not ticket.ended.is_set():
                self._do(lambda: self._cancel(ticket))

    def close(self) -> None:
        """Ends the thread once nothing is left to do."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def join(self, timeout: float | None = None) -> bool:
        """Waits for the thread's end; whether it has ended."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _do(self, command: Callable[[], None]) -> None:
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._commands or self._closed or self.engine.busy)
                commands, self._commands = self._commands, []
                if self._closed and not commands and not self.engine.busy:
                    return
            for command in commands:
                command()
            if self.engine.busy:
                self._step()

    def _submit(self, ticket: _Ticket) -> None:
        if ticket.left:
            return
        try:
            ticket.key = self.engine.submit(ticket.request)
        except EnsemW2SError as error:
            ticket.loop.call_soon_threadsafe(ticket.deliver, None, error)
            return
        self._tickets[ticket.key] = ticket

    def _cancel(self, ticket: _Ticket) -> None:
        ticket.left = True
        if ticket.key is not None and self._tickets.pop(ticket.key, None) is not None:
            self.engine.cancel(ticket.key)

    def _step(self) -> None:
        try:
            updates = self.engine.step()
        except BaseException as error:
            self._fail_all(error)
            return
        came: dict[asyncio.AbstractEventLoop, list[tuple[_Ticket, Progress]]] = defaultdict(list)
        for update in updates:
            ticket = self._tickets[update.key]
            details = None
            if ticket.details:
                whole = update.generation or self.engine.so_far(update.key, ticket.seen)
                details = whole.after(ticket.seen) if update.generation else whole
            ticket.seen += len(update.token_ids)
            if update.generation is not None:
                del self._tickets[update.key]
            came[ticket.loop].append((ticket, Progress(update.token_ids, details, update.generation)))
        for loop, items in came.items():
            loop.call_soon_threadsafe(_deliver_all, items)
        if self._after_step is not None:
            self._after_step(self.engine)

    def _fail_all(self, error: BaseException) -> None:
        self.failure = error
        for key, ticket in self._tickets.items():
            self.engine.cancel(key)
            told = RuntimeError(f"decoding failed: {error}")
            ticket.loop.call_soon_threadsafe(ticket.deliver, None, told)
        self._tickets = {}


def _deliver_all(items: list[tuple[_Ticket, Progress]]) -> None:
    for ticket, progress in items:
        ticket.deliver(progress, None)


def _joined(came: list[Progress]) -> list[Progress]:
    """Several of one request as one."""
    if len(came) < 2:
        return came
    details = [one.details for one in came if one.details is not None]
    return [
        Progress(
            [token for one in came for token in one.token_ids],
            Generation.joined(details) if details else None,
            came[-1].generation,
        )
    ]


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
