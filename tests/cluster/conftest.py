"""Files of cluster/ as they are committed, and as a user fills them in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster"

OWN = {"image": f"registry.example/ensemw2s@sha256:{'0123456789abcdef' * 4}", "ImageId": "ami-12345678"}
"""What the test's user fills in, by key."""


def filled_in(value: Any, key: str = "") -> Any:
    """A tree with something in each place that a file leaves empty."""
    if isinstance(value, dict):
        return {key: filled_in(below, key) for key, below in value.items()}
    if isinstance(value, list):
        return [filled_in(below, key) for below in value]
    return value if value is not None else OWN.get(key, f"own-{key}")


@pytest.fixture(scope="session")
def committed():
    """A YAML file of cluster/ by its name."""
    return lambda name: yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def usable(committed):
    """The same, filled in."""
    return lambda name: filled_in(committed(name))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home folder with a token of Ray's in it, so that nothing is written to the real one."""
    folder = tmp_path_factory.mktemp("home")
    token = folder / ".ray/auth_token"
    token.parent.mkdir()
    token.write_text("secret", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        yield folder
