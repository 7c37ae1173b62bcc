"""Serves the console: gathers from the router's state when asked, and samples its counters every few seconds.

The page's script and style are allowed by their hashes and nothing else is, so that no text from outside can run.
Invariant: answering changes nothing, and the figures of one answer are of one moment.
"""

from __future__ import annotations

import asyncio
import re
from base64 import b64encode
from hashlib import sha256
from importlib import resources

import orjson
from paceline_api.config import StaticDiscovery
from paceline_engine.http1 import Exchange, Header

from paceline_router.console import tally
from paceline_router.console.scaling import LOCAL, UNKNOWN, Scaling
from paceline_router.console.tally import Distribution, History, Sample, Tally
from paceline_router.console.view import Present, Service, Waiting, view
from paceline_router.gauges import Fleet
from paceline_router.metrics import Counters, Histogram
from paceline_router.shell import Shell

SHORTEST_EVERY_S = 1.0  # wall: what a fast time scale may not go below
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)
_NOT_STORED: tuple[Header, ...] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))


class Console:
    """One router's. `tell` hears what the LLMService says of itself."""

    def __init__(self, shell: Shell, fleet: Fleet) -> None:
        self._shell = shell
        self._fleet = fleet
        self._scaling = LOCAL if isinstance(shell.config.discovery, StaticDiscovery) else UNKNOWN
        self._history = History(Sample(shell.clock.now(), self._tallies()))
        self._page = resources.files(__package__).joinpath("console.html").read_bytes()
        self._page_headers = [*_NOT_STORED, (b"referrer-policy", b"no-referrer"), *_policy(self._page)]

    async def run(self) -> None:
        """Keeps the history; until cancelled."""
        every_s = max(self._shell.clock.wall(tally.EVERY_S), SHORTEST_EVERY_S)
        while True:
            await asyncio.sleep(every_s)
            self._history.add(self._sample())

    def tell(self, scaling: Scaling) -> None:
        self._scaling = scaling

    def page(self, exchange: Exchange) -> None:
        exchange.respond(200, self._page, content_type=b"text/html; charset=utf-8", headers=self._page_headers)

    def figures(self, exchange: Exchange) -> None:
        now = self._sample()
        shown = view(self._present(now), self._history.recent(now), self._history.trend())
        exchange.respond(200, orjson.dumps(shown), headers=_NOT_STORED)

    def _present(self, now: Sample) -> Present:
        shell = self._shell
        config = shell.config
        waiting = [Waiting(job.role, job.waiting_since_s) for job in shell.jobs if job.waiting_since_s is not None]
        return Present(
            Service(
                config.service,
                config.namespace,
                config.model,
                config.default_class,
                shell.classes,
                self._fleet.simulated,
                shell.clock.scale,
            ),
            now,
            shell.not_ready,
            list(shell.ledger.replicas.values()),
            [job.role for job in shell.jobs],
            waiting,
            self._scaling,
        )

    def _sample(self) -> Sample:
        return Sample(self._shell.clock.now(), self._tallies())

    def _tallies(self) -> dict[str, Tally]:
        metrics = self._shell.metrics
        verdicts, outcomes, misses = (_by_class(c) for c in (metrics.decided, metrics.outcomes, metrics.misses))
        return {
            name: Tally(
                arrivals,
                verdicts.get(name, {}),
                outcomes.get(name, {}),
                misses.get(name, {}),
                _distribution(metrics.ttft, name),
                _distribution(metrics.tpot, name),
            )
            for (name,), arrivals in metrics.received.values.items()
        }


def _by_class(counters: Counters) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (name, label), count in counters.values.items():
        found.setdefault(name, {})[label] = count
    return found


def _distribution(histogram: Histogram, name: str) -> Distribution:
    counts, _ = histogram.values.get((name,), ((), ()))
    return Distribution(tuple(histogram.bounds), tuple(counts)) if counts else Distribution()


def _policy(page: bytes) -> list[Header]:
    """Content-Security-Policy: nothing but the page's own inline parts, by hash, and its calls to this router."""
    hashes: dict[bytes, list[bytes]] = {b"script": [], b"style": []}
    for kind, text in _INLINE.findall(page):
        hashes[kind].append(b"'sha256-%b'" % b64encode(sha256(text).digest()))
    allowed = [b"%b-src %b" % (kind, b" ".join(each)) for kind, each in hashes.items()]
    rest = [b"default-src 'none'", b"connect-src 'self'", b"img-src data:", b"base-uri 'none'", b"form-action 'none'"]
    return [(b"content-security-policy", b"; ".join([*rest, b"frame-ancestors 'none'", *allowed]))]
