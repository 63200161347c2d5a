"""An engine for an event loop: requests come in as coroutines, their tokens go out as they are decoded.

The engine steps on a thread of its own. Requests join and leave a running batch; one whose coroutine is cancelled frees
its slot. What was decoded is handed over on the engine's thread, so that the two threads need not take turns for every
token. Knows no Ray and no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.requests import Generation, Request

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """What came of a request since the last time.

    Attributes:
        token_ids: New tokens.
        details: What was recorded of these, if details were asked for.
        generation: The whole answer, once it has ended.
    """

    token_ids: list[int]
    details: Generation | None = None
    generation: Generation | None = None


Deliver = Callable[[Decoded], None]


@dataclass
class _Ticket:
    """A request and who waits for it."""

    request: Request
    deliver: Deliver
    end: Callable[[BaseException | None], None]
    details: bool
    interval: float
    key: int | None = None
    tokens: list[int] = field(default_factory=list)
    seen: int = 0
    due: float = 0.0
    left: bool = False


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

    async def run(self, request: Request, deliver: Deliver, *, details: bool = False, interval: float = 0.0) -> None:
        """Decodes a request, to its end or until this is cancelled.

        Args:
            request: The request.
            deliver: Takes what came, on the engine's thread; what it raises ends the request. The first token and the
                end come at once.
            details: Whether the new tokens come with what was recorded of them.
            interval: Seconds between two deliveries, which hold all that came meanwhile. All requests of an interval
                have theirs after the same step.

        Raises:
            EnsemW2SError: If the request cannot be decoded.
            RuntimeError: If a step failed for all.
            Exception: What went wrong with this request in a step.
        """
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def end(error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the event loop of a process that ends
                loop.call_soon_threadsafe(_settle, ended, error)

        ticket = _Ticket(request, deliver, end, details, interval)
        self._do(lambda: self._submit(ticket))
        try:
            await ended
        except asyncio.CancelledError:
            self._do(lambda: self._cancel(ticket))
            raise

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
                self._guarded(command)
            if self.engine.busy:
                self._step()

    def _guarded(self, call: Callable[[], object]) -> None:
        """Calls it; the thread, which serves all requests, outlives an error."""
        try:
            call()
        except Exception:
            log.exception("an error on the engine's thread")

    def _submit(self, ticket: _Ticket) -> None:
        if ticket.left:
            return
        try:
            ticket.key = self.engine.submit(ticket.request)
        except Exception as error:  # whatever it is, it is about this request
            ticket.end(error)
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
        now = time.monotonic()
        for update in updates:
            ticket = self._tickets[update.key]
            if update.error is not None:
                del self._tickets[update.key]
                ticket.end(update.error)
                continue
            ticket.tokens += update.token_ids
            if update.generation is not None or now >= ticket.due:
                self._hand_over(ticket, update.generation, now)
        if self._after_step is not None:
            self._guarded(partial(self._after_step, self.engine))

    def _hand_over(self, ticket: _Ticket, generation: Generation | None, now: float) -> None:
        assert ticket.key is not None
        error: BaseException | None = None
        try:
            details = None
            if ticket.details:
                whole = generation or self.engine.so_far(ticket.key, ticket.seen)
                details = whole.after(ticket.seen) if generation else whole
            ticket.deliver(Decoded(ticket.tokens, details, generation))
        except Exception as raised:
            error = raised
            self.engine.cancel(ticket.key)
        ticket.seen += len(ticket.tokens)
        ticket.tokens = []
        if ticket.interval:
            ticket.due = (now // ticket.interval + 1) * ticket.interval
        if error is not None or generation is not None:
            del self._tickets[ticket.key]
            ticket.end(error)

    def _fail_all(self, error: BaseException) -> None:
        self.failure = error
        for key, ticket in self._tickets.items():
            self.engine.cancel(key)
            ticket.end(RuntimeError(f"decoding failed: {error}"))
        self._tickets = {}


def _settle(ended: asyncio.Future[None], error: BaseException | None) -> None:
    if ended.done():  # cancelled
        return
    if error is None:
        ended.set_result(None)
    else:
        ended.set_exception(error)
