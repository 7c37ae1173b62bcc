"""Routers and simulated engines as processes of their own, clients that note how each request ended, and the accounts.

Every process is gone when its block ends, killed, stopped or well. What they log lies in the folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
from engine_peer import holds
from paceline_api.config import RouterConfig
from paceline_engine.http1 import ClientError, ClientPool, Header, fetch
from prometheus_client.parser import text_string_to_metric_families
from router_fleet import JSON

_SIM = (
    *("-m", "paceline_engine.sim", "--model=llama-3.1-8b", "--table=a100-sxm-80gb", "--served-name=m"),
    *("--max-model-len=8192", "--noise=0", "--stalls=0", "--seed=1"),
)
_PATIENCE_S = 60.0  # for what takes seconds on an idle machine; an engine that stands still takes 8


@dataclass(frozen=True, slots=True)
class Started:
    """A process and where it listens."""

    process: asyncio.subprocess.Process
    port: int


@dataclass(frozen=True, slots=True)
class _Process:
    process: asyncio.subprocess.Process
    log: Path


@asynccontextmanager
async def _started(log: Path, *args: str) -> AsyncIterator[_Process]:
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *args, stdout=out, stderr=out, env={**os.environ, "PACELINE_TOKEN": "t"}
        )
    try:
        yield _Process(process, log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()  # of a stopped one too
        await process.wait()


async def _reads(path: Path, started: _Process, word: str, times: int = 1) -> str:
    """The text of `path` once it holds `word` so often; the process must live until then."""

    async def there() -> bool:
        assert started.process.returncode is None, _text(started.log)
        return _text(path).count(word) >= times

    await holds(there)
    return _text(path)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


@asynccontextmanager
async def engines(folder: Path, *names: str) -> AsyncIterator[dict[str, Started]]:
    """One process for each; `decode0` has the role decode."""
    async with AsyncExitStack() as stack:
        found = {}
        for name in names:
            args = (*_SIM, f"--role={name.rstrip('0123456789')}", f"--announce={folder / name}.url")
            found[name] = await stack.enter_async_context(_started(folder / f"{name}.log", *args))
        ports = {}
        for name, started in found.items():
            urls = json.loads(await _reads(folder / f"{name}.url", started, "}"))
            ports[name] = int(urls.popitem()[1].rpartition(":")[2])
        yield {name: Started(started.process, ports[name]) for name, started in found.items()}


@asynccontextmanager
async def router(
    folder: Path, fleet: Mapping[str, Started], *flags: str, name: str = "router", port: int = 0, **over: object
) -> AsyncIterator[Started]:
    """A router over these engines, all of them ready; `over` goes into its configuration."""
    config, log = folder / f"{name}.json", folder / f"{name}.log"
    config.write_text(_config(fleet, **over).to_json())
    async with _started(log, "-m", "paceline_router", f"--config={config}", f"--port={port}", *flags) as started:
        said = await _reads(log, started, " ready=true", len(fleet))
        yield Started(started.process, int(said.partition("ready url=")[2].split()[0].rpartition(":")[2]))


def _config(fleet: Mapping[str, Started], **over: object) -> RouterConfig:
    replicas = [
        {"name": name, "url": f"http://127.0.0.1:{engine.port}", "role": name.rstrip("0123456789"), "pool": "p"}
        for name, engine in fleet.items()
    ]
    config = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 8192,
        "default_class": "c",
        "classes": [{"name": "c", "ttft_s": 60, "tpot_s": 1}],
        "policy": "round-robin",  # every engine gets its share
        "discovery": {"kind": "static", "replicas": replicas},
    }
    return RouterConfig.model_validate({**config, **over})


class Asked:
    """One request of `tokens` tokens and what came of it."""

    def __init__(self, pool: ClientPool, *, stream: bool, prompt_tokens: int = 16, tokens: int = 300) -> None:
        self._stream = stream
        self._tokens = tokens
        self._status = 0
        self._body = bytearray()
        self._over = asyncio.Event()
        self.begun = False  # content has reached the client
        body = {"prompt": [1] * prompt_tokens, "max_tokens": tokens, "ignore_eos": True, "stream": stream}
        if stream:
            body["stream_options"] = {"include_usage": True}
        pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(body), self)

    async def ending(self) -> str:
        """`whole`; `cut` for a stream that had begun and ended with the error of a failed engine; or what else."""
        async with asyncio.timeout(_PATIENCE_S):
            await self._over.wait()
        body = bytes(self._body)
        if not self._stream:
            answer = orjson.loads(body) if self._status == 200 else {}
            whole = answer.get("usage", {}).get("completion_tokens") == self._tokens
            return "whole" if whole else f"status {self._status}: {body[-300:]!r}"
        events = body.removesuffix(b"\n\n").split(b"\n\n")
        if events[-1] == b"data: [DONE]" and b'"completion_tokens":%d' % self._tokens in events[-2]:
            return "whole"
        if self._status == 200 and self.begun and b'"code":"upstream_failed"' in events[-1]:
            return "cut"
        return f"status {self._status}: {body[-300:]!r}"

    def on_head(self, status: int, headers: list[Header]) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        self._body += data
        self.begun = self.begun or b'"text"' in data

    def on_end(self) -> None:
        self._over.set()

    def on_error(self, error: ClientError) -> None:
        self._over.set()


async def counts(port: int, name: str, label: str) -> Mapping[str, int]:
    """Of one counter on a router's /metrics, by one label; those above 0."""
    pool = ClientPool("127.0.0.1", port)
    page = (await fetch(pool, b"GET", b"/metrics", timeout_s=10)).body.decode()
    pool.close()
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels[label]] += int(sample.value)
    return +found


async def settle(port: int, asked: Iterable[Asked]) -> Mapping[str, int]:
    """How the requests ended; checks that the router's own accounts say the same of every one of them.

    None may have failed that could have been retried: each is whole, or a stream that had begun.
    """
    endings = Counter([await each.ending() for each in asked])
    assert set(endings) <= {"whole", "cut"}, endings
    outcomes = await counts(port, "paceline_requests_total", "outcome")
    assert outcomes == +Counter(completed=endings["whole"], upstream_failed=endings["cut"])
    received = await counts(port, "paceline_requests_received_total", "slo_class")
    assert received == {"c": endings.total()}
    return endings
