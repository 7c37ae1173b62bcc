"""Merges a pool's podTemplate into the engine's, strategically: as `kubectl patch` would for a pod.

Mappings merge, lists whose entries have a key of their own (containers, volumes, env by name; mounts by path; ports by
number) merge entry by entry, other lists are replaced, null removes. Invariant: neither input is changed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

# Strategic-merge keys of core/v1; a list of any other field is replaced.
KEYS: Mapping[str, str] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}


def merge_template(template: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = _merge(template, over, "")
    return merged


def _merge(base: Any, over: Any, field: str) -> Any:
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        out = copy.deepcopy(dict(base))
        for key, value in over.items():
            if value is None:
                out.pop(key, None)
            else:
                out[key] = _merge(base[key], value, key) if key in base else copy.deepcopy(value)
        return out
    key = KEYS.get(field)
    if key and isinstance(base, list) and isinstance(over, list) and all(_has(e, key) for e in (*base, *over)):
        changed = {entry[key]: entry for entry in over}
        merged = [_merge(entry, changed.pop(entry[key], {}), "") for entry in base]
        return merged + [copy.deepcopy(entry) for entry in changed.values()]
    return copy.deepcopy(over)


def _has(entry: Any, key: str) -> bool:
    return isinstance(entry, Mapping) and key in entry
