"""Asks a server what it is before it is measured: model, context, objectives, GPUs, time scale.

A Paceline router says all of it at `/v1/models` and `/metrics`; for another server the caller gives limits and GPUs.
Invariant: what the router says is never overridden, so that client and router judge by the same limits and clock.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from paceline_api.slo import SLOClass
from paceline_engine.http1 import ClientError, ClientPool, fetch

from paceline_planner.fleet import Fleet, MetricsError, parse_fleet
from paceline_planner.served_models import NoModel, served_model

API_KEY_ENV = "PACELINE_API_KEY"
_SETTLE_S = 2.0  # wall: for the router to count the last outcome and to scrape the engines once more
_FETCH_S = 5.0


class ReplayError(Exception):
    """Why nothing was sent: cause and what to do, one line."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller says of the server; None leaves it to the server."""

    class_name: str | None = None
    model: str | None = None
    time_scale: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    gpus: int | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """The server as it answered before the runs."""

    pool: ClientPool
    fleet: Fleet
    slo: SLOClass
    model: str
    context_tokens: int | None
    gpus: int | None
    time_scale: float


def open_pool(url: str, api_key: str | None = None) -> ClientPool:
    """A pool for the URL; OpenSSL's SSL_CERT_FILE names another authority than the system's. Raises ReplayError."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as e:
        raise ReplayError(f"{url}: {e}; give a URL such as http://127.0.0.1:8000") from e
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") not in ("", "v1"):
        raise ReplayError(f"{url}: not http://HOST:PORT or https://HOST:PORT; give such a URL")
    tls = ssl.create_default_context() if parts.scheme == "https" else None
    headers = [(b"authorization", b"Bearer " + api_key.strip().encode())] if api_key else []
    return ClientPool(parts.hostname, port, max_idle=4096, tls=tls, headers=headers)


async def _get(pool: ClientPool, path: bytes) -> bytes | None:
    """The body of a 200; None for another status. Raises ReplayError where no server answers."""
    try:
        answer = await fetch(pool, b"GET", path, timeout_s=_FETCH_S)
    except (ClientError, TimeoutError) as e:
        cause = f"{pool.url} does not answer ({str(e) or 'timed out'})"
        raise ReplayError(f"{cause}; start it with `paceline up FILE`, or mend --url") from e
    if answer.status == 401:
        raise ReplayError(f"the server refuses the API key, or wants one; put it into {API_KEY_ENV}")
    return answer.body if answer.status == 200 else None


async def read_fleet(pool: ClientPool) -> Fleet:
    """The fleet as `/metrics` says now; empty where that page is missing or not Prometheus'."""
    page = await _get(pool, b"/metrics")
    try:
        return parse_fleet(page.decode("utf-8", "replace")) if page else Fleet()
    except MetricsError:
        return Fleet()


async def settled_fleet(pool: ClientPool, before: Fleet, sent: int) -> Fleet | None:
    """The fleet once the router has counted every outcome of ours, or after a bounded wait. None: gone or restarted."""
    after: Fleet | None = None
    try:
        async with asyncio.timeout(_SETTLE_S):
            while True:
                after = await read_fleet(pool)
                if sum(after.outcomes.values()) - sum(before.outcomes.values()) >= sent:
                    break
                await asyncio.sleep(0.1)
    except (TimeoutError, ReplayError):
        pass
    return after if after and after.slos and after.received >= before.received else None


async def ask(pool: ClientPool, wanted: Wanted) -> Server:
    """What the server is, checked against what is wanted of it. Raises ReplayError."""
    models = await _get(pool, b"/v1/models")
    fleet = await read_fleet(pool)
    try:
        model, context = served_model(models, wanted.model, "--model")
    except NoModel as e:
        raise ReplayError(f"the server {e}") from e
    return Server(
        pool=pool,
        fleet=fleet,
        slo=_objective(wanted, fleet),
        model=model,
        context_tokens=context,
        gpus=fleet.gpus or wanted.gpus,
        time_scale=_time_scale(wanted, fleet),
    )


def _objective(wanted: Wanted, fleet: Fleet) -> SLOClass:
    """The class to judge by: the router's own, or that of --ttft-ms and --tpot-ms for a server that has none."""
    given = any(value is not None for value in (wanted.ttft_s, wanted.tpot_s, wanted.gpus))
    if not fleet.slos:
        if wanted.ttft_s is None or wanted.tpot_s is None:
            raise ReplayError("the server publishes no objectives; give --ttft-ms and --tpot-ms (and --gpus)")
        return SLOClass(wanted.class_name or "default", wanted.ttft_s, wanted.tpot_s)
    if given:
        raise ReplayError("the router has objectives and GPUs of its own; leave out --ttft-ms, --tpot-ms and --gpus")
    name = wanted.class_name or fleet.default_class
    if name is None or name not in fleet.slos:
        cause = "there are several classes" if name is None else f"there is no class {name!r}"
        raise ReplayError(f"{cause}; choose --class from {', '.join(fleet.slos)}")
    return fleet.slos[name]


def _time_scale(wanted: Wanted, fleet: Fleet) -> float:
    scale = wanted.time_scale or fleet.time_scale or 1.0
    if fleet.time_scale is not None and abs(scale - fleet.time_scale) > 1e-9 * scale:
        raise ReplayError(f"the fleet runs at time scale {fleet.time_scale:g}; leave out --time-scale {scale:g}")
    return scale
