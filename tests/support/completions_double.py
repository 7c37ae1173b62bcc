"""A small server of completions on loopback: what it was sent, and a router's metrics about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
import uvloop
from paceline_engine.http1 import Exchange

T = TypeVar("T")


Json = dict[str, Any]


def run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def event(value: Json | str) -> bytes:
    return b"data: " + (value.encode() if isinstance(value, str) else orjson.dumps(value)) + b"\n\n"


@dataclass
class Engine:
    """Answers completions: the first token after `first_s`, one each `gap_s`, or what `answer` does instead."""

    first_s: float = 0.01
    gap_s: float = 0.002
    answer: Callable[[Exchange], None] | None = None
    metrics: Callable[[Engine], str] = lambda engine: ""
    received: list[Json] = field(default_factory=list)
    arrived_s: list[float] = field(default_factory=list)
    wrote_s: list[float] = field(default_factory=list)
    classes: list[bytes | None] = field(default_factory=list)
    completed: int = 0
    gone: int = 0

    def handle(self, exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            exchange.respond(200, self.metrics(self).encode(), content_type=b"text/plain")
        elif exchange.path == "/v1/models":
            exchange.respond(200, orjson.dumps({"data": [{"id": "m", "max_model_len": 100}]}))
        else:
            self.received.append(orjson.loads(exchange.body))
            self.arrived_s.append(exchange.received_at)
            self.classes.append(exchange.header(b"x-slo-class"))
            exchange.on_gone = self._leave
            (self.answer or self._stream)(exchange)

    def _leave(self) -> None:
        self.gone += 1

    def _stream(self, exchange: Exchange) -> None:
        body = self.received[-1]
        chat = exchange.path.endswith("chat/completions")
        exchange.start(200, [(b"content-type", b"text/event-stream"), (b"x-paceline-simulated", b"1")])
        if chat:
            exchange.write(event({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}))
        loop = asyncio.get_running_loop()

        def token(left: int) -> None:
            if exchange.gone:
                return
            choice: Json = {"delta": {"content": "a"}} if chat else {"text": "a"}
            self.wrote_s.append(time.monotonic())
            exchange.write(event({"choices": [choice | {"finish_reason": None if left > 1 else "length"}]}))
            if left > 1:
                loop.call_later(self.gap_s, token, left - 1)
                return
            prompt = 7 if chat else len(body["prompt"])
            usage = {"prompt_tokens": prompt, "completion_tokens": body["max_tokens"]}
            exchange.write(event({"choices": [], "usage": usage}) + event("[DONE]"))
            self.completed += 1
            exchange.end()

        loop.call_later(self.first_s, token, body["max_tokens"])


def router_metrics(engine: Engine, *, lateness_s: float = 0.0005, scale: float = 1.0) -> str:
    return f"""\
paceline_slo_limit_seconds{{slo_class="interactive",objective="ttft"}} 0.4
paceline_slo_limit_seconds{{slo_class="interactive",objective="tpot"}} 0.04
paceline_slo_limit_seconds{{slo_class="interactive",objective="stall"}} 0.12
paceline_slo_target_ratio{{slo_class="interactive"}} 0.95
paceline_gpus{{role="prefill"}} 2
paceline_gpus{{role="decode"}} 1
paceline_fleet_info{{simulated="1",time_scale="{scale}"}} 1
paceline_fleet_lateness_p99_seconds {lateness_s}
paceline_fleet_step_p50_seconds 0.02
# TYPE paceline_requests_received counter
paceline_requests_received_total{{slo_class="interactive"}} {len(engine.received) + 5}
# TYPE paceline_requests counter
paceline_requests_total{{slo_class="interactive",outcome="completed"}} {engine.completed + 5}
# TYPE paceline_slo_decided counter
paceline_slo_decided_total{{slo_class="interactive",result="good"}} {engine.completed + 5}
"""
