"""When two answers are the same one: the setting `data.answer_match`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from ensemw2s.config.section import Section


class RegexMatch(Section):
    """What is compared is the last match of a pattern."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(
        description="Python regular expression, such as `#### (.*)`. Its first group counts, if it has one. An answer "
        "without a match is compared as a whole."
    )

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return value


class FunctionMatch(Section):
    """What is compared is what a function makes of the answer's text."""

    kind: Literal["function"] = "function"
    name: str = Field(
        pattern=r"^[A-Za-z_][\w.]*\.[A-Za-z_]\w*$",
        description="module.function, which takes the text of an answer and returns text. Every process must be able "
        "to import the module.",
    )


AnswerMatch = Literal["exact", "numeric"] | Annotated[RegexMatch | FunctionMatch, Field(discriminator="kind")]
