"""The engines as HTTP servers: a connection pool for each replica, and the headers that a leg carries.

Invariant: nothing that a client sent reaches an engine in a header, but for its trace context and request id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paceline_api import headers as names
from paceline_api.slo import SLOClass
from paceline_engine.http1 import ClientPool, Header

_JSON = (b"content-type", b"application/json")


class Upstreams:
    """One pool per replica, by the replica's name."""

    def __init__(self, *, connect_timeout_s: float = 2.0) -> None:
        self.pools: dict[str, ClientPool] = {}
        self._connect_timeout_s = connect_timeout_s

    def add(self, name: str, host: str, port: int) -> None:
        self.pools[name] = ClientPool(host, port, connect_timeout_s=self._connect_timeout_s)

    def remove(self, name: str) -> None:
        """Closes its idle connections; a call in flight goes on."""
        self.pools.pop(name).close()

    def close(self) -> None:
        for pool in self.pools.values():
            pool.close()


class LegHeaders:
    """Builds the headers of legs; what does not change per request is made once."""

    def __init__(self, classes: Mapping[str, SLOClass], token: str | None) -> None:
        self._token = (names.TOKEN.encode(), token.encode()) if token else None
        self.adopt(classes)

    def adopt(self, classes: Mapping[str, SLOClass]) -> None:
        """These are the classes from now on."""
        self._by_class = {slo: self._fixed(slo) for slo in classes.values()}

    def build(self, slo: SLOClass, ttft_remaining_s: float, request_id: bytes, trace: Sequence[Header]) -> list[Header]:
        """`ttft_remaining_s` of the objective is left, model seconds; below 0 when the limit has passed."""
        return [
            *(self._by_class.get(slo) or self._fixed(slo)),
            (b"x-request-id", request_id),
            (b"x-slo-ttft-remaining-ms", b"%.1f" % (ttft_remaining_s * 1000)),
            *trace,
        ]

    def plain(self, request_id: bytes, trace: Sequence[Header]) -> list[Header]:
        """Of a request without an objective."""
        return [_JSON, (b"x-request-id", request_id), *trace]

    def _fixed(self, slo: SLOClass) -> tuple[Header, ...]:
        fixed = (
            _JSON,
            (names.SLO_CLASS.encode(), slo.name.encode()),
            (names.TPOT_MS.encode(), _ms(slo.tpot_s)),
            (names.MAX_STALL_MS.encode(), _ms(slo.stall_s)),
        )
        return (*fixed, self._token) if self._token else fixed


def _ms(seconds: float) -> bytes:
    return f"{seconds * 1000:.6g}".encode()
