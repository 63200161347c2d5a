"""The reference of every config key, written from the config classes themselves.

The pydantic models of `config` come in, one Markdown page goes out; `make docs` stores it as docs/config.md and a test
keeps the stored page up to date. It stands apart from `config` because no run needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict, cast

from pydantic import BaseModel

from ensemw2s.config import Config


class Discriminator(TypedDict):
    """Which option of a union a `kind` chooses: kind → reference."""

    mapping: dict[str, str]


Schema = TypedDict(
    "Schema",
    {
        "title": str,
        "description": str,
        "type": str,
        "properties": "dict[str, Schema]",
        "required": list[str],
        "default": object,
        "const": object,
        "enum": list[object],
        "items": "Schema",
        "anyOf": "list[Schema]",
        "oneOf": "list[Schema]",
        "discriminator": Discriminator,
        "$ref": str,
        "$defs": "dict[str, Schema]",
    },
    total=False,
)
"""The keys read here of a section's JSON schema. Bounds stand in it under the names of `BOUNDS`."""

INTRODUCTION = """\
# Config reference

<!-- Written by `python -m ensemw2s.config.docs` (`make docs`); change ensemw2s/config/, not this page. -->

A run is described by one YAML file. Every key has the dotted name given here: `boosting.rounds` is the key `rounds`
of the mapping `boosting`, and `N` stands for the position in a list, counted from 0. Any value can be replaced on the
command line with `--set`, as in `--set boosting.rounds=3` or `--set models.weak.0.base=tiny-weak`; what follows the
equals sign is read as YAML. A key that is not listed is an error. All mistakes are reported at once.
Defaults are written as in a file, and `null` means that no value is set; the description then says what happens by
default. **required** marks the keys without a default.
[method.md](method.md) says what the keys of `boosting`, `ensemble` and `student` do to the algorithm.
"""

TYPE_NAMES = {
    "integer": "int",
    "number": "float",
    "string": "str",
    "boolean": "bool",
    "null": "null",
    "object": "mapping",
}
BOUNDS = (
    ("exclusiveMinimum", "> {}"),
    ("minimum", "≥ {}"),
    ("exclusiveMaximum", "< {}"),
    ("maximum", "≤ {}"),
    ("minItems", "length ≥ {}"),
    ("maxItems", "length ≤ {}"),
    ("minLength", "length ≥ {}"),
    ("maxLength", "length ≤ {}"),
    ("pattern", "matches `{}`"),
)


@dataclass(frozen=True)
class _Section:
    """A section class at one place of the tree.

    Attributes:
        key: Dotted key of the section; empty for the whole config.
        schema: JSON schema of the section.
        defaults: The values that this place gives to the section's keys; none where the place itself is required,
            optional or a list, so that the defaults of the section's class hold.
        kind: The `kind` that chooses this section, or one above it, among others; empty where there is no choice.
    """

    key: str
    schema: Schema
    defaults: dict[str, object] | None = None
    kind: str = ""

    @property
    def heading(self) -> str:
        if not self.key:
            return "Top level"
        return f"`{self.key}`" + (f" with `kind: {self.kind}`" if self.kind else "")

    @property
    def fields(self) -> dict[str, Schema]:
        return self.schema.get("properties", {})


def render(config_class: type[BaseModel] = Config) -> str:
    """Writes the reference of a config class as Markdown.

    Args:
        config_class: The root of the tree.

    Returns:
        The page: a section for every mapping of the tree with a table of its keys (dotted key, type, default, bounds,
        description), depth first in the order of the classes. A mapping that repeats an earlier one, defaults
        included, is a link to it.
    """
    schema = cast(Schema, config_class.model_json_schema())
    return "\n".join([INTRODUCTION, *_blocks(_Section("", schema), schema.get("$defs", {}), {})])


def _blocks(place: _Section, definitions: dict[str, Schema], first_at: dict[str, str]) -> Iterator[str]:
    """The section at `place`, then all sections below it. `first_at` collects the heading of every distinct one."""
    identity = json.dumps([place.schema.get("title"), place.defaults], sort_keys=True)
    if first := first_at.get(identity):
        link = f"[{first}](#{_anchor(first)})"
        yield f"## {place.heading}\n\nThe same as {link}: keys, defaults, bounds and sections below.\n"
        return
    first_at[identity] = place.heading
    yield _table(place, definitions)
    for name, field in place.fields.items():
        default = _default_at(place, name, field)
        for key, section, kind in _subsections(_join(place.key, name), field, definitions):
            in_place = default if isinstance(default, dict) and default else None
            yield from _blocks(_Section(key, section, in_place, kind or place.kind), definitions, first_at)


def _subsections(key: str, field: Schema, definitions: dict[str, Schema]) -> Iterator[tuple[str, Schema, str]]:
    """The sections that a field may hold: (dotted key, schema, `kind` that chooses it)."""
    if "$ref" in field:
        yield key, definitions[field["$ref"].rpartition("/")[2]], ""
    elif "oneOf" in field:
        kinds = {reference: kind for kind, reference in field["discriminator"]["mapping"].items()}
        for option in field["oneOf"]:
            yield key, definitions[option["$ref"].rpartition("/")[2]], kinds[option["$ref"]]
    elif field.get("type") == "array":
        yield from _subsections(f"{key}.N", field["items"], definitions)
    else:
        for option in field.get("anyOf", []):
            yield from _subsections(key, option, definitions)


def _table(place: _Section, definitions: dict[str, Schema]) -> str:
    lines = [f"## {place.heading}", ""]
    if description := place.schema.get("description", ""):
        lines += [description, ""]
    lines += ["| Key | Type | Default | Bounds | Description |", "|---|---|---|---|---|"]
    required = place.schema.get("required", [])
    for name, field in place.fields.items():
        chooses = bool(place.kind) and "const" in field
        has_section = next(_subsections(name, field, definitions), None) is not None
        default = _default_at(place, name, field)
        if name in required or chooses:
            shown = "**required**"
        elif has_section and isinstance(default, dict):
            shown = "see below"
        else:
            shown = _code(default)
        meaning = "Chooses this kind." if chooses else field.get("description", "")
        cells = [f"`{_join(place.key, name)}`", _type_of(field), shown, _bounds_of(field), meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*lines, ""])


def _default_at(place: _Section, name: str, field: Schema) -> object:
    """The value that a key has when the file does not name it. Factories of lists and mappings give empty ones."""
    if place.defaults is not None and name in place.defaults:
        return place.defaults[name]
    if "default" in field:
        return field["default"]
    empty: dict[str, object] = {"array": [], "object": {}}
    return empty.get(field.get("type", ""))


def _type_of(field: Schema) -> str:
    if "$ref" in field or "oneOf" in field:
        return "section"
    if "anyOf" in field:
        return " or ".join(_type_of(option) for option in field["anyOf"])
    if "const" in field or "enum" in field:
        return " or ".join(_code(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type_of(field['items'])}"
    return TYPE_NAMES[field["type"]]


def _bounds_of(field: Schema) -> str:
    values = dict(field)
    found = [text.format(values[name]) for name, text in BOUNDS if name in values]
    for option in [*field.get("anyOf", []), *([field["items"]] if "items" in field else [])]:
        if bounds := _bounds_of(option):
            found.append(bounds)
    return ", ".join(found)


def _code(value: object) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _anchor(heading: str) -> str:
    """The link target that GitHub gives to a heading."""
    kept = "".join(c for c in heading.lower() if c.isalnum() or c in " _-")
    return kept.replace(" ", "-")


if __name__ == "__main__":
    sys.stdout.write(render())
