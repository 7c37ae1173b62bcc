"""Whether an object has to be written: its manifest has changed since it was applied, or somebody changed the object.

The first shows in the hash that every written object carries, the second in a live object that no longer contains what
is wanted. Values that the API server adds or writes differently (defaults, quantities, empty ones) are no difference,
so that nothing is written while nothing changes. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, DecimalException
from typing import Any

from paceline_operator.kinds import Json
from paceline_operator.manifests.meta import DESIRED
from paceline_operator.revision import digest

_KEYS = ("uid", "mountPath", "containerPort", "name", "type", "key")  # of list entries, the first that all have
_SUFFIXES: Mapping[str, Decimal] = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{s: Decimal(1000) ** i for i, s in enumerate("kMGTPE", 1)},
    **{f"{s}i": Decimal(1024) ** i for i, s in enumerate("KMGTPE", 1)},
}


def stamped(manifest: Json) -> Json:
    """With the annotation that says what was applied."""
    metadata = manifest["metadata"]
    annotations = {**metadata.get("annotations", {}), DESIRED: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def desired_of(stamped_manifest: Json) -> str:
    hash_: str = stamped_manifest["metadata"]["annotations"][DESIRED]
    return hash_


def must_write(stamped_manifest: Json, live: Mapping[str, Any] | None) -> bool:
    return live is None or not contains(live, stamped_manifest)


def contains(live: Any, wanted: Any) -> bool:
    """Everything in `wanted` is in `live`, whatever else there is."""
    if isinstance(wanted, Mapping):
        if not isinstance(live, Mapping):
            return not wanted and live is None
        return all(contains(live.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list | tuple):
        return _contains_list(live or [], wanted) if isinstance(live, list | tuple | None) else False
    return live == wanted or (live is None and not wanted) or _same_quantity(live, wanted)


def _contains_list(live: Any, wanted: Any) -> bool:
    key = next((k for k in _KEYS if all(isinstance(e, Mapping) and k in e for e in (*live, *wanted))), None)
    if key is None or not wanted:
        return len(live) == len(wanted) and all(map(contains, live, wanted))
    found = {entry[key]: entry for entry in live}
    return all(entry[key] in found and contains(found[entry[key]], entry) for entry in wanted)


def _same_quantity(a: Any, b: Any) -> bool:
    """`0.5` and `500m`, `1024Mi` and `1Gi`: the API server rewrites quantities."""
    first, second = _quantity(a), _quantity(b)
    return first is not None and first == second


def _quantity(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    text = str(value)
    number = text.rstrip("mkMGTPEKi")
    try:
        return Decimal(number) * _SUFFIXES[text[len(number) :]]
    except (DecimalException, KeyError):  # a hash may read as a number with an exponent
        return None
