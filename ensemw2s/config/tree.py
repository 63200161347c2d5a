"""YAML files as trees of plain values, and changes to them by dotted keys. What the values mean is `config`'s."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ensemw2s.errors import ConfigError
from ensemw2s.storage import remote


def read_tree(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file. Raises `ConfigError` if it cannot be read, is not YAML, or holds no mapping."""
    try:
        text = remote.pull(Path(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config {remote.shown(path)} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path} is not UTF-8 text: byte {error.start} cannot be read") from None
    try:
        loader = _Loader(text)
        loader.name = str(path)
        tree = loader.get_single_data()
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path} must be a mapping of keys to values, not {type(tree).__name__}")
    return tree


def dump_tree(tree: dict[str, object]) -> str:
    """A tree as YAML that `read_tree` reads back."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def apply_override(tree: dict[str, object], override: str) -> None:
    """Sets `dotted.key=value` in a tree; the value is YAML. Raises `ConfigError` if there is no such place."""
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: expected dotted.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from None
    set_value(tree, key, value, origin=f"--set {override}")


def set_value(tree: dict[str, object], key: str, value: object, *, origin: str) -> None:
    """Sets the value of a dotted key in a tree; items of lists are reached by their index.

    Args:
        tree: What is changed.
        key: The dotted key; mappings on the way to it that are missing are made. Where a mapping has keys with dots in
            them (as the changes of a study's task), the longest one that fits is taken.
        value: A plain value.
        origin: Who wants it, for error messages.

    Raises:
        ConfigError: If there is no such place.
    """
    parts = key.strip().split(".")
    if not all(parts):
        raise ConfigError(f"{origin}: expected dotted.key=value")
    node: object = tree
    i = 0
    while i < len(parts):
        if isinstance(node, list):
            if not parts[i].isdecimal() or int(parts[i]) >= len(node):
                where = ".".join(parts[: i + 1])
                raise ConfigError(f"{origin}: {where} does not exist, the list has {len(node)} items")
            place: Any = int(parts[i])
            i += 1
        elif isinstance(node, dict):
            length = _longest_key(node, parts[i:])
            place = ".".join(parts[i : i + length])
            i += length
            if i < len(parts) and node.setdefault(place, {}) is None:
                raise ConfigError(f"{origin}: {'.'.join(parts[:i])} is null in the config and has no keys")
        else:
            raise ConfigError(f"{origin}: {'.'.join(parts[:i])} is {node!r} and has no keys")
        if i == len(parts):
            node[place] = value
        else:
            node = node[place]


def _longest_key(node: dict[str, object], parts: list[str]) -> int:
    """How many parts of a dotted key are one key of this mapping; 1 where there is none yet."""
    return next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in node), 1)


class _Dumper(yaml.SafeDumper):
    """Plain values only; text with a line break that is none in other formats is quoted, else YAML loses it."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style)


_Dumper.add_representer(str, _represent_text)


class _Loader(yaml.SafeLoader):
    """Plain values only, and a key that stands twice in a mapping is an error: YAML would drop the first silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"found the key {key} twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
