"""Raw rows as they come from a source, and the fields of an example that are made of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, TypedDict

Part = Literal["easy", "hard"]

Row = Mapping[str, object]
"""A raw row: any value under the name of its column."""

OriginRow = tuple[str, Row]
"""A raw row and where it comes from, as error messages name it."""


class Spelt(float):
    """A number with a fraction or an exponent as a file spells it, such as 42.0 or 1e3."""

    text: str

    def __new__(cls, text: str) -> Spelt:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text


JSON = json.JSONDecoder(parse_float=Spelt)
"""Reads JSON without changing how numbers are spelt."""


class Fields(TypedDict):
    """The fields of an example (`EXAMPLE_SCHEMA`).

    Attributes:
        id: Unique text; None where the source gives none.
        prompt: Not blank.
        answer: Without surrounding white space, not empty; None where there is none.
        difficulty: Finite; None where the source gives none.
        choices: Options of a multiple-choice question; None elsewhere.
    """

    id: str | None
    prompt: str
    answer: str | None
    difficulty: float | None
    choices: list[str] | None


def reason(error: BaseException) -> str:
    """The first line of an error's text, or its class when it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
