"""Requests of the OpenAI API: bodies are checked, and become jobs for whoever holds the models.

Written after the public API reference (completions, chat completions, streaming); only `ensemble` goes beyond it.
Options that this endpoint lacks are refused by name, never ignored.
"""

from __future__ import annotations

import json
import random
from typing import Annotated, Literal

from pydantic import Field

from ensemw2s.serving.bodies import ErrorBody
from ensemw2s.serving.exchange import Form, Job, Prompt
from ensemw2s.serving.fields import (
    Bias,
    Body,
    Count,
    Flag,
    Hint,
    Length,
    Limit,
    Message,
    NoTools,
    Number,
    Penalty,
    Share,
    Temperature,
    Text,
    Token,
    Unsupported,
    Whole,
)
from ensemw2s.serving.forms import FORMS, ResponseFormat, StructuredOutputs
from ensemw2s.serving.settings import Limits

SEEDS = 2**63


class ApiError(Exception):
    """An answer that is an error.

    Attributes:
        status: HTTP status.
        message: For the user.
        param: The parameter that is wrong.
        code: OpenAI's code, where there is one.
        retry_after: Seconds after which to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    def body(self) -> ErrorBody:
        """The JSON body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        param = _sendable(self.param) if self.param is not None else None
        return {"error": {"message": _sendable(self.message), "type": kind, "param": param, "code": self.code}}


def _sendable(text: str) -> str:
    """The text without halves of surrogate pairs, which no encoding has."""
    return text.encode(errors="replace").decode()


class EnsembleOptions(Body):
    """What this endpoint can do beyond the OpenAI API."""

    votes: Annotated[Whole, Field(ge=0)] = Field(0, description="How many of each expert's likeliest tokens to show.")
    weights: dict[str, Annotated[Number, Field(ge=0)]] | None = Field(
        None,
        description="Weights of the experts by name, in place of their own; experts without one have no vote.",
    )


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: Flag = Field(False, description="Send a last chunk with the counts of tokens.")
    include_obfuscation: Hint = None
    continuous_usage_stats: Unsupported = None


class Common(Body):
    """What both kinds of completion take."""

    model: Text | None = Field(None, description="A name of /v1/models; default: the first.")
    max_tokens: Length = Field(
        None, description="Longest answer in tokens; 0: none, for the prompt's scores; -1: as long as allowed."
    )
    prompt_logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="Score the prompt's tokens, and show this many of the likeliest at each."
    )
    temperature: Temperature | None = Field(1.0, description="0: the likeliest token.")
    top_p: Share | None = Field(
        1.0, description="Draw from the likeliest tokens that together have this probability; 0: the likeliest token."
    )
    top_k: Limit | None = Field(0, description="Draw from the k likeliest tokens; 0 or -1: from all.")
    n: Count | None = Field(1, description="Answers per prompt.")
    stop: Text | list[Text] | None = Field(None, description="Strings that end the answer and are not part of it.")
    stream: Flag | None = False
    stream_options: StreamOptions | None = None
    seed: Whole | None = Field(None, description="The same seed gives the same answer; default: a random seed.")
    ensemble: EnsembleOptions | None = None
    user: Hint = None
    metadata: Hint = None
    safety_identifier: Hint = None
    prompt_cache_key: Hint = None
    prompt_cache_options: Hint = None
    prompt_cache_retention: Hint = None
    service_tier: Unsupported = None
    store: Unsupported = None
    min_p: Share | None = Field(
        0.0, description="Draw from tokens with at least this share of the likeliest one's probability."
    )
    presence_penalty: Penalty | None = Field(0.0, description="Subtracted for tokens that are in the answer.")
    frequency_penalty: Penalty | None = Field(0.0, description="Subtracted as often as a token is in the answer.")
    repetition_penalty: Annotated[Number, Field(gt=0, le=10)] | None = Field(
        1.0, description="Factor of the log-probabilities of tokens in prompt or answer."
    )
    logit_bias: dict[str, Bias] | None = Field(None, description="Added to the log-probabilities of tokens, by id.")
    stop_token_ids: list[Token] | None = Field(None, description="Tokens that end the answer and are no part of it.")
    min_tokens: Annotated[Whole, Field(ge=0)] | None = Field(0, description="No end before so many tokens.")
    bad_words: list[Text] | None = Field(None, description="Texts that may not come.")
    response_format: ResponseFormat | None = Field(None, description="Form of the answer: text, JSON, or a schema.")
    structured_outputs: StructuredOutputs | None = Field(None, description="Form of the answer, as vLLM has it.")
    guided_json: dict[str, object] | Text | None = Field(
        None, description="The answer is JSON of this schema, as an object or as text."
    )
    guided_regex: Text | None = Field(None, description="The answer matches this regular expression.")
    guided_choice: list[Text] | None = Field(None, min_length=1, description="The answer is one of these.")
    guided_grammar: Text | None = Field(None, description="The answer is a sentence of this grammar, as Lark has it.")
    return_token_ids: Flag | None = Field(False, description="Add the ids of prompt and answer.")

    @property
    def echoes(self) -> bool:
        """Whether the prompt comes back with the answer."""
        return False

    def job(self, prompt: Prompt, *, likeliest: int, tokens: bool, max_tokens: int | None, limits: Limits) -> Job:
        """The job of one answer; `seeds` gives each its own.

        Raises:
            ApiError: If an option is over a limit.
        """
        options = self.ensemble or EnsembleOptions()
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        if len(stop) > limits.stop_strings:
            raise ApiError(
                400, f"stop has {len(stop)} strings; this endpoint allows {limits.stop_strings}", param="stop"
            )
        for text in stop:
            if not 0 < len(text) <= limits.stop_characters:
                allowed = f"this endpoint allows 1 to {limits.stop_characters} characters"
                raise ApiError(400, f"stop has a string of {len(text)} characters; {allowed}", param="stop")
        scores = likeliest if self.echoes and tokens else None
        if self.prompt_logprobs is not None:
            scores = max(scores or 0, self.prompt_logprobs)
        asked = {"logprobs": likeliest, "ensemble.votes": options.votes, "prompt_logprobs": scores or 0}
        for name, value in asked.items():
            if value > limits.likeliest:
                raise ApiError(400, f"{name} is {value}; this endpoint allows {limits.likeliest}", param=name)
        _check_size(prompt, limits.prompt_bytes)
        return Job(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=0.0 if self.top_p == 0 else 1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            stop=tuple(stop),
            likeliest=likeliest,
            votes=options.votes,
            weights=options.weights,
            tokens=tokens or options.votes > 0 or bool(self.return_token_ids),
            echo=self.echoes or bool(self.return_token_ids),
            prompt_scores=scores,
            min_p=self.min_p or 0.0,
            bias=self._bias(limits),
            presence=self.presence_penalty or 0.0,
            frequency=self.frequency_penalty or 0.0,
            repetition=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            min_tokens=self.min_tokens or 0,
            end_ids=tuple(self.stop_token_ids or ()),
            bad_words=tuple(self._words(limits)),
            form=self._form(limits),
        )

    def _form(self, limits: Limits) -> Form | None:
        """What the answer has to look like, however it was asked for."""
        schema, outputs = self.response_format, self.structured_outputs or StructuredOutputs()
        asked: list[tuple[str, str, object]] = [
            ("response_format", "JSON schema", schema.wanted() if schema else None),
            ("structured_outputs", "JSON schema", {"type": "object"} if outputs.json_object else None),
        ]
        for place, given in (("guided_", self._guided()), ("structured_outputs.", outputs.guided())):
            asked += [(place + name, kind, value) for name, kind, value in given]
        found = [(param, kind, value) for param, kind, value in asked if value is not None]
        if not found:
            return None
        param, kind, value = found[0]
        if len(found) > 1:
            raise ApiError(400, f"{param} and {found[1][0]} ask for two forms of the answer; send one", param=param)
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) > limits.form_characters:
            raise ApiError(
                400, f"{param} has {len(text)} characters; this endpoint allows {limits.form_characters}", param=param
            )
        return Form(kind, text, param)

    def _guided(self) -> list[tuple[str, str, object]]:
        given = (self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        return [(name, kind, value) for (name, kind), value in zip(FORMS.items(), given, strict=True)]

    def _bias(self, limits: Limits) -> dict[int, float]:
        given = self.logit_bias or {}
        if len(given) > limits.biased_tokens:
            raise ApiError(
                400, f"logit_bias has {len(given)} tokens; this endpoint allows {limits.biased_tokens}",
                param="logit_bias",
            )  # fmt: skip
        if wrong := [key for key in given if not (key.isascii() and key.isdigit() and len(key) < 10)]:
            raise ApiError(400, f"logit_bias has the key {wrong[0][:40]!r}; expected token ids", param="logit_bias")
        return {int(key): value for key, value in given.items()}

    def _words(self, limits: Limits) -> list[str]:
        words = self.bad_words or []
        if len(words) > limits.biased_tokens or any(not 0 < len(word) <= limits.stop_characters for word in words):
            allowed = f"{limits.biased_tokens} texts of 1 to {limits.stop_characters} characters"
            raise ApiError(400, f"bad_words: this endpoint allows {allowed}", param="bad_words")
        if len(self.stop_token_ids or ()) > limits.biased_tokens:
            raise ApiError(
                400, f"stop_token_ids: this endpoint allows {limits.biased_tokens} tokens", param="stop_token_ids"
            )
        return words

    def seeds(self, count: int) -> list[int]:
        """A seed for each answer."""
        first = random.randrange(SEEDS) if self.seed is None else self.seed % SEEDS
        return [(first + i) % SEEDS for i in range(count)]


class CompletionRequest(Common):
    """Body of /v1/completions."""

    prompt: Text | list[Text] | list[Whole] | list[list[Whole]]
    logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="How many of the likeliest tokens to show at each place."
    )
    best_of: Unsupported = None
    echo: Flag | None = Field(False, description="Put the prompt before the answer, with its log-probabilities.")
    suffix: Unsupported = None

    @property
    def echoes(self) -> bool:
        """Whether the prompt comes back with the answer."""
        return bool(self.echo)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each text or token ids."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if ids := [token for token in given if isinstance(token, int)]:
            return [ids]
        return [one for one in given if not isinstance(one, int)]


def _check_size(prompt: Prompt, most: int) -> None:
    """Raises ApiError for a prompt that nobody needs to tokenize to see that it is too long."""
    if isinstance(prompt, str):
        size = len(prompt.encode())
    else:
        size = sum(len(part["content"].encode()) if isinstance(part, dict) else 1 for part in prompt)
    if size > most:
        raise ApiError(
            400, f"the prompt has {size} bytes; this endpoint allows {most}", param="prompt",
            code="context_length_exceeded",
        )  # fmt: skip


class ChatRequest(Common):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Length = Field(None, description="The newer name of max_tokens.")
    logprobs: Flag | None = False
    top_logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="How many of the likeliest tokens to show; needs logprobs."
    )
    tools: NoTools = None
    tool_choice: Unsupported = None
    parallel_tool_calls: Hint = None
    functions: NoTools = None
    function_call: Unsupported = None
    audio: Unsupported = None
    modalities: Unsupported = None
    moderation: Unsupported = None
    prediction: Hint = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None


class TokenizeRequest(Body):
    """Body of /tokenize: a text, or a chat."""

    model: Text | None = None
    prompt: Text | None = None
    messages: list[Message] | None = None
    add_special_tokens: Flag | None = Field(True, description="Add what the tokenizer puts around a text.")
    add_generation_prompt: Literal[True, None] = None

    def asked(self, limits: Limits) -> Prompt:
        """The text, or the messages.

        Raises:
            ApiError: If there is neither, or too much.
        """
        if (self.prompt is None) == (self.messages is None):
            raise ApiError(400, "send either prompt or messages", param="prompt")
        found: Prompt = self.prompt if self.prompt is not None else [one.plain() for one in self.messages or []]
        _check_size(found, limits.prompt_bytes)
        return found


class DetokenizeRequest(Body):
    """Body of /detokenize."""

    model: Text | None = None
    tokens: list[Token]
