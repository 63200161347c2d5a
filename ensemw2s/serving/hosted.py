"""A model behind the endpoint: jobs come in as plain values, pieces of answers go out with their votes.

What a replica holds: the voter, its engine on a thread, how its prompts are rendered. Knows no Ray and no HTTP. When
the model is replaced, answers that are under way come from the old one to their end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers.utils import cached_file

from ensemw2s import faults
from ensemw2s.config import DataConfig, FilesSource
from ensemw2s.data.tokens import tokenize_prompts
from ensemw2s.ensemble.engine import Engine
from ensemw2s.ensemble.manifest import MANIFEST, read_manifest
from ensemw2s.ensemble.requests import Generation, Request
from ensemw2s.ensemble.sampling import Sampling
from ensemw2s.ensemble.speculation import Speculation
from ensemw2s.ensemble.voter import Loaded, Voter, load_voters
from ensemw2s.errors import EnsemW2SError, ModelError, ResourceError
from ensemw2s.labeling.inputs import settings_for
from ensemw2s.models.hub import locate
from ensemw2s.serving.exchange import ChatMessage, ExpertCard, Job, Likeliest, ModelCard, Piece, Refused, Token
from ensemw2s.serving.loop import Decoded, EngineLoop
from ensemw2s.serving.settings import HostedSettings, Limits
from ensemw2s.serving.text import TextStream


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
        self.saved = is_ensemble(settings.path)
        voter = (
            Voter(name=settings.name, ensemble=settings.path)
            if self.saved
            else Voter(name=settings.name, models=[settings.path], weights=[1.0])
        )
        [self.loaded] = load_voters([voter], precision=settings.precision)
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
        return ModelCard(self.settings.name, model.context, self.rendering.chat_template, model.rule, experts)

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
            prompt = self.prompt(job)
            request = self._request(job, prompt)
            chat = isinstance(job.prompt, list) and bool(job.prompt) and isinstance(job.prompt[0], dict)
            prefix = self.rendering.answer_prefix if chat and not self.rendering.chat_template else ""
            text = TextStream(self.loaded.tokenizer, job.stop, prefix)
            details = job.tokens or bool(job.likeliest or job.votes)

            def deliver(decoded: Decoded) -> None:
                faults.reach("serving/piece")
                shown, added = text.push(decoded.token_ids, each=details)
                tokens = self._tokens(job, decoded.details, added) if decoded.details else []
                finish = None
                if decoded.generation is not None:
                    shown += text.finish(decoded.generation.stop)
                    finish = decoded.generation.finish_reason
                put(Piece(shown, len(decoded.token_ids), len(prompt), tokens, finish))

            await self.loop.run(request, deliver, details=details, interval=interval)
        except ResourceError as error:
            return Refused(str(error), 503)
        except EnsemW2SError as error:
            return Refused(str(error))
        return None

    def prompt(self, job: Job) -> list[int]:
        """Token ids of a job's prompt.

        Raises:
            ModelError: If it is too long, or a conversation that the model has no template for.
        """
        ids = self._render(job.prompt)
        if len(ids) > self.limits.prompt_tokens:
            raise ModelError(f"the prompt has {len(ids)} tokens; this endpoint allows {self.limits.prompt_tokens}")
        return ids

    def close(self) -> None:
        """Ends the engine's thread after the last answer."""
        self.loop.close()

    def _render(self, prompt: str | list[int] | list[ChatMessage]) -> list[int]:
        tokenizer = self.loaded.tokenizer
        if isinstance(prompt, str):
            return tokenize_prompts([prompt], tokenizer, self._as_it_is)[0]
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
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            text = str(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program of the model's authors, which refuses as it likes
            raise ModelError(f"the chat template of {self.settings.name} refuses these messages: {error}") from error
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def _request(self, job: Job, prompt: list[int]) -> Request:
        room = self.limits.max_tokens
        if self.loaded.model.context is not None:
            room = min(room, max(1, self.loaded.model.context - len(prompt)))
        if job.max_tokens is not None and job.max_tokens > self.limits.max_tokens:
            raise ModelError(f"max_tokens is {job.max_tokens}; this endpoint allows {self.limits.max_tokens}")
        return Request(
            prompt,
            job.max_tokens or room,
            self._ends,
            Sampling(job.temperature, job.top_k, job.top_p),
            job.seed,
            job.stop,
            distributions=job.likeliest,
            votes=job.votes,
            weights=job.weights,
        )

    @cached_property
    def _as_it_is(self) -> DataConfig:
        """How a text is rendered that is a prompt already."""
        return self.rendering.model_copy(update={"prompt_template": "{prompt}", "chat_template": False})

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        """The tokenizer's end token, and those that the model's generation config names beside it."""
        more = None
        if not self.saved:
            place = locate(self.settings.path)
            file = cached_file(
                place.path, "generation_config.json", _raise_exceptions_for_missing_entries=False, **place.options()
            )
            more = json.loads(Path(file).read_text(encoding="utf-8")).get("eos_token_id") if file else None
        ends = [more] if isinstance(more, int) else list(more or [])
        return tuple(dict.fromkeys([self.loaded.eos_id, *ends]))

    def _tokens(self, job: Job, details: Generation, added: list[str]) -> list[Token]:
        found = []
        for i, text in enumerate(added):
            top: Likeliest = []
            if details.top_tokens is not None and details.top_logprobs is not None:
                top = self._likeliest(details.top_tokens[i], details.top_logprobs[i])
            votes: list[Likeliest] = []
            if details.vote_tokens is not None and details.vote_logprobs is not None:
                votes = [
                    self._likeliest(ids, logprobs)
                    for ids, logprobs in zip(details.vote_tokens[i], details.vote_logprobs[i], strict=True)
                ]
            found.append(
                Token(
                    details.token_ids[i],
                    text,
                    float(details.logprobs[i]),
                    float(details.agreement[i]),
                    float(details.entropy[i]),
                    top,
                    votes,
                )
            )
        return found

    def _likeliest(self, ids: np.ndarray, logprobs: np.ndarray) -> Likeliest:
        texts = [str(self.loaded.tokenizer.decode([token])) for token in ids.tolist()]
        return list(zip(ids.tolist(), texts, logprobs.tolist(), strict=True))


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
