"""A thin asynchronous client of Prometheus' HTTP API: instant queries, and typed errors for whatever is no answer.

Also for what speaks the same API under a path, such as Thanos or Mimir. The token's file is read again as it changes.
Invariant: neither a token nor a password of the URL is ever part of an error.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import orjson

from paceline_router.kubeconfig import Bearer
from paceline_router.scaling.queries import Row

TIMEOUT_S = 10.0


class PrometheusError(Exception):
    """A query has no answer; `cause` is one word for a metric."""

    cause = "failed"


class Unreachable(PrometheusError):
    """No answer, or one of 5xx."""

    cause = "unreachable"


class Refused(PrometheusError):
    """401 or 403."""

    cause = "refused"


class Malformed(PrometheusError):
    """An answer that is none of Prometheus', or its complaint about the query."""

    cause = "malformed"


class Prometheus:
    """`async with Prometheus.connect(url, …) as prometheus: …`"""

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = httpx.URL(url.rstrip("/") + "/api/v1/query")
        self._who = f"Prometheus at {self._url.host}" + (f":{self._url.port}" if self._url.port else "")

    @classmethod
    def connect(cls, url: str, token_file: Path | None = None, ca_file: Path | None = None) -> Self:
        """ValueError for a URL that is none, or a CA file that cannot be used."""
        if httpx.URL(url).scheme not in ("http", "https") or not httpx.URL(url).host:
            raise ValueError(f"{url!r} is no URL of a Prometheus; write http://HOST:PORT")
        try:
            verify: ssl.SSLContext | bool = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        except OSError as e:  # ssl.SSLError too
            raise ValueError(f"{ca_file} is no file of CA certificates: {e.strerror or e}") from e
        auth = Bearer(lambda: token_file.read_text().strip()) if token_file else None
        return cls(httpx.AsyncClient(verify=verify, auth=auth, timeout=TIMEOUT_S, trust_env=False), url)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def scalar(self, query: str) -> float:
        """Of a query with one value, such as `time()`; Malformed otherwise."""
        found = await self._ask(query, {})
        if not isinstance(found, float):
            raise Malformed(f"{self._who}: {query} is no scalar")
        return found

    async def vector(self, query: str, at_s: float) -> tuple[Row, ...]:
        """The rows of `query` at `at_s`, epoch seconds by Prometheus' own clock."""
        found = await self._ask(query, {"time": f"{at_s:.3f}"})
        if isinstance(found, float):
            raise Malformed(f"{self._who}: {query} is no vector")
        return found

    async def _ask(self, query: str, more: Mapping[str, str]) -> tuple[Row, ...] | float:
        form = {"query": query, "timeout": f"{TIMEOUT_S:g}s", **more}
        try:
            answer = await self._client.post(self._url, data=form)
        except httpx.HTTPError as e:
            raise Unreachable(f"{self._who}: {type(e).__name__} {e}".rstrip()) from e
        except OSError as e:  # the token's file
            raise Unreachable(f"the token for {self._who} cannot be read: {e.strerror or e}") from e
        if answer.status_code in (401, 403):
            raise Refused(
                f"{self._who} refuses us with {answer.status_code}; see the chart value prometheus.tokenSecret"
            )
        if answer.status_code >= 500:
            raise Unreachable(f"{self._who} answers {answer.status_code}")
        try:
            return _read(orjson.loads(answer.content))
        except (ValueError, LookupError, TypeError, AttributeError) as e:
            raise Malformed(f"{self._who}: no answer of Prometheus to {query!r}: {e}") from e


def _read(document: Any) -> tuple[Row, ...] | float:
    if document["status"] != "success":
        raise ValueError(str(document.get("error", "it failed"))[:200])
    data = document["data"]
    match data["resultType"]:
        case "scalar":
            return _number(data["result"][1])
        case "vector":
            return tuple(
                Row({str(k): str(v) for k, v in r["metric"].items()}, _number(r["value"][1])) for r in data["result"]
            )
        case other:
            raise ValueError(f"a {other}")


def _number(text: object) -> float:
    """Prometheus writes numbers as text, NaN and +Inf too."""
    return float(str(text))
