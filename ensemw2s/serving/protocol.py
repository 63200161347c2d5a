"""The shapes of the OpenAI API: bodies of requests, checked, become jobs; answers become choices, chunks and errors.

Written after the public API reference (completions, chat completions, models, streaming); beyond it is `ensemble`. What
is not built is refused by name, never ignored.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ensemw2s.serving.jobs import Facts, Job, Likeliest, Token
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

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        message, param = (text and text.encode(errors="replace").decode() for text in (self.message, self.param))
        return {"error": {"message": message, "type": kind, "param": param, "code": self.code}}


def _neutral(value: Any) -> Any:
    if value not in (None, 0, False, {}, [], "", "none", "auto", {"type": "text"}):
        raise ValueError("is not supported by this endpoint")
    return value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no text: it has half of a surrogate pair") from error
    return text


Unsupported = Annotated[Any, AfterValidator(_neutral)]
Text = Annotated[str, AfterValidator(_encodable)]
Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]


class Shape(BaseModel):
    """A JSON object without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class EnsembleOptions(Shape):
    """What this endpoint can do beyond the OpenAI API."""

    votes: Annotated[Whole, Field(ge=0)] = Field(0, description="Show so many of each expert's likeliest tokens.")
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = Field(
        None, description="Weights of the experts by name in place of their own; experts not named have none."
    )


class StreamOptions(Shape):
    """How a stream ends."""

    include_usage: bool = Field(False, description="Send a last chunk with the counts of tokens.")
    include_obfuscation: bool | None = None


class Common(Shape):
    """What both kinds of completion take."""

    model: Text | None = Field(None, description="A name of /v1/models; none: the first.")
    max_tokens: Count | None = Field(None, description="Longest answer in tokens.")
    temperature: Temperature | None = Field(1.0, description="0: the likeliest token.")
    top_p: Share | None = Field(1.0, description="Draw from the likeliest tokens of this probability together.")
    top_k: Annotated[Whole, Field(ge=0)] | None = Field(0, description="Draw from so many; 0: all.")
    n: Count | None = Field(1, description="Answers to a prompt.")
    stop: Text | list[Text] | None = Field(None, description="Strings that end the answer and are not part of it.")
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    seed: Whole | None = Field(None, description="The same seed gives the same answer; none: a random one.")
    ensemble: EnsembleOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    presence_penalty: Unsupported = None
    frequency_penalty: Unsupported = None
    logit_bias: Unsupported = None

    def job(self, prompt: Any, *, likeliest: int, tokens: bool, max_tokens: int | None, limits: Limits) -> Job:
        """The job of one answer; `seeds` gives each its own.

        Raises:
            ApiError: If an option is over a limit.
        """
        options = self.ensemble or EnsembleOptions()
        stop = [self.stop] if isinstance(self.stop, str) else list(self.stop or [])
        if len(stop) > limits.stop_strings:
            raise ApiError(400, f"stop has {len(stop)} strings; at most {limits.stop_strings}", param="stop")
        if any(not 0 < len(text) <= limits.stop_characters for text in stop):
            raise ApiError(400, f"a stop string has 1 to {limits.stop_characters} characters", param="stop")
        for name, value in (("logprobs", likeliest), ("ensemble.votes", options.votes)):
            if value > limits.likeliest:
                raise ApiError(400, f"{name} is {value}; at most {limits.likeliest}", param=name)
        return Job(
            prompt,
            max_tokens,
            1.0 if self.temperature is None else self.temperature,
            self.top_k or 0,
            self.top_p or 1.0,
            0,
            tuple(stop),
            likeliest,
            options.votes,
            options.weights,
            tokens or options.votes > 0,
        )

    def seeds(self, count: int) -> list[int]:
        """A seed for each answer."""
        first = random.randrange(SEEDS) if self.seed is None else self.seed % SEEDS
        return [(first + i) % SEEDS for i in range(count)]


class CompletionRequest(Common):
    """Body of /v1/completions."""

    prompt: Text | list[Text] | list[Whole] | list[list[Whole]]
    logprobs: Annotated[Whole, Field(ge=0)] | None = Field(None, description="Show so many of the likeliest tokens.")
    best_of: Literal[1] | None = None
    echo: Unsupported = None
    suffix: Unsupported = None

    def prompts(self) -> list[Any]:
        """The prompts, each text or token ids."""
        given = self.prompt
        if isinstance(given, str) or (given and isinstance(given[0], int)):
            return [given]
        return list(given)


class TextPart(Shape):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Shape):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None

    def plain(self) -> dict[str, str]:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}


class ChatRequest(Common):
    """Body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: Count | None = Field(None, description="The newer name of max_tokens.")
    logprobs: bool | None = False
    top_logprobs: Annotated[Whole, Field(ge=0)] | None = Field(None, description="Show so many; needs logprobs.")
    response_format: Unsupported = None
    tools: Unsupported = None
    tool_choice: Unsupported = None
    parallel_tool_calls: bool | None = None
    store: Unsupported = None
    service_tier: Unsupported = None


def new_id(kind: str) -> str:
    """An id for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def created() -> int:
    """Seconds since 1970."""
    return int(time.time())


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Counts of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def text_logprobs(tokens: Sequence[Token], count: int, offset: int) -> dict[str, Any]:
    """`logprobs` of a completion; `offset` is where the first token's text begins in the answer."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [_by_text(token.likeliest[:count]) for token in tokens] if count else None,
        "text_offset": offsets,
    }


def chat_logprobs(tokens: Sequence[Token], count: int) -> dict[str, Any]:
    """`logprobs` of a chat completion."""
    return {
        "content": [{**_scored(t.text, t.logprob), "top_logprobs": _all(t.likeliest[:count])} for t in tokens],
        "refusal": None,
    }


def votes(tokens: Sequence[Token], facts: Facts) -> dict[str, Any]:
    """`ensemble` of a choice: how the experts voted at each token."""
    names = [expert["name"] for expert in facts.experts]
    return {
        "tokens": [
            {
                "token": token.text,
                "id": token.id,
                "logprob": token.logprob,
                "agreement": token.agreement,
                "entropy": token.entropy,
                "votes": [
                    {
                        "expert": name,
                        "top": [{"token": text, "id": token_id, "logprob": value} for token_id, text, value in top],
                    }
                    for name, top in zip(names, token.votes, strict=False)
                ],
            }
            for token in tokens
        ]
    }


def model_card(facts: Facts, began: int) -> dict[str, Any]:
    """An entry of /v1/models."""
    return {
        "id": facts.name,
        "object": "model",
        "created": began,
        "owned_by": "ensemw2s",
        "context": facts.context,
        "chat_template": facts.chat,
        "combine": facts.rule,
        "experts": facts.experts,
    }


def _scored(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def _all(likeliest: Likeliest) -> list[dict[str, Any]]:
    return [_scored(text, logprob) for _, text, logprob in likeliest]


def _by_text(likeliest: Likeliest) -> dict[str, float]:
    """As an object; of tokens with the same text (parts of a character, say) the likeliest."""
    return {text: logprob for _, text, logprob in reversed(likeliest)}
