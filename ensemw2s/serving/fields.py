"""Values of the fields of requests: how they are read, which of them ask for nothing, and messages of a chat.

Apart from the requests because most of this is about what clients write, and there it is about what is done with it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from ensemw2s.serving.exchange import ChatMessage

NEUTRAL = {
    "best_of": (1,),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "tool_choice": ("auto",),
    "verbosity": ("medium",),
}
"""What asks for nothing, of options that this endpoint lacks; beside null, 0, false, "none" and what is empty."""


def _is_neutral(value: object, name: str = "") -> bool:
    return value in (None, 0, False, {}, [], "", "none") or value in NEUTRAL.get(name, ())


def _neutral(value: object, info: ValidationInfo) -> object:
    if not _is_neutral(value, info.field_name or ""):
        raise ValueError("is not supported by this endpoint")
    return value


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is no text: it has half of a surrogate pair") from error
    return text


def _whole(value: object) -> object:
    """Some clients write whole numbers as 16.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_cut(value: object) -> object:
    return 0 if _unlimited(value) is None else value


def _unlimited(value: object) -> object:
    """Some clients write -1 where they mean no limit."""
    return None if value == -1 and not isinstance(value, bool) else value


Unsupported = Annotated[object, AfterValidator(_neutral)]
Hint = object
"""What changes no answer: marks of the client's own, and hints about speed."""

Text = Annotated[str, AfterValidator(_encodable)]
Flag = Annotated[bool, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Temperature = Annotated[Number, Field(ge=0, le=2)]
Share = Annotated[Number, Field(ge=0, le=1)]
Whole = Annotated[int, BeforeValidator(_whole), Field(strict=True)]
Count = Annotated[Whole, Field(ge=1)]
Length = Annotated[Annotated[Whole, Field(ge=0)] | None, BeforeValidator(_unlimited)]
Limit = Annotated[
    Annotated[Whole, Field(ge=0)], BeforeValidator(lambda value: 0 if _unlimited(value) is None else value)
]
Penalty = Annotated[Number, Field(ge=-2, le=2)]
Bias = Annotated[Number, Field(ge=-100, le=100)]
Token = Annotated[Whole, Field(ge=0)]


class Body(BaseModel):
    """A JSON object without unknown keys. A key with the value null counts as one that is not there."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        return {key: value for key, value in given.items() if value is not None} if isinstance(given, dict) else given


def _only_text(content: object) -> object:
    """Parts of a message that are no text are refused by name."""
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") not in (None, "text"):
            raise ValueError(f"has a part of type {str(part['type'])[:40]}, which is not supported; send text")
    return content


def _no_tools(value: object) -> object:
    if not _is_neutral(value):
        raise ValueError("tool calls are not supported by this endpoint")
    return value


NoTools = Annotated[object, AfterValidator(_no_tools)]
ROLES = ("system", "developer", "user", "assistant")


def _known_role(role: object) -> object:
    if role in ("tool", "function"):
        raise ValueError("tool calls are not supported by this endpoint")
    if role not in ROLES:
        raise ValueError(f"is {str(role)[:40]!r}; expected one of {', '.join(ROLES)}")
    return role


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """A message of a chat. What an answer of this endpoint has beside its text is taken back."""

    role: Annotated[Literal["system", "developer", "user", "assistant"], BeforeValidator(_known_role)]
    content: Annotated[Text | list[TextPart], BeforeValidator(_only_text)] = ""
    name: Hint = None
    refusal: Unsupported = None
    audio: Unsupported = None
    annotations: Unsupported = None
    reasoning: Unsupported = None
    reasoning_content: Unsupported = None
    tool_calls: NoTools = None
    function_call: NoTools = None
    tool_call_id: NoTools = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.role != "assistant" and "content" not in self.model_fields_set:
            raise ValueError(f"a message of the {self.role} needs content")
        return self

    def plain(self) -> ChatMessage:
        """Role and text."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": self.role, "content": text}
