"""A model behind the endpoint: jobs come in as plain values, pieces of answers go out with their votes.

What a replica holds: the voter, its engine on a thread, how its prompts are rendered. Knows no Ray and no HTTP. When
the model is replaced, answers that are under way come from the old one to their end.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ensemw2s import faults
from ensemw2s.config import DataConfig, FilesSource
from ensemw2s.data.tokens import begin_ids, tokenize_chat, tokenize_prompts, with_system
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.manifest import MANIFEST, read_manifest
from ensemw2s.ensemble.requests import Generation, Request, as_tokens, check_vocabulary
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.shaping import Guide, NoTokenLeft, Shaping
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters, only_tokens
from ensemw2s.errors import DataError, EnsemW2SError, ModelError, ResourceError
from ensemw2s.labeling.inputs import settings_for
from ensemw2s.serving.exchange import (
    ChatMessage,
    ExpertCard,
    Form,
    Job,
    Likeliest,
    ModelCard,
    Piece,
    Prompt,
    PromptPart,
    Refused,
    Token,
)
from ensemw2s.serving.loop import Decoded, EngineLoop
from ensemw2s.serving.settings import HostedSettings, Limits
from ensemw2s.serving.text import OwnBytes, TextStream, TokenBytes

if TYPE_CHECKING:  # loaded by the first request that wants a form
    from ensemw2s.serving.guides import Guides

log = logging.getLogger("ray.serve")

QUICK = 4096
"""Characters of a prompt that is tokenized at once, in less than a millisecond or two."""

BEGINNING = 12
"""Characters per token that a prompt may have: of a text with more, this much is tokenized first."""


class TooLong(ModelError):
    """A prompt with more tokens than are allowed."""


class WrongForm(ModelError):
    """A form that no answer can have."""


class HostedModel:
    """A voter that answers jobs."""

    def __init__(
        self, settings: HostedSettings, limits: Limits, after_step: Callable[[Engine], None] | None = None
    ) -> None:
        """Loads it.

        Raises:
            EnsemW2SError: If it cannot be loaded.
        """
        self.settings, self.limits = settings, limits
        self._aside = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        self.saved = is_ensemble(settings.path)
        voter = (
            Voter(name=settings.name, ensemble=settings.path)
            if self.saved
            else Voter(name=settings.name, models=[settings.path], weights=[1.0])
        )
        [loaded] = load_voters([voter], precision=settings.precision)
        self.loaded = only_tokens(loaded, settings.path)
        self.rendering = rendering_of(settings, self.loaded)
        drafts = None if settings.speculation == "none" else Speculation(settings.speculation)
        self.loop = EngineLoop(
            Engine(self.loaded.model, slots=settings.slots, tokenizer=self.loaded.tokenizer, speculation=drafts),
            after_step,
        )

    @cached_property
    def card(self) -> ModelCard:
        """What the endpoint says of it."""
        model = self.loaded.model
        known = {m.name: m for m in read_manifest(Path(self.settings.path)).members} if self.saved else {}
        experts = [
            ExpertCard(
                name=name,
                weight=weight,
                alpha=known[name].alpha if name in known else None,
                round=known[name].round if name in known else None,
            )
            for name, weight in zip(model.names, model.weights, strict=True)
        ]
        content = self.settings.version or hashlib.sha256(repr((self.settings.path, experts)).encode()).hexdigest()[:16]
        return ModelCard(self.settings.name, model.context, self.rendering.chat_template, model.rule, experts, content)

    async def answer(self, job: Job, put: Callable[[Piece], None], interval: float = 0.0) -> Refused | None:
        """Answers a job, to its end or until this is cancelled.

        Args:
            job: The job.
            put: Takes the pieces, on the engine's thread.
            interval: Seconds between two pieces; the first token and the end come at once.

        Returns:
            What is wrong with the job, if something is.
        """
        try:
            prompt = await self._prompt_of(job)
            request = self._request(job, prompt)
            if job.form is not None:
                request = replace(request, guide=await self._guide(job.form))
            prefix = self.rendering.answer_prefix if _is_chat(job.prompt) and not self.rendering.chat_template else ""
            text = TextStream(self.loaded.tokenizer, job.stop, prefix)
            details, own = job.tokens or bool(job.likeliest or job.votes), OwnBytes(self._bytes)
            scores = job.prompt_scores is not None
            first = job.echo or scores

            def deliver(decoded: Decoded) -> None:
                nonlocal first
                faults.reach("serving/piece")
                ids = decoded.token_ids
                if job.end_ids and decoded.generation is not None and ids and ids[-1] in job.end_ids:
                    ids = ids[:-1]  # an end token of the request's own, which is no part of the text
                shown, added = text.push(ids, each=details)
                added += [""] * (len(decoded.token_ids) - len(ids)) if details else []
                tokens = self._tokens(decoded.details, added, own) if details and decoded.details else []
                part = self._prompt_part(job, prompt, decoded.details) if first else None
                finish, first = None, False
                if decoded.generation is not None:
                    shown += text.finish(decoded.generation.stop)
                    finish = decoded.generation.finish_reason
                put(Piece(shown, len(decoded.token_ids), len(prompt), tokens, finish, part))

            await self.loop.run(request, deliver, details=details or scores, interval=interval)
        except ResourceError as error:
            log.warning("a request was refused: %s", error)
            return Refused(
                "there is no memory for a prompt and an answer of this length; ask for a shorter answer", 503
            )
        except (WrongForm, NoTokenLeft) as error:
            return Refused(str(error), param=job.form.param if job.form else None)
        except TooLong as error:
            return Refused(str(error), param=_prompt_name(job), code="context_length_exceeded")
        except (DataError, ModelError) as error:
            return Refused(str(error), param=_prompt_name(job))
        except EnsemW2SError as error:
            return Refused(str(error))
        return None

    async def _prompt_of(self, job: Job, *, special: bool = True) -> list[int]:
        """`prompt`; for long texts on a thread, one of them at a time, so that short ones need not wait."""
        size = len(job.prompt) if isinstance(job.prompt, str) else sum(len(_content(part)) for part in job.prompt)
        if size <= QUICK:
            return self.prompt(job, special=special)
        make = partial(self.prompt, job, special=special)
        return await asyncio.get_running_loop().run_in_executor(self._aside, make)

    async def encoded(self, prompt: Prompt, *, special: bool = True) -> PromptPart | Refused:
        """A prompt as text and as token ids.

        Args:
            prompt: The prompt; of token ids the text is told.
            special: Whether a text gets the tokens that the tokenizer puts around one.
        """
        try:
            ids = await self._prompt_of(Job(prompt), special=special)
            check_vocabulary(self.loaded.model, as_tokens(ids), "the list")
        except TooLong as error:
            return Refused(str(error), code="context_length_exceeded")
        except EnsemW2SError as error:
            return Refused(str(error))
        return PromptPart(str(self.loaded.tokenizer.decode(ids)), [], ids)

    def prompt(self, job: Job, *, special: bool = True) -> list[int]:
        """Token ids of a job's prompt.

        Args:
            job: The job.
            special: Whether a text gets the tokens that the tokenizer puts around one.

        Raises:
            ModelError: If it is too long, or a conversation that the model has no template for.
        """
        self._check_beginning(job.prompt)
        if isinstance(job.prompt, str) and not special:
            ids = list(self.loaded.tokenizer(job.prompt, add_special_tokens=False)["input_ids"])
        else:
            ids = self._render(job.prompt)
        if len(ids) > self.limits.prompt_tokens:
            raise TooLong(f"the prompt has {len(ids)} tokens; this endpoint allows {self.limits.prompt_tokens}")
        return ids

    def _check_beginning(self, prompt: Prompt) -> None:
        """Refuses a text that is far too long before all of it is tokenized, which would hold up short requests."""
        most = min(self.limits.prompt_tokens, self.loaded.model.context or self.limits.prompt_tokens)
        text = prompt if isinstance(prompt, str) else "".join(map(_content, prompt))
        if len(text) <= BEGINNING * most:
            return
        begun = self.loaded.tokenizer(text[: BEGINNING * most], add_special_tokens=False)["input_ids"]
        if len(begun) > 2 * most:  # twice, because the last word of the beginning may be cut into other tokens
            raise TooLong(f"the prompt has more than {2 * most} tokens; this endpoint allows {most}")

    def close(self) -> None:
        """Ends the engine's thread after the last answer."""
        self.loop.close()
        self._aside.shutdown(wait=False)

    def _render(self, prompt: Prompt) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if isinstance(prompt, str):
            return tokenize_prompts([prompt.removeprefix(self._begin)], tokenizer, self._as_it_is)[0]
        if not prompt or isinstance(prompt[0], int):
            return [token for token in prompt if isinstance(token, int)]
        messages: list[ChatMessage] = list(prompt)
        if not self.rendering.chat_template:
            if len(messages) != 1 or messages[0]["role"] != "user":
                raise ModelError(f"model {self.settings.name} has no chat template: it takes one message, of the user")
            return tokenize_prompts([messages[0]["content"]], tokenizer, self.rendering)[0]
        if messages[-1]["role"] == "user":
            content = self.rendering.prompt_template.replace("{prompt}", messages[-1]["content"])
            messages[-1] = {**messages[-1], "content": content}
        instead = {} if "developer" in str(tokenizer.chat_template) else {"developer": "system"}
        plain = [{"role": instead.get(one["role"], one["role"]), "content": one["content"]} for one in messages]
        try:
            return tokenize_chat(with_system(plain, self.rendering), tokenizer)
        except Exception as error:  # a template is a program of the model's authors, which refuses as it likes
            raise ModelError(f"the chat template of {self.settings.name} refuses these messages: {error}") from error

    def _request(self, job: Job, prompt: list[int]) -> Request:
        room, context = self.limits.max_tokens, self.loaded.model.context
        if context is not None:
            left = context - len(prompt)
            if left < (1 if job.max_tokens is None else job.max_tokens):
                wanted = f" and an answer of {job.max_tokens}" if job.max_tokens else ""
                raise TooLong(f"a prompt of {len(prompt)} tokens{wanted} does not fit the model's context of {context}")
            room = min(room, left)
        return Request(
            prompt,
            room if job.max_tokens is None else job.max_tokens,
            (*self._ends, *job.end_ids),
            Sampling(job.temperature, job.top_k, job.top_p, job.min_p),
            job.seed,
            job.stop,
            distributions=job.likeliest,
            votes=job.votes,
            weights=job.weights,
            prompt_scores=0 if job.max_tokens == 0 and job.prompt_scores is None else job.prompt_scores,
            shaping=self._shaping(job),
        )

    async def _guide(self, form: Form) -> Guide:
        """Raises WrongForm if an answer cannot have this form."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._aside, lambda: self._guides.make(form))
        except ModelError as error:
            raise WrongForm(str(error)) from error

    @cached_property
    def _guides(self) -> Guides:
        from ensemw2s.serving.guides import Guides

        return Guides(self.loaded.tokenizer, self.loaded.model.vocabulary, self._ends)

    def _shaping(self, job: Job) -> Shaping | None:
        texts = [text for word in job.bad_words for text in (word, f" {word}")]  # as a beginning, and inside a text
        encode = self.loaded.tokenizer
        words = tuple(tuple(encode(text, add_special_tokens=False)["input_ids"]) for text in texts)
        found = Shaping(job.repetition, job.frequency, job.presence, job.bias, job.min_tokens, words)
        return found if found != Shaping() else None

    @cached_property
    def _as_it_is(self) -> DataConfig:
        """How a text is rendered that is a prompt already."""
        return self.rendering.model_copy(
            update={"prompt_template": "{prompt}", "chat_template": False, "system_prompt": None}
        )

    @cached_property
    def _begin(self) -> str:
        """Text of the tokens before a prompt: a harness that decodes its tokens sends it, and it is not added twice."""
        return str(self.loaded.tokenizer.decode(begin_ids(self.loaded.tokenizer, self._as_it_is)))

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return self.loaded.ends(self.rendering)

    def _tokens(self, details: Generation, added: list[str], own: OwnBytes) -> list[Token]:
        found = []
        for i, text in enumerate(added):
            shown, raw = own.push(details.token_ids[i], text)
            token = Token(
                details.token_ids[i],
                text,
                shown,
                raw,
                _finite(details.logprobs[i]),
                float(details.agreement[i]),
                float(details.entropy[i]),
                [],
                [],
            )
            if details.top_tokens is not None and details.top_logprobs is not None:
                top = self._likeliest(details.top_tokens[i], details.top_logprobs[i], token)
                if all(one[0] != token.id for one in top):
                    top.append((token.id, shown, raw, token.logprob))
                token.likeliest.extend(top)
            if details.vote_tokens is not None and details.vote_logprobs is not None:
                pairs = zip(details.vote_tokens[i], details.vote_logprobs[i], strict=True)
                token.votes.extend(self._likeliest(ids, logprobs, token) for ids, logprobs in pairs)
            found.append(token)
        return found

    def _prompt_part(self, job: Job, prompt: list[int], details: Generation | None) -> PromptPart:
        """The prompt as it goes back: its text, and its tokens with their scores."""
        stream, own = TextStream(self.loaded.tokenizer), OwnBytes(self._bytes)
        _, added = stream.push(prompt)
        text = job.prompt if isinstance(job.prompt, str) else "".join(added)
        scores = details.prompt if details is not None else None
        if scores is None:
            return PromptPart(text, [], prompt)
        tokens = []
        for i, (token, new) in enumerate(zip(prompt, added, strict=True)):
            found = Token(token, new, *own.push(token, new), 0.0, 1.0, 0.0, [], [])
            if i:
                found = found._replace(logprob=_finite(scores.logprobs[i - 1]))
                found.likeliest.extend(self._likeliest(scores.top_tokens[i - 1], scores.top_logprobs[i - 1], found))
                if found.likeliest and all(one[0] != token for one in found.likeliest):
                    found.likeliest.append((token, found.shown, found.bytes, found.logprob))
            tokens.append(found)
        return PromptPart(text, tokens, prompt)

    def _likeliest(self, ids: np.ndarray, logprobs: np.ndarray, chosen: Token) -> Likeliest:
        """Tokens that are likely at a place; the chosen one among them is shown as it is in the answer."""
        found: Likeliest = []
        for token, logprob in zip(ids.tolist(), logprobs.tolist(), strict=True):
            shown, raw = self._bytes(token)
            same = token == chosen.id
            found.append(
                (token, chosen.shown if same else shown, chosen.bytes if same else list(raw), _finite(logprob))
            )
        return found

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self.loaded.tokenizer)


LOWEST = -9999.0
"""What stands for the log-probability of what is impossible: JSON has no infinity."""


def _finite(logprob: float) -> float:
    return max(float(logprob), LOWEST)


def _is_chat(prompt: Prompt) -> bool:
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)


def _prompt_name(job: Job) -> str:
    return "messages" if _is_chat(job.prompt) else "prompt"


def _content(part: int | ChatMessage) -> str:
    return part["content"] if isinstance(part, dict) else ""


def is_ensemble(path: str) -> bool:
    """Whether a folder holds an ensemble, not one model."""
    return (Path(path).expanduser() / MANIFEST).is_file()


def rendering_of(settings: HostedSettings, loaded: Loaded) -> DataConfig:
    """How messages become prompts: as options say, else as in the run that the model lies in."""
    found = settings_for(settings.path, FilesSource(paths=["-"]), {"prompt_template": settings.prompt_template})
    chat = settings.chat_template
    if chat is None:
        chat = found.data.chat_template if found.run is not None else bool(loaded.tokenizer.chat_template)
    if chat and not loaded.tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {settings.path} has no chat template; leave out chat_template")
    return found.data.model_copy(update={"chat_template": chat})
