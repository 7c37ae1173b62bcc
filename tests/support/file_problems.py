"""What validation says of a file, or of the valid one with a part changed."""

from __future__ import annotations

from typing import Any

from factories_api import make_manifest, to_yaml
from paceline_api.validate import InvalidFile, Problem, parse_service


def problems(text: str, *, local: bool = False) -> list[Problem]:
    try:
        parse_service(text, "chat.yaml", local=local)
    except InvalidFile as e:
        return list(e.problems)
    return []


def lines(**spec: Any) -> list[str]:
    return [str(p) for p in problems(to_yaml(make_manifest(**spec)))]


def without(path: str) -> str:
    """A valid file without one field."""
    manifest = make_manifest()
    *parents, last = path.split(".")
    node = manifest
    for parent in parents:
        node = node[parent]
    del node[last]
    return to_yaml(manifest)
