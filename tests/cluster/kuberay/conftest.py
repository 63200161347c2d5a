"""The manifests of cluster/kuberay/, and KubeRay's schemas as an API server with strict validation reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[3]
SCHEMAS = "shared/kuberay-schemas"


@pytest.fixture(scope="session")
def manifests():
    """All documents of a manifest by its name."""
    return lambda name: list(yaml.safe_load_all((ROOT / "cluster/kuberay" / name).read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def problems():
    """What is wrong with a resource, by KubeRay's schema of its kind: one line each.

    With a kind and a path of keys in its schema, what is wrong with something that has such a part's schema.
    """
    folder = next((parent / SCHEMAS for parent in ROOT.parents if (parent / SCHEMAS).is_dir()), None)
    if folder is None:
        pytest.skip(f"there is no ../{SCHEMAS} beside this checkout: KubeRay's schemas are not part of the project")

    def find(resource: dict[str, Any], kind: str = "", *path: str) -> list[str]:
        file = folder / f"{(kind or resource['kind']).lower()}s.v1.json"
        schema = json.loads(file.read_text(encoding="utf-8"))
        for key in path:
            schema = schema["items"] if key == "items" else schema["properties"][key]
        found = jsonschema.Draft202012Validator(strict(schema)).iter_errors(resource)
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]

    return find


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI schema of Kubernetes as a JSON schema that knows no key but its own."""
    made = dict(schema)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    for key in ("properties", "additionalProperties", "items"):
        if isinstance(schema.get(key), dict):
            below = schema[key]
            made[key] = {k: strict(v) for k, v in below.items()} if key == "properties" else strict(below)
    free = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("properties") and not free:
        made["additionalProperties"] = False
    return made
