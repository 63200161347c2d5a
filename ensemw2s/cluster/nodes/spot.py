"""Spot instances first, on-demand ones where the cloud has none left. The providers of all clouds share this.

Ray's autoscaler does not do that. It asks for the node type that fits best. When the cloud has no spot instance of it,
Ray asks for the same type again. So the provider, which hears the refusal, asks for the same machine at full price. A
cluster config is checked here too, before a launch.
"""

from __future__ import annotations

import copy
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from ensemw2s.errors import ConfigError

DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")

logger = logging.getLogger(__name__)

NodeConfig = dict[str, object]
"""What a cloud is asked for: `node_config` of the cluster config, in the words of that cloud."""


class _NodeType(TypedDict):
    """A kind of node in a cluster config; what is not read here is left out."""

    node_config: NodeConfig


class ClusterFile(TypedDict):
    """A cluster config with Ray's defaults; what is not read here is left out."""

    provider: dict[str, object]
    available_node_types: dict[str, _NodeType]
    file_mounts: dict[str, str]
    docker: dict[str, str]


class SpotFirst(ABC):
    """Stands before one of Ray's node providers in the order of base classes."""

    @staticmethod
    @abstractmethod
    def on_demand(node_config: NodeConfig) -> NodeConfig:
        """The same machine without spot; equal to what came in where it was none."""

    def create_node(self, node_config: NodeConfig, tags: dict[str, str], count: int) -> dict[str, object]:
        """Starts nodes, one after the other: of several, some may be had as spot instances and some not.

        Args:
            node_config: What the cloud is asked for.
            tags: Ray's marks of the node.
            count: How many.

        Returns:
            What the cloud said, by its id of the node.

        Raises:
            Exception: What the cloud said when it had no on-demand instance either.
        """
        made: dict[str, object] = {}
        for _ in range(count):
            made.update(self._create_one(node_config, tags))
        return made

    def _create_one(self, node_config: NodeConfig, tags: dict[str, str]) -> dict[str, object]:
        def ask(what: NodeConfig) -> dict[str, object]:
            made: dict[str, object] = super(SpotFirst, self).create_node(copy.deepcopy(what), dict(tags), 1)  # type: ignore[misc]
            return made

        try:
            return ask(node_config)
        except Exception as error:
            dearer = self.on_demand(node_config)
            if dearer == node_config:
                raise
            logger.warning("no spot instance (%s): an on-demand one in its place", error)
            return ask(dearer)


def check(config: ClusterFile) -> None:
    """Checks a cluster config, beyond what Ray's schema says.

    Args:
        config: What the file of the cluster holds, with Ray's defaults.

    Raises:
        ConfigError: If a value or a file that only the user has is missing, or the image can change under its name.
    """
    kinds = config["available_node_types"]
    places = {
        "provider": config["provider"],
        **{f"{name}.node_config": kind["node_config"] for name, kind in kinds.items()},
    }
    missing = [path for name, value in places.items() for path in _empty(value, name)]
    if missing:
        raise ConfigError(f"these values of the cluster config are empty, and only you know them: {', '.join(missing)}")
    absent = [path for path in config["file_mounts"].values() if not Path(path).expanduser().exists()]
    if absent:
        raise ConfigError(
            f"file_mounts names {', '.join(absent)}, which does not exist. For a token: `ray get-auth-token --generate`"
        )
    image = config["docker"].get("image")
    if not DIGEST.fullmatch(str(image)):
        raise ConfigError(
            f"docker.image is {image}: name it by its digest (REPOSITORY@sha256:…), so that every node has the same; "
            "`docker inspect --format '{{index .RepoDigests 0}}' REPOSITORY:TAG` prints that after a push"
        )


def _empty(value: object, path: str) -> Iterator[str]:
    """Dotted paths of what is null in a tree."""
    if value is None:
        yield path
    elif isinstance(value, (dict, list)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            yield from _empty(below, f"{path}.{key}")
