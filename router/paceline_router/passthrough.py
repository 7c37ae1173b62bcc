"""What any engine can answer without computing tokens (/tokenize, /detokenize): passed on to one, and its answer back.

Such a request has no class, no objective and no outcome; it is counted by path and status apart from those for tokens,
leaves no span, and weighs nothing in what those are placed by. One that failed is sent once more, elsewhere. Invariant:
the client gets exactly one answer, an engine's or an error, within PATIENCE_S. Wall seconds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson
from paceline_api.outcomes import Outcome, error_body
from paceline_engine.alarms import Alarm
from paceline_engine.http1 import Call, ClientError, Exchange, Header

from paceline_router.answers import MAX_ANSWER_BYTES
from paceline_router.attempts import Leg, fault_of_status
from paceline_router.bodies import OURS_ALONE
from paceline_router.facts import Role
from paceline_router.shell import Shell
from paceline_router.spans import PassOn
from paceline_router.state import Ledger

PATHS = ("/tokenize", "/detokenize")  # vLLM's
PATIENCE_S = 30.0  # a text of the largest context is tokenised in about a second
MOST_TRIES = 2
CLIENT_GONE = Outcome.CLIENT_GONE.http_status
_JSON: Header = (b"content-type", b"application/json")


def least_busy(ledger: Ledger, avoid: frozenset[str], tie: int) -> str | None:
    """The replica with the fewest requests, of any role; among several the `tie`-th, counted round."""
    ready = [r for role in Role for r in ledger.ready(role) if r.name not in avoid]
    if not ready:
        return None
    fewest = min(r.legs for r in ready)
    least = [r.name for r in ready if r.legs == fewest]
    return least[tie % len(least)]


class Errand:
    """One request until its answer. It listens to the call to the engine that it is with."""

    def __init__(self, shell: Shell, exchange: Exchange, body: Mapping[str, Any], id_: bytes, tie: int) -> None:
        self._shell = shell
        self._exchange = exchange
        self._body = orjson.dumps({name: value for name, value in body.items() if name not in OURS_ALONE})
        self._id = id_
        self._tie = tie
        self._tried: frozenset[str] = frozenset()
        self._call: Call | None = None
        self._status = 0
        self._headers: list[Header] = []
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._limit: Alarm = shell.alarms.set(time.monotonic() + PATIENCE_S, self._too_late)
        exchange.on_gone = self._gone

    def start(self) -> None:
        """Sends it to a replica."""
        self._go("")

    # --- what an engine says

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._status = status
        self._headers = [h for h in headers if h[0].startswith((b"content-type", b"x-paceline-"))]

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > MAX_ANSWER_BYTES and self._call is not None:
            self._call.abort()
            self._give_up(Outcome.UPSTREAM_FAILED, f"the engine's answer is larger than {MAX_ANSWER_BYTES} bytes")

    def on_end(self) -> None:
        if self._status == 200 or (self._status >= 400 and fault_of_status(self._status) is None):
            self._answer(self._status, b"".join(self._pieces), self._headers)
        else:
            self._go(f"the engine answered {self._status}")

    def on_error(self, error: ClientError) -> None:
        self._go(str(error))

    # --- what follows

    def _go(self, failure: str) -> None:
        """To the next replica; after `failure` there may be none."""
        shell = self._shell
        name = least_busy(shell.ledger, self._tried, self._tie) if len(self._tried) < MOST_TRIES else None
        if name is None and failure:
            self._give_up(Outcome.UPSTREAM_FAILED, failure)
            return
        if name is None:
            self._give_up(Outcome.NO_ENDPOINT, "no replica is ready")
            return
        self._tried |= {name}
        self._pieces.clear()
        self._bytes = 0
        pool, exchange = shell.upstreams.pools[name], self._exchange
        trace = PassOn().begin(exchange).leg(Leg.WHOLE, shell.ledger.replicas[name], pool.host, pool.port)
        headers = shell.headers.plain(self._id, trace)
        self._call = pool.request(b"POST", exchange.path.encode(), headers, self._body, self)

    def _give_up(self, outcome: Outcome, message: str) -> None:
        self._answer(outcome.http_status, orjson.dumps(error_body(outcome, message)), [_JSON])

    def _answer(self, status: int, body: bytes, headers: list[Header]) -> None:
        self._end(status)
        kind = next((value for name, value in headers if name == b"content-type"), b"application/json")
        others = [header for header in headers if header[0] != b"content-type"]
        self._exchange.respond(status, body, content_type=kind, headers=[*others, (b"x-request-id", self._id)])

    def _too_late(self) -> None:
        self._abort()
        self._give_up(Outcome.TIMED_OUT, f"no engine answered within {PATIENCE_S:.0f} s")

    def _gone(self) -> None:
        self._abort()
        self._end(CLIENT_GONE)

    def _abort(self) -> None:
        if self._call is not None and not self._call.done:
            self._call.abort()

    def _end(self, status: int) -> None:
        self._limit.cancel()
        self._exchange.on_gone = None
        self._shell.metrics.passthrough.add(self._exchange.path, str(status))
