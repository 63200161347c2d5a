"""The models as the front sees them: deployments of Serve, whose replicas may die.

An answer is a pure function of the request and its seed: when a replica dies, another one takes over, and the answer
goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from ensemw2s.serving.exchange import LOST, Job, ModelCard, Piece, Prompt, PromptPart, Refused
from ensemw2s.serving.link import Inbox
from ensemw2s.serving.protocol import ApiError

CARD_SECONDS = 2.0
"""How long the front believes what a model said of itself."""

UP_SECONDS = 10.0
"""How long the front waits for a model to say it."""

LATE_SECONDS = 10.0
"""How long the last pieces of an answer may come after the call that they belong to has ended."""


class Models:
    """Sends jobs to deployments and takes the pieces that come back."""

    def __init__(self, handles: dict[str, DeploymentHandle], retries: int, inbox: Inbox) -> None:
        """Args: handles by name, the default first; other replicas that may take over; where pieces arrive."""
        self._handles, self._retries, self._inbox = handles, retries, inbox
        self._answer = {name: handle.answer for name, handle in handles.items()}
        self._cards: dict[str, tuple[float, ModelCard]] = {}
        self._ending: set[asyncio.Task[Any]] = set()

    async def cards(self) -> dict[str, ModelCard]:
        """See `reply.Backend`."""
        return {name: await self._card_of(name) for name in self._handles}

    async def answer(self, model: str, job: Job, put: Callable[[Piece], None]) -> Refused | None:
        """See `reply.Backend`."""
        taken = _Taken(put)
        for again in range(self._retries + 1):
            taken.begin_again()
            with self._inbox.expect(taken.take) as number:
                call = self._answer[model].remote(job, await self._inbox.reply(number))
                response = cast("DeploymentResponse[Refused | None]", call)  # the method is no generator
                try:
                    refused = await self._ended(response, taken.finished)
                except BackPressureError as error:
                    raise ApiError(429, "the model's queue is full", code="overloaded", retry_after=1) from error
                except DeploymentUnavailableError as error:
                    raise ApiError(503, f"model {model} is not up", retry_after=5) from error
                except (RayActorError, ReplicaUnavailableError) as error:
                    if again == self._retries:
                        raise ApiError(
                            503, f"replicas of model {model} died {again + 1} times", retry_after=5
                        ) from error
                else:
                    if taken.finished.done() or (refused is not None and refused.status != LOST):
                        return refused
        raise ApiError(503, f"pieces of the answer were lost {self._retries + 1} times", retry_after=5)

    async def encoded(self, model: str, prompt: Prompt, *, special: bool) -> PromptPart | Refused:
        """See `reply.Backend`."""
        try:
            async with asyncio.timeout(UP_SECONDS):
                return await self._handles[model].encoded.remote(prompt, special)
        except BackPressureError as error:
            raise ApiError(429, "the model's queue is full", code="overloaded", retry_after=1) from error
        except (TimeoutError, RayActorError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            raise ApiError(503, f"model {model} is not up", retry_after=5) from error

    async def _ended(
        self, response: DeploymentResponse[Refused | None], finished: asyncio.Future[None]
    ) -> Refused | None:
        """Waits for the last piece, or for the end of a call that has none."""
        call = asyncio.ensure_future(_result(response))
        either: set[asyncio.Future[Any]] = {call, finished}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if finished.done():  # the call has only its own end left
                return None
            if (refused := call.result()) is None:
                await asyncio.wait({finished}, timeout=LATE_SECONDS)
            return refused
        except asyncio.CancelledError:
            response.cancel()
            raise
        finally:
            if not call.done():
                self._ending.add(call)
                call.add_done_callback(self._forget)

    def _forget(self, call: asyncio.Task[Any]) -> None:
        self._ending.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, so that nobody reports it

    async def metrics(self) -> str:
        """See `reply.Backend`."""
        from ensemw2s.serving.metrics import merged

        calls = [
            handle.broadcast("metrics").results_async(timeout_s=UP_SECONDS, return_exceptions=True)
            for handle in self._handles.values()
        ]
        pages = [page for found in await asyncio.gather(*calls) for page in found]
        return merged([page for page in pages if not isinstance(page, BaseException)])

    async def ready(self) -> bool:
        """See `reply.Backend`."""
        self._cards = {}
        try:
            await self.cards()
        except ApiError:
            return False
        return True

    async def _card_of(self, name: str) -> ModelCard:
        known, now = self._cards.get(name), time.monotonic()
        if known is None or now - known[0] > CARD_SECONDS:
            if known is not None:
                self._cards[name] = now, known[1]  # one request asks; the others need not wait for it
            try:
                async with asyncio.timeout(UP_SECONDS):
                    known = time.monotonic(), await self._handles[name].card.remote()
            except (TimeoutError, RayActorError, DeploymentUnavailableError, BackPressureError) as error:
                if known is None:
                    raise ApiError(503, f"model {name} is not up", retry_after=5) from error
            self._cards[name] = known
        return known[1]


async def _result(response: DeploymentResponse[Refused | None]) -> Refused | None:
    return await response


class _Taken:
    """Passes on the pieces of an answer, without what a replica that died had sent before."""

    def __init__(self, put: Callable[[Piece], None]) -> None:
        self._put = put
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._text, self._tokens, self._prompt_out = 0, 0, False  # what has gone out
        self._skip_text, self._skip_tokens = 0, 0  # of it, what is still to come again

    def begin_again(self) -> None:
        """What comes next is the answer from its beginning."""
        self._skip_text, self._skip_tokens = self._text, self._tokens

    def take(self, piece: Piece) -> None:
        """Takes the next piece."""
        if self._skip_text or self._skip_tokens:
            text, count = min(self._skip_text, len(piece.text)), min(self._skip_tokens, piece.count)
            self._skip_text, self._skip_tokens = self._skip_text - text, self._skip_tokens - count
            piece = replace(piece, text=piece.text[text:], count=piece.count - count, tokens=piece.tokens[count:])
        if piece.prompt is not None:
            if self._prompt_out:
                piece = replace(piece, prompt=None)
            self._prompt_out = True
        self._text, self._tokens = self._text + len(piece.text), self._tokens + piece.count
        self._put(piece)
        if piece.finish is not None and not self.finished.done():
            self.finished.set_result(None)
