"""Which model to ask a server for: the wanted one, or the first of those that it lists at /v1/models.

Invariant: where the server lists models, none is asked for that it does not list. Pure.
"""

from __future__ import annotations

import orjson


class NoModel(LookupError):
    """What is wrong with the listing, to be said after the server's name."""


def served_model(listing: bytes | None, wanted: str | None, flag: str) -> tuple[str, int | None]:
    """Name, and context in tokens where the server says it, from the body of /v1/models; `flag` names a model."""
    try:
        listed = {str(m["id"]): m.get("max_model_len") for m in orjson.loads(listing or b"")["data"]}
    except (ValueError, KeyError, TypeError, AttributeError):
        listed = {}
    name = wanted or next(iter(listed), None)
    if name is None:
        raise NoModel(f"lists no model at /v1/models; give {flag}")
    if listed and name not in listed:
        raise NoModel(f"has no model {name!r}; it lists {', '.join(listed)}")
    context = listed.get(name)
    return name, context if isinstance(context, int) and context > 1 else None
