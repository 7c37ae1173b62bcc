"""How a call to the API server fails: no answer, or one of its refusals by HTTP status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import orjson


class KubeError(Exception):
    """A call did not succeed."""


class Unreachable(KubeError):
    """No answer, or not a whole one."""


class ApiError(KubeError):
    """The API server refused; `reason` is its one word, such as AlreadyExists."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message


class NotFound(ApiError):
    """404."""


class Forbidden(ApiError):
    """403."""


class Conflict(ApiError):
    """409: it exists already, has changed since it was read, or another field manager owns a field."""


class Gone(ApiError):
    """410: the resourceVersion or the page is too old."""


class Invalid(ApiError):
    """422: breaks the schema or a rule."""


_ERRORS: Mapping[int, type[ApiError]] = {403: Forbidden, 404: NotFound, 409: Conflict, 410: Gone, 422: Invalid}


def error_of(answer: httpx.Response) -> ApiError:
    try:
        status = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        status = None
    return error_from(status if isinstance(status, dict) else {"message": answer.text[:200]}, answer.status_code)


def error_from(status: Mapping[str, Any], code: int) -> ApiError:
    code = int(status.get("code") or code)
    return _ERRORS.get(code, ApiError)(code, status.get("reason") or "", status.get("message") or "")
