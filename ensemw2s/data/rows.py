"""Raw rows as they come from a source, and the fields of an example that are made of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypedDict

Part = Literal["easy", "hard"]

Row = Mapping[str, object]
"""A raw row: any value under the name of its column."""

OriginRow = tuple[str, Row]
"""A raw row and where it comes from, as error messages name it."""


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
