"""Forms of an answer as requests have them: OpenAI's `response_format`, and the names that vLLM has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ensemw2s.serving.fields import Body, Flag, Hint, Text

FORMS = {"json": "JSON schema", "regex": "regular expression", "choice": "list of choices", "grammar": "grammar"}
"""Kinds of forms by the names of their parameters."""


class JsonSchema(Body):
    """A named schema."""

    name: Hint = None
    description: Hint = None
    strict: Hint = None
    schema_: dict[str, object] = Field(alias="schema")


class ResponseFormat(Body):
    """The form of an answer as OpenAI has it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema and a type of json_schema go together")
        return self

    def wanted(self) -> dict[str, object] | None:
        """The schema; None for text."""
        if self.json_schema is not None:
            return self.json_schema.schema_
        return {"type": "object"} if self.type == "json_object" else None


class StructuredOutputs(Body):
    """The form of an answer as vLLM has it."""

    json_: dict[str, object] | Text | None = Field(None, alias="json")
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1)
    grammar: Text | None = None
    json_object: Flag | None = None

    def guided(self) -> list[tuple[str, str, object]]:
        """Name, kind and value of each form."""
        given = (self.json_, self.regex, self.choice, self.grammar)
        return [(name, kind, value) for (name, kind), value in zip(FORMS.items(), given, strict=True)]
