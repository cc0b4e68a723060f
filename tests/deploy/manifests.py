"""The manifests of deploy/, read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

DEPLOY = ROOT / "deploy"

MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))

OBJECTS = [
    pytest.param(found, id=f"{path.name}:{found['metadata']['name']}")
    for path in MANIFESTS
    for found in yaml.safe_load_all(path.read_text())
]

RAY_OBJECTS = [found for found in OBJECTS if found.values[0]["apiVersion"].startswith("ray.io/")]


def walk(value: Any) -> Iterator[Any]:
    yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(part)


def pods(found: Any) -> Iterator[dict[str, Any]]:
    for part in walk(found):
        if isinstance(part, dict) and "containers" in part:
            yield part


def clusters(found: Any) -> Iterator[dict[str, Any]]:
    for part in walk(found):
        if isinstance(part, dict) and "headGroupSpec" in part:
            yield part
