"""One request's answers: their pieces come in as they are decoded, a JSON body or a stream of events goes out.

Apart from the routes because this runs for every token, and they run once per request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Protocol

from ensemw2s.serving import bodies
from ensemw2s.serving.bodies import Choice, Completion, Head, Usage
from ensemw2s.serving.exchange import Job, ModelCard, Piece, Prompt, PromptPart, Refused, Token
from ensemw2s.serving.guard import incident
from ensemw2s.serving.protocol import ApiError, Common

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
Item = tuple[int, Piece]
"""Number of the answer, and a piece of it."""


class Backend(Protocol):
    """Whoever holds the models."""

    async def cards(self) -> dict[str, ModelCard]:
        """What each model is, by name; the first is the default."""

    async def answer(self, model: str, job: Job, put: Callable[[Piece], None]) -> Refused | None:
        """Hands the pieces of an answer to `put`, in the event loop; returns after the last one, or what is wrong.

        Raises:
            ApiError: If it cannot go on.
        """

    async def encoded(self, model: str, prompt: Prompt, *, special: bool) -> PromptPart | Refused:
        """A prompt as text and as token ids; `special`: whether a text gets the tokens around it."""

    async def metrics(self) -> str:
        """Figures in Prometheus' text format."""

    async def ready(self) -> bool:
        """Whether every model can answer."""


class Counted(Protocol):
    """Where answers under way are counted."""

    open: int


class Answers:
    """The answers to one request, while they are made."""

    def __init__(self, backend: Backend, counted: Counted, model: str, jobs: Sequence[Job], seconds: float) -> None:
        """Args: who answers; where answers are counted; the model; a job for each answer; seconds they may take."""
        self._backend, self._counted, self._model, self._seconds = backend, counted, model, seconds
        self.jobs = jobs
        self._queue: asyncio.Queue[Item | ApiError] = asyncio.Queue()

    async def pieces(self) -> AsyncGenerator[Item]:
        """Pieces of all answers as they come; closing this cancels the answers that are not done.

        Raises:
            ApiError: If an answer fails, or the time is over.
        """
        left = len(self.jobs)
        self._counted.open += left
        late = ApiError(504, f"the request took more than {self._seconds:g} seconds", code="timeout")
        timer = asyncio.get_running_loop().call_later(self._seconds, self._queue.put_nowait, late)
        tasks = [asyncio.create_task(self._answer(i)) for i in range(left)]
        try:
            while left:
                item = await self._queue.get()
                if isinstance(item, ApiError):
                    raise item
                yield item
                left -= item[1].finish is not None
        finally:
            timer.cancel()
            self._counted.open -= len(self.jobs)
            if left:
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, i: int) -> None:
        try:
            refused = await self._backend.answer(
                self._model, self.jobs[i], lambda piece: self._queue.put_nowait((i, piece))
            )
        except ApiError as error:
            self._queue.put_nowait(error)
        except Exception as error:
            self._queue.put_nowait(incident(error, "decoding failed"))
        else:
            if refused is not None:
                retry_after = 1 if refused.status == 503 else None
                self._queue.put_nowait(
                    ApiError(
                        refused.status, refused.message, param=refused.param, code=refused.code, retry_after=retry_after
                    )
                )


class Reply:
    """One request's answers as the API has them."""

    def __init__(self, answers: Answers, body: Common, kind: str, card: ModelCard, logprobs: int | None) -> None:
        """Args: the answers; the request; `cmpl` or `chatcmpl`; the model; how many likeliest tokens are shown."""
        self.body, self.card, self.logprobs = body, card, logprobs
        self.chat = kind == "chatcmpl"
        self.echo = bool(getattr(body, "echo", False))
        self.count = len(answers.jobs)
        self.id, self.created = bodies.new_id(kind), bodies.created()
        self.offsets = [0] * self.count
        self.prompt_tokens, self.completion_tokens = [0] * self.count, 0
        self.items = answers.pieces()

    async def whole(self) -> Completion:
        """The body of an answer that is not streamed."""
        text, finish = [""] * self.count, [""] * self.count
        tokens: list[list[Token]] = [[] for _ in range(self.count)]
        prompts: list[PromptPart | None] = [None] * self.count
        async with aclosing(self.items) as items:
            async for i, piece in items:
                self._count(i, piece)
                text[i] += piece.text
                tokens[i] += piece.tokens
                prompts[i] = prompts[i] or piece.prompt
                finish[i] = piece.finish or ""
        choices = []
        for i in range(self.count):
            choice = self._choice(i, tokens[i], finish[i], prompts[i])
            if self.chat:
                choice["message"] = {"role": "assistant", "content": text[i], "refusal": None}
            else:
                choice["text"] = self._echoed(prompts[i]) + text[i]
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
        head = "data: " + _encode(self._head(chunk=True))[:-1] + ',"choices":['
        async with aclosing(self.items) as items:
            try:
                if self.chat:
                    for i in range(self.count):
                        opening = {"index": i, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                        yield f"{head}{_encode(opening)}]}}\n\n"
                yield f"{head}{_encode(self._delta(*first))}]}}\n\n"
                async for i, piece in items:
                    yield f"{head}{_encode(self._delta(i, piece))}]}}\n\n"
                if self.body.stream_options and self.body.stream_options.include_usage:
                    yield f'{head}],"usage":{_encode(self._usage())}}}\n\n'
            except ApiError as error:
                yield f"data: {_encode(error.body())}\n\n"
            yield "data: [DONE]\n\n"

    def _delta(self, i: int, piece: Piece) -> Choice:
        self._count(i, piece)
        choice = self._choice(i, piece.tokens, piece.finish, piece.prompt)
        if self.chat:
            choice["delta"] = {"content": piece.text} if piece.text or not piece.finish else {}
        else:
            choice["text"] = self._echoed(piece.prompt) + piece.text
        return choice

    def _echoed(self, prompt: PromptPart | None) -> str:
        return prompt.text if prompt is not None and self.echo else ""

    def _count(self, i: int, piece: Piece) -> None:
        self.prompt_tokens[i] = piece.prompt_tokens
        self.completion_tokens += piece.count

    def _choice(self, i: int, tokens: list[Token], finish: str | None, prompt: PromptPart | None) -> Choice:
        choice: Choice = {"index": i, "finish_reason": finish, "logprobs": None}
        if prompt is not None and self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = bodies.prompt_logprobs(prompt.tokens)
        if self.body.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
            if prompt is not None:
                choice["prompt_token_ids"] = prompt.ids
        if self.logprobs is not None:
            if self.chat:
                choice["logprobs"] = bodies.chat_logprobs(tokens)
            else:
                begins = prompt is not None and self.echo
                shown = [*prompt.tokens, *tokens] if prompt is not None and self.echo else tokens
                choice["logprobs"] = bodies.text_logprobs(shown, self.logprobs, self.offsets[i], begins=begins)
                self.offsets[i] += sum(len(token.text) for token in shown)
        if self.body.ensemble is not None and self.body.ensemble.votes:
            choice["ensemble"] = bodies.votes(tokens, self.card)
        return choice

    def _head(self, *, chunk: bool) -> Head:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.card.name,
            "system_fingerprint": f"fp_{self.card.version}",
        }

    def _usage(self) -> Usage:
        each = self.body.n or 1  # a prompt counts once, however many answers it has
        return bodies.usage(sum(self.prompt_tokens[::each]), self.completion_tokens)
