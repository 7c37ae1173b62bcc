"""Mock engines for `router.py`: many ports in one uvloop process, as cheap as Python allows.

    python benchmarks/router_engines.py COUNT

Prints its ports as JSON. A request that is not streamed is answered at once with the same bytes. A streamed one gets as
many events as its prompt says, as far apart as it says (routers rewrite other fields of a body); the content of each is
the moment of its sending, by `time.monotonic()`. `/metrics` is a simulated engine's, in size too. Requests are taken as
whole and well-formed: only routers send here.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import cast

import uvloop
from paceline_engine.sim.metrics import EngineMetrics, Sample, render

MODEL = "mock"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream": ?true')
_PACE = re.compile(rb"gap_s=([0-9.]+) tokens=([0-9]+)")
_USAGE = b'"usage":{"prompt_tokens":24,"total_tokens":40,"completion_tokens":16}'
WHOLE = (
    b'{"id":"chatcmpl-0","object":"chat.completion","created":1700000000,"model":"mock","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"A replica answers with some sixteen tokens, as many as a short chat needs."},'
    b'"logprobs":null,"finish_reason":"stop"}],' + _USAGE + b"}"
)
_CHUNK = b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
_ROLE = (
    _CHUNK
    + b'"choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
)
_TOKEN = _CHUNK + b'"choices":[{"index":0,"delta":{"content":" %017.6f"},"logprobs":null,"finish_reason":null}]}\n\n'
_FINISH = _CHUNK + b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]}\n\n'
_USAGE_EVENT = _CHUNK + b'"choices":[],' + _USAGE + b"}\n\n"
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


def answer(body: bytes, content_type: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (content_type, len(body), body)


def _metrics() -> bytes:
    table = 'table="a100-sxm-80gb",model="llama-3.1-8b",tensor="1"'
    samples: list[Sample] = [
        ("gauge", "vllm:cache_config_info", 'block_size="16",num_gpu_blocks="27720"', 1),
        *(("gauge", "paceline_step_time_scale", f'regime="{r}",{table}', 1.0) for r in ("decode", "mixed")),
        *(("gauge", "paceline_step_time_offset_seconds", f'regime="{r}"', 0.0) for r in ("decode", "mixed")),
        ("gauge", "paceline_token_budget_tokens", "", 512),
    ]
    return render(f'model_name="{MODEL}",engine="0"', samples, EngineMetrics())


_WHOLE_ANSWER = answer(WHOLE)
_MODELS = answer(json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode())
_GETS = {
    b"/metrics": answer(_metrics(), b"text/plain; version=0.0.4; charset=utf-8"),
    b"/v1/models": _MODELS,
    b"/get_model_info": answer(b'{"model_path":"mock","is_generation":true}'),
    b"/model_info": answer(b'{"model_path":"mock","is_generation":true}'),
    b"/get_server_info": answer(b'{"model_id":"mock","dp_size":1}'),
    b"/server_info": answer(b'{"model_id":"mock","dp_size":1}'),
}
_OK = answer(b"{}")


class Engine(asyncio.Protocol):
    """One accepted connection: one request at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._read = b""
        self._transport: asyncio.Transport | None = None
        self._next: asyncio.TimerHandle | None = None
        self._gap_s = 0.0
        self._usage = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._next is not None:
            self._next.cancel()

    def data_received(self, data: bytes) -> None:
        read = self._read + data if self._read else data
        head = read.find(b"\r\n\r\n")
        length = _LENGTH.search(read, 0, head) if head >= 0 else None
        if head < 0 or len(read) < head + 4 + (int(length[1]) if length else 0):
            self._read = read
            return
        self._read = b""
        assert self._transport is not None
        if read.startswith(b"GET"):
            self._transport.write(_GETS.get(read[4 : read.find(b" ", 4)], _OK))
        elif _STREAM.search(read, head) is None:
            self._transport.write(_WHOLE_ANSWER)
        else:
            pace = _PACE.search(read, head)
            self._gap_s, tokens = (float(pace[1]), int(pace[2])) if pace else (0.0, 1)
            self._usage = b'"include_usage":true' in read or b'"include_usage": true' in read
            self._emit(tokens, self._loop.time(), first=True)

    def _emit(self, left: int, due_s: float, *, first: bool = False) -> None:
        """One event, and the next when it is due: no gap is lengthened by the lateness of the one before."""
        if self._transport is None:
            return
        event = _TOKEN % time.monotonic()
        if first:
            event = _ROLE + event
        piece = b"%x\r\n%b\r\n" % (len(event), event)
        if left == 1:
            last = _FINISH + (_USAGE_EVENT if self._usage else b"") + b"data: [DONE]\n\n"
            piece += b"%x\r\n%b\r\n0\r\n\r\n" % (len(last), last)
        self._transport.write(_STREAM_HEAD + piece if first else piece)
        if left > 1:
            due_s += self._gap_s
            self._next = self._loop.call_at(due_s, self._emit, left - 1, due_s)


async def _serve(count: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Engine(loop), "127.0.0.1", 0, backlog=4096) for _ in range(count)]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await loop.create_future()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
