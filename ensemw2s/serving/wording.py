"""What is wrong with a body, in plain words: errors of pydantic come in, a message and a parameter's name go out."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

ITEMS = {
    "prompt": "a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "a text or a list of texts",
    "content": "a text or a list of text parts",
    "input": "a text or a list of messages",
    "guided_json": "a JSON schema, as an object or as text",
    "json": "a JSON schema, as an object or as text",
}
"""What fields take that have several types, which pydantic has an error for each of."""

KINDS = {
    "int": "a whole number", "float": "a number", "finite": "a finite number", "bool": "true or false",
    "string": "a text", "list": "a list", "dict": "an object", "model": "an object", "mapping": "an object",
}  # fmt: skip

JSON_ONLY = "send the body as JSON, with the header Content-Type: application/json"


def explain(error: Mapping[str, Any], body: object, known: Sequence[str] = ()) -> tuple[str, str | None]:
    """The first error of a body.

    Args:
        error: As pydantic has it.
        body: What came.
        known: Names of the parameters, of which one may have been meant.

    Returns:
        What to say, and the name of the parameter, if there is one.
    """
    kind, context = str(error["type"]), error.get("ctx") or {}
    if kind == "json_invalid":
        place = error["loc"][-1] if isinstance(error["loc"][-1], int) else "?"
        return f"the body is not JSON: {context.get('error', 'it cannot be read')}, at character {place}", None
    path, value = _place(error["loc"], body, missing=kind == "missing")
    if not path:
        return JSON_ONLY, None
    param, name = ".".join(path), next((part for part in reversed(path) if not part.isdigit()), path[-1])
    if kind == "missing":
        return f"{param} is missing", param
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, known, 1)
        return f"{param} is not a parameter of this endpoint" + (f"; did you mean {near[0]}?" if near else ""), param
    if kind == "value_error":
        return f"{param}: {context['error']}", param
    return f"{param} is {shown(value)}; expected {ITEMS.get(name) or _expected(kind, context)}", param


def shown(value: object) -> str:
    """A value as JSON has it, shortened."""
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = repr(value).encode(errors="replace").decode()
    return text if len(text) <= 60 else text[:57] + "…"


def _place(loc: Sequence[int | str], body: object, *, missing: bool) -> tuple[list[str], object]:
    """The keys of an error's place that the body has, without the names of types among them, and the value there."""
    path, node = [], body
    parts = list(loc[1:])
    for i, part in enumerate(parts):
        if isinstance(node, dict) and (part in node or (missing and i == len(parts) - 1)):
            node = node.get(part)
        elif isinstance(node, list) and isinstance(part, int) and part < len(node):
            node = node[part]
        else:
            continue
        path.append(str(part))
    return path, node


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "too_short":
        return "at least one entry"
    if kind == "string_too_short":
        return "a text that is not empty"
    for name, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if name in context:
            return f"{words} {context[name]}"
    return KINDS.get(kind.split("_")[0], "another value")
