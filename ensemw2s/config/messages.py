"""What a user reads when a config is wrong: pydantic's errors come in, lines with dotted keys and remedies go out."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Union

from pydantic import BaseModel


def nearest(name: str, valid: Iterable[str], cutoff: float = 0.6) -> str:
    """What to say after an unknown name: the nearest valid one, and all of them."""
    close = difflib.get_close_matches(name, list(valid), 1, cutoff)
    return (f"; did you mean {close[0]}?" if close else ".") + f" Valid: {', '.join(valid)}"


def explain(item: Any, root: type[BaseModel]) -> list[str]:
    """The lines for one pydantic error of a tree of models: dotted key, what is wrong, what would be right."""
    if _is_of_another_form(item):
        return []
    key, sections = _locate(item["loc"], root)
    name, kind, value = key.rpartition(".")[2], item["type"], item.get("input")
    if kind == "extra_forbidden":
        valid = sorted({field for section in sections for field in section.model_fields})
        return [f"{key}: unknown key{nearest(name, valid, 0.5).replace('Valid:', 'Valid keys:')}"]
    if kind == "missing":
        return [f"{key}: is missing"]
    if kind == "union_tag_not_found":
        return [f"{key}.kind: is missing, valid: {', '.join(_kinds(sections))}"]
    if kind == "union_tag_invalid":
        tag = str(item["ctx"]["tag"])
        return [f"{key}.kind: {tag} is unknown{nearest(tag, _kinds(sections))}"]
    if kind in ("model_type", "model_attributes_type"):
        return [f"{key}: must be a mapping of keys to values (it is {value!r})"]
    message = item["msg"].removeprefix("Value error, ")
    if kind == "value_error" and isinstance(value, (dict, BaseModel)):  # a rule of a section, which names its own keys
        return [f"{key}.{line}" if key else line for line in message.splitlines()]
    message = message[0].lower() + message[1:]
    shown = "" if isinstance(value, (dict, list, BaseModel)) else f" (it is {value!r})"
    return [f"{key or 'config'}: {line}{shown}" for line in message.splitlines()]


def _is_of_another_form(item: Any) -> bool:
    """Whether an error is about a form that the value does not have, where a name or a mapping may stand.

    Pydantic tries both, and labels its locations.
    """
    last, of_mapping = str(item["loc"][-1]) if item["loc"] else "", isinstance(item.get("input"), dict)
    return (last.startswith("literal[") and of_mapping) or (last.startswith("tagged-union[") and not of_mapping)


def _locate(loc: tuple[str | int, ...], root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """Dotted key of a pydantic error location, and the sections in which its last key was looked up.

    Pydantic puts the kinds of sources and the options of unions into its locations; the user's file has no such keys.
    """
    key: list[str] = []
    current: Any = root
    looked_in: list[type[BaseModel]] = [root]
    for part in loc:
        options = _sections(current)
        looked_in = options or looked_in
        if len(options) > 1 and part in _kinds(options):
            current = next(section for section in options if section.model_fields["kind"].default == part)
            looked_in = [current]
            continue
        fields = [section.model_fields[part] for section in options if part in section.model_fields]
        if fields:
            current = fields[0].annotation
        elif isinstance(part, str) and (not options or part.startswith(("literal[", "tagged-union["))):
            continue
        elif isinstance(part, str):
            current = None
        key.append(str(part))
    return ".".join(key), _sections(current) or looked_in


def _kinds(sections: list[type[BaseModel]]) -> list[str]:
    return [section.model_fields["kind"].default for section in sections if "kind" in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """All section classes inside a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = typing.get_origin(annotation)
    if origin in (Annotated, Union, types.UnionType, list):
        return [s for arg in typing.get_args(annotation) for s in _sections(arg)]
    return []
