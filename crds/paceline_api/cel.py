"""Runs the CRD's own CEL strings by cel-python, so that `paceline up` and the API server have one set of rules.

A rule is left out when a field that it reads is already wrong, or when it compares with a stored object, which a file
does not have. Programs are compiled once. A rule's message is "cause; what to change".
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from paceline_api.documents import Found, Path


def check_rules(schema: Mapping[str, Any], value: Any, wrong: list[Path], path: Path = ()) -> Iterator[Found]:
    """The CEL rules of each node, but for those that read a field in `wrong` or compare with a stored object."""
    depth = len(path)
    inside = [{str(part) for part in w[depth:] if isinstance(part, str)} for w in wrong if w[:depth] == path]
    for rule in schema.get("x-kubernetes-validations", []):
        words = set(re.findall(r"\w+", rule["rule"]))
        if "oldSelf" in words or any(fields <= words for fields in inside):
            continue
        for problem in violations([rule], value):
            cause, _, fix = problem.partition("; ")
            yield Found((*path, *rule.get("fieldPath", "").split(".")[1:]), cause, fix)
    if isinstance(value, dict):
        for key, child in schema.get("properties", {}).items():
            if key in value:
                yield from check_rules(child, value[key], wrong, (*path, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from check_rules(schema.get("items", {}), item, wrong, (*path, i))


def violations(rules: list[dict[str, str]], value: Any, old: Any = None) -> list[str]:
    """Messages of the CRD's `rules` that `value` breaks; with `old`, those over `oldSelf` can be judged too."""
    from celpy.adapter import json_to_cel  # late: a quarter of a second that only files need

    scope = {"self": json_to_cel(value)} | ({} if old is None else {"oldSelf": json_to_cel(old)})
    return [rule["message"] for rule in rules if not _program(rule["rule"])(scope)]


@functools.cache
def _program(rule: str) -> Callable[[Mapping[str, Any]], bool]:
    environment = _environment()
    program = environment.program(environment.compile(rule))
    return lambda scope: bool(program.evaluate(scope))


@functools.cache
def _environment() -> Any:
    import celpy

    return celpy.Environment()
