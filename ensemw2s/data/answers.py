"""When two answers are the same one: a setting goes in, a function from an answer to what is compared comes out.

Exact match, votes of whole answers, and agreement between answers all compare in this way.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache

from ensemw2s.config import AnswerMatch, FunctionMatch
from ensemw2s.errors import ConfigError

Key = str | Decimal
"""What is compared of an answer: two answers are the same one where their keys are equal."""

_NUMBER = re.compile(r"[-+\u2212]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?")


@lru_cache(maxsize=64)
def answer_key(match: AnswerMatch) -> Callable[[str], Key]:
    """The function from an answer to what is compared of it.

    Raises:
        ConfigError: The function that the setting names cannot be imported.
    """
    if match == "exact":
        return str.strip
    if match == "numeric":
        return numeric_key
    if isinstance(match, FunctionMatch):
        return _imported(match.name)
    assert not isinstance(match, str)
    pattern = re.compile(match.pattern)

    def last(text: str) -> Key:
        found = None
        for found in pattern.finditer(text):  # noqa: B007 (the last one counts)
            pass
        if found is None:
            return numeric_key(text)
        return numeric_key(found.group(1) or "" if pattern.groups else found.group())

    return last


def numeric_key(text: str) -> Key:
    """The number in a text that has exactly one, else the text without white space at its ends.

    Commas between thousands and what stands around the number (a unit, a currency) do not count: `1,000`, `1000.0` and
    `$1000` are the same.
    """
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return text.strip()
    return Decimal(found[0].replace(",", "").replace("\u2212", "-"))


def _imported(name: str) -> Callable[[str], Key]:
    module, _, function = name.rpartition(".")
    try:
        made: Callable[[str], object] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"data.answer_match: {name} cannot be imported: {error}; the module must be installed or in PYTHONPATH"
        ) from None
    return lambda text: str(made(text))
