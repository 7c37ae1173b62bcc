"""The HTTP side of one simulated engine: vLLM's routes, `/readyz`, and the calls between engines.

Routes decide nothing: they read (`api`), hand over (`engine`) and answer. Invariant: every answer bears
`x-paceline-simulated: 1`, and what a caller without the service's token sends about objectives, KV or draining has no
effect.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import orjson
from paceline_api import headers

from paceline_engine.http1 import Exchange, Header, Limits, Server, serve
from paceline_engine.sim import answers, metrics, pull
from paceline_engine.sim.api import Ask, Refused, Served, read_ask
from paceline_engine.sim.engine import Engine, Phase
from paceline_engine.sim.metrics import LegResult
from paceline_engine.sim.objectives import read_objective
from paceline_engine.sim.reply import SIMULATED
from paceline_engine.sim.responses import read_response
from paceline_engine.sim.samples import samples
from paceline_engine.sim.tokens import detokenize, tokenize

_BYTES_PER_TOKEN = 64  # of a body: no token of a prompt that fits the context needs more
_MIN_BODY_BYTES = 4 << 20
_RETRY_AFTER: Header = (b"retry-after", b"1")
_TOKEN = headers.TOKEN.encode()


class ReadAsk(Protocol):
    """Reads the request in a decoded body."""

    def __call__(self, body: object, served: Served, *, trusted: bool) -> Ask | Refused: ...


class EngineServer:
    """Serves one engine on its own port."""

    def __init__(self, engine: Engine, token: str) -> None:
        self.engine = engine
        self._token = token.encode()
        options = engine.options
        self._served = Served(options.served_name, options.max_model_len, options.replica.block_size, options.kv_hosts)
        self._server: Server | None = None
        self._drains: set[asyncio.Task[None]] = set()
        self._labels = metrics.labels({"model_name": options.served_name, "engine": "0"})
        self._routes: dict[tuple[str, str], Callable[[Exchange], None]] = {
            ("POST", "/v1/chat/completions"): partial(self._generate, read=partial(read_ask, True)),
            ("POST", "/v1/completions"): partial(self._generate, read=partial(read_ask, False)),
            ("POST", "/v1/responses"): partial(self._generate, read=read_response),
            ("POST", "/tokenize"): partial(self._convert, convert=tokenize),
            ("POST", "/detokenize"): partial(self._convert, convert=detokenize),
            ("GET", "/v1/models"): self._models,
            ("GET", "/health"): lambda exchange: exchange.respond(200, headers=(SIMULATED,)),
            ("GET", "/readyz"): self._readyz,
            ("GET", "/metrics"): self._metrics,
            ("POST", "/paceline/drain"): self._drain,
            ("POST", pull.PULL): self._renew,
            ("POST", pull.RENEW): self._renew,
            ("POST", pull.RELEASE): self._release,
        }

    async def listen(self, host: str, port: int) -> None:
        """OSError when the address cannot be bound."""
        limits = Limits(max_body_bytes=max(_MIN_BODY_BYTES, _BYTES_PER_TOKEN * self._served.max_model_len))
        self._server = await serve(self._handle, host, port, limits=limits)
        self.engine.port = self._server.port

    async def close(self, timeout_s: float) -> None:
        """Stops listening; answers that are being sent have `timeout_s` (wall) to get out."""
        await self.engine.close()
        for task in self._drains:
            task.cancel()
        await asyncio.gather(*self._drains, return_exceptions=True)
        if self._server is not None:
            await self._server.drain(timeout_s)

    def _handle(self, exchange: Exchange) -> None:
        route = self._routes.get((exchange.method, exchange.path))
        if route is not None:
            route(exchange)
        elif any(path == exchange.path for _method, path in self._routes):
            _refuse(exchange, Refused("Method Not Allowed", status=405, code="method_not_allowed"))
        else:
            _refuse(exchange, Refused("Not Found", status=404, code="not_found"))

    def _is_trusted(self, exchange: Exchange) -> bool:
        """Whether the caller has the service's token; nobody has when none is set."""
        given = exchange.header(_TOKEN)
        return bool(self._token) and given is not None and hmac.compare_digest(given, self._token)

    def _generate(self, exchange: Exchange, *, read: ReadAsk) -> None:
        refused = self._busy() or self._take(exchange, read)
        if refused is not None:
            self._reject(exchange, refused)

    def _convert(self, exchange: Exchange, *, convert: Callable[[object, Served], dict[str, Any] | Refused]) -> None:
        answer = self._busy() or _read_json(exchange)
        if not isinstance(answer, Refused):
            answer = convert(answer, self._served)
        if isinstance(answer, Refused):
            self._reject(exchange, answer)
            return
        self.engine.count(LegResult.FINISHED)
        _respond(exchange, answer)

    def _busy(self) -> Refused | None:
        """Why nothing is taken on now."""
        phase = self.engine.phase
        if phase not in (Phase.LOADING, Phase.DRAINING):
            return None
        message = f"the engine is {phase.value}; send the request to another replica"
        return Refused(message, status=503, code="no_endpoint")

    def _reject(self, exchange: Exchange, refused: Refused) -> None:
        unserved = refused.status == 503
        self.engine.count(LegResult.REFUSED if unserved else LegResult.REJECTED)
        _refuse(exchange, refused, (_RETRY_AFTER,) if unserved else ())

    def _take(self, exchange: Exchange, read: ReadAsk) -> Refused | None:
        body = _read_json(exchange)
        if isinstance(body, Refused):
            return body
        trusted = self._is_trusted(exchange)
        ask = read(body, self._served, trusted=trusted)
        if isinstance(ask, Refused):
            return ask
        objective = read_objective(exchange.header, self.engine.options.objective, trusted=trusted)
        if isinstance(objective, Refused):
            return objective
        return self.engine.take(exchange, ask, objective)

    def _models(self, exchange: Exchange) -> None:
        served = self._served
        model = {
            "id": served.name,
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "root": self.engine.options.model,
        }
        model["max_model_len"] = served.max_model_len
        _respond(exchange, {"object": "list", "data": [model]})

    def _readyz(self, exchange: Exchange) -> None:
        phase = self.engine.phase
        exchange.respond(
            200 if phase is Phase.READY else 503, phase.value.encode(), content_type=b"text/plain", headers=(SIMULATED,)
        )

    def _metrics(self, exchange: Exchange) -> None:
        body = metrics.render(self._labels, samples(self.engine), self.engine.metrics)
        exchange.respond(200, body, content_type=metrics.CONTENT_TYPE, headers=(SIMULATED,))

    def _drain(self, exchange: Exchange) -> None:
        """Begins to drain and answers at once; progress shows on /metrics."""
        if not self._is_trusted(exchange):
            _refuse(exchange, _FORBIDDEN)
            return
        if self.engine.phase in (Phase.LOADING, Phase.READY):
            task = asyncio.get_running_loop().create_task(self.engine.drain())
            self._drains.add(task)
            task.add_done_callback(self._drains.discard)
        _respond(exchange, {"draining": True}, 202)

    def _renew(self, exchange: Exchange) -> None:
        if (ids := self._kv_ids(exchange)) is None:
            return
        lease_s = self.engine.leases.renew(*ids)
        if lease_s is None:
            _refuse(exchange, Refused("this engine does not keep that KV", status=404, code="kv_gone"))
        else:
            _respond(exchange, {"lease_s": lease_s})

    def _release(self, exchange: Exchange) -> None:
        if (ids := self._kv_ids(exchange)) is not None:
            _respond(exchange, {"released": self.engine.leases.release(*ids)})

    def _kv_ids(self, exchange: Exchange) -> tuple[str, str] | None:
        """(engine id, request id) of a call between engines; None when it has been refused."""
        if not self._is_trusted(exchange):
            _refuse(exchange, _FORBIDDEN)
            return None
        body = _read_json(exchange)
        if isinstance(body, Refused):
            _refuse(exchange, body)
            return None
        match body:
            case {"engine_id": str() as engine_id, "request_id": str() as request_id}:
                return engine_id, request_id
            case _:
                _refuse(exchange, Refused("engine_id and request_id must be texts"))
                return None


_FORBIDDEN = Refused(f"{headers.TOKEN} is missing or wrong", status=403, code="forbidden")


def _read_json(exchange: Exchange) -> object | Refused:
    try:
        body: object = orjson.loads(exchange.body)
    except orjson.JSONDecodeError as e:
        return Refused(f"the body is not JSON: {e}")
    return body


def _respond(exchange: Exchange, body: object, status: int = 200) -> None:
    exchange.respond(status, orjson.dumps(body), headers=(SIMULATED,))


def _refuse(exchange: Exchange, refused: Refused, extra: tuple[Header, ...] = ()) -> None:
    body = answers.error(refused.message, code=refused.code, status=refused.status, param=refused.param)
    exchange.respond(refused.status, body, headers=(SIMULATED, *extra))
