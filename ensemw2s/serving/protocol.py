"""Requests of the OpenAI API: bodies are checked, and become jobs for whoever holds the models.

Written after the public API reference (completions, chat completions, streaming); only `ensemble` goes beyond it.
Options that this endpoint lacks are refused by name, never ignored.
"""

from __future__ import annotations

import random
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ensemw2s.serving.bodies import ErrorBody
from ensemw2s.serving.exchange import ChatMessage, Job
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


def _neutral(value: object) -> object:
    if value not in (None, 0, False, {}, [], "", "none", "auto", {"type": "text"}):
        raise ValueError("is not supported by this endpoint")
    return value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no text: it has half of a surrogate pair") from error
    return text


Unsupported = Annotated[object, AfterValidator(_neutral)]
Text = Annotated[str, AfterValidator(_encodable)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]
Prompt = str | list[int] | list[ChatMessage]


class Body(BaseModel):
    """A JSON object without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class EnsembleOptions(Body):
    """What this endpoint can do beyond the OpenAI API."""

    votes: Annotated[Whole, Field(ge=0)] = Field(0, description="How many of each expert's likeliest tokens to show.")
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None,
        description="Weights of the experts by name, in place of their own; experts without one have no vote.",
    )


class StreamOptions(Body):
    """How a stream ends."""

    include_usage: bool = Field(False, description="Send a last chunk with the counts of tokens.")
    include_obfuscation: bool | None = None


class Common(Body):
    """What both kinds of completion take."""

    model: Text | None = Field(None, description="A name of /v1/models; default: the first.")
    max_tokens: Count | None = Field(None, description="Longest answer in tokens.")
    temperature: Temperature | None = Field(1.0, description="0: the likeliest token.")
    top_p: Share | None = Field(1.0, description="Draw from the likeliest tokens that together have this probability.")
    top_k: Annotated[Whole, Field(ge=0)] | None = Field(0, description="Draw from the k likeliest tokens; 0: from all.")
    n: Count | None = Field(1, description="Answers per prompt.")
    stop: Text | list[Text] | None = Field(None, description="Strings that end the answer and are not part of it.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: Whole | None = Field(None, description="The same seed gives the same answer; default: a random seed.")
    ensemble: EnsembleOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    presence_penalty: Unsupported = None
    frequency_penalty: Unsupported = None
    logit_bias: Unsupported = None

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
        for name, value in (("logprobs", likeliest), ("ensemble.votes", options.votes)):
            if value > limits.likeliest:
                raise ApiError(400, f"{name} is {value}; this endpoint allows {limits.likeliest}", param=name)
        return Job(
            prompt=prompt,
            max_tokens=max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k or 0,
            top_p=self.top_p or 1.0,
            stop=tuple(stop),
            likeliest=likeliest,
            votes=options.votes,
            weights=options.weights,
            tokens=tokens or options.votes > 0,
        )

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
    best_of: Literal[1] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each text or token ids."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if ids := [token for token in given if isinstance(token, int)]:
            return [ids]
        return [one for one in given if not isinstance(one, int)]


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    def plain(self) -> ChatMessage:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(Common):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: Annotated[Whole, Field(ge=0)] | None = Field(
        None, description="How many of the likeliest tokens to show; needs logprobs."
    )
    response_format: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    parallel_tool_calls: bool | None = None
    store: Unsupported = None
    service_tier: Unsupported = None
