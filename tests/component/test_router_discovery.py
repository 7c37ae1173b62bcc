"""The router on Kubernetes in one loop: replicas come and go under load, readiness, and the drain with its notice."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import uvloop
import yaml
from engine_double import EngineDouble, Reply
from paceline_api.config import KubernetesDiscovery, RouterConfig
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, Exchange, Response, Server, fetch, serve
from paceline_router.discovery import follow
from paceline_router.kube import Changed, Listed
from paceline_router.server import Router
from waiting import until

JSON = [(b"content-type", b"application/json")]
DISCOVERY = KubernetesDiscovery(namespace="llm", service="chat")


class Cluster:
    """EndpointSlices as a test sets them: one a role and revision, endpoints by the engine's name."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Listed | Changed] = asyncio.Queue()

    async def watch(self, path: str, params: Mapping[str, str] | None = None) -> AsyncIterator[Listed | Changed]:
        while True:
            yield await self.events.get()

    def list(self, *slices: dict[str, Any]) -> None:
        self.events.put_nowait(Listed(slices, "1"))

    def change(self, slice_: dict[str, Any]) -> None:
        self.events.put_nowait(Changed("MODIFIED", slice_))


def make_slice(role: str, revision: str, engines: Mapping[str, EngineDouble], **conditions: bool) -> dict[str, Any]:
    """One port a slice, and the doubles differ in theirs: a slice for each."""
    ((name, engine),) = engines.items()
    labels = {"service": "chat", "pool": role, "role": role, "revision": revision}
    return {
        "metadata": {"name": f"s-{name}", "labels": {f"paceline.dev/{k}": v for k, v in labels.items()}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": engine.port}],
        "endpoints": [
            {"addresses": ["127.0.0.1"], "conditions": conditions, "targetRef": {"name": name, "uid": f"uid-{name}"}}
        ],
    }


class Up:
    """A running router on a scripted cluster."""

    def __init__(self, router: Router, server: Server, cluster: Cluster, pool: ClientPool) -> None:
        self.router, self.server, self.cluster, self.pool = router, server, cluster, pool
        self.stop = asyncio.Event()
        self.running: asyncio.Task[None] | None = None

    async def get(self, path: str) -> Response:
        return await fetch(self.pool, b"GET", path.encode(), timeout_s=5)

    async def ask(self, **over: Any) -> Response:
        body = orjson.dumps({"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "stream": True, **over})
        return await fetch(self.pool, b"POST", b"/v1/completions", JSON, body, timeout_s=5)

    def ready(self) -> set[str]:
        return {name for name, replica in self.router.shell.ledger.replicas.items() if replica.is_active}

    async def until_ready(self, *names: str) -> None:
        await until(lambda: self.ready() == set(names))

    @property
    def outcomes(self) -> dict[str, int]:
        values = self.router.shell.metrics.outcomes.values
        return {outcome: n for (_, outcome), n in values.items() if n}


def make_config(**over: Any) -> RouterConfig:
    base = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 4096,
        "default_class": "c",
        "classes": [{"name": "c", "ttft_s": 1, "tpot_s": 1}],
        "discovery": DISCOVERY.model_dump(),
    }
    return RouterConfig.model_validate({**base, **over})


@asynccontextmanager
async def router(notice_s: float = 0.0) -> AsyncIterator[Up]:
    made = Router(make_config(), DISCOVERY, Clock(), token="secret")
    server = await made.listen("127.0.0.1", 0)
    up = Up(made, server, Cluster(), ClientPool("127.0.0.1", server.port))
    follower = follow(up.cluster, DISCOVERY, made.membership)
    up.running = asyncio.create_task(made.run(server, up.stop, follower, notice_s=notice_s))
    try:
        yield up
    finally:
        up.pool.close()
        up.stop.set()
        await asyncio.wait_for(up.running, 5)


@asynccontextmanager
async def engines(*names: str) -> AsyncIterator[dict[str, EngineDouble]]:
    async with AsyncExitStack() as stack:
        started = {}
        for name in names:
            started[name] = await EngineDouble().start()
            stack.push_async_callback(started[name].stop)
        yield started


def words(response: Response) -> int:
    return response.body.count(b'"text"')


def test_what_comes_before_it_knows_its_replicas_waits_for_them() -> None:
    async def body() -> None:
        async with router() as up, engines("m0") as doubles:
            early = [asyncio.create_task(up.ask()) for _ in range(3)]
            await until(lambda: len(up.router.shell.jobs) == 3)
            early[0].cancel()
            await until(lambda: len(up.router.shell.jobs) == 2)
            up.cluster.list(make_slice("mixed", "a", doubles))
            answers = await asyncio.wait_for(asyncio.gather(*early[1:]), 5)
            assert [answer.status for answer in answers] == [200, 200]
            assert up.outcomes == {"completed": 2, "client_gone": 1}

    uvloop.run(body())


def test_it_does_not_wait_for_ever_for_an_api_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline_router.server.OPENS_AFTER_S", 0.2)

    async def body() -> None:
        async with router() as up:
            answer = await up.ask()
            assert (answer.status, up.outcomes) == (503, {"no_endpoint": 1})

    uvloop.run(body())


def test_it_is_ready_once_it_knows_its_replicas_and_answers_503_while_there_is_none() -> None:
    async def body() -> None:
        async with router() as up, engines("m0") as doubles:
            before = await up.get("/readyz")
            assert (before.status, before.body) == (503, b"the replicas of the service are not known yet\n")
            up.cluster.list()
            await until(lambda: up.router.shell.is_ready)
            assert (await up.get("/readyz")).status == 200
            assert (await up.ask()).status == 503
            up.cluster.change(make_slice("mixed", "a", doubles))
            await up.until_ready("m0")
            assert (await up.ask()).status == 200
            assert up.outcomes == {"no_endpoint": 1, "completed": 1}

    uvloop.run(body())


def test_a_terminating_replica_finishes_what_it_has_while_new_requests_go_elsewhere() -> None:
    async def body() -> None:
        async with router() as up, engines("m0", "m1") as doubles:
            old, new = ({name: doubles[name]} for name in ("m0", "m1"))
            up.cluster.list(make_slice("mixed", "a", old))
            await up.until_ready("m0")
            doubles["m0"].script = lambda _: Reply(gap_s=0.05)
            first = asyncio.create_task(up.ask())
            await until(lambda: bool(doubles["m0"].asked))
            up.cluster.change(make_slice("mixed", "b", new))
            up.cluster.change(make_slice("mixed", "a", old, ready=False, terminating=True))
            await up.until_ready("m1")
            assert set(up.router.shell.ledger.replicas) == {"m0", "m1"}
            assert words(await up.ask()) == 5
            assert words(await first) == 5
            await until(lambda: set(up.router.shell.ledger.replicas) == {"m1"})
            assert (len(doubles["m0"].asked), len(doubles["m1"].asked)) == (1, 1)
            assert up.outcomes == {"completed": 2}
            assert up.router.shell.metrics.retries.values == {}

    uvloop.run(body())


def test_a_prompt_whose_decode_replicas_went_meanwhile_is_computed_again_by_the_next_revision() -> None:
    async def body() -> None:
        async with router() as up, engines("p-a", "d-a", "p-b", "d-b") as doubles:
            a = [make_slice(role, "a", {f"{role[0]}-a": doubles[f"{role[0]}-a"]}) for role in ("prefill", "decode")]
            b = [make_slice(role, "b", {f"{role[0]}-b": doubles[f"{role[0]}-b"]}) for role in ("prefill", "decode")]
            up.cluster.list(*a)
            await up.until_ready("p-a", "d-a")
            doubles["p-a"].script = lambda _: Reply(gap_s=0.2)
            asked = asyncio.create_task(up.ask())
            await until(lambda: bool(doubles["p-a"].asked))
            up.cluster.list(*b)
            await up.until_ready("p-b", "d-b")
            assert words(await asked) == 5
            assert [len(doubles[name].asked) for name in ("p-a", "d-a", "p-b", "d-b")] == [1, 0, 1, 1]
            assert up.outcomes == {"completed": 1}
            await until(lambda: set(up.router.shell.ledger.replicas) == {"p-b", "d-b"})

    uvloop.run(body())


def test_in_its_notice_it_is_unready_serves_on_and_sends_clients_to_new_connections() -> None:
    async def body() -> None:
        async with router(notice_s=2.0) as up, engines("m0") as doubles:
            up.cluster.list(make_slice("mixed", "a", doubles))
            await up.until_ready("m0")
            assert (await up.ask()).header(b"connection") is None
            up.stop.set()
            await until(lambda: up.router.shell.draining)
            for _ in range(2):
                assert (await up.get("/readyz")).status == 503
                late = await up.ask()
                assert (late.status, words(late), late.header(b"connection")) == (200, 5, b"close")
            assert up.running is not None
            assert not up.running.done()
            doubles["m0"].script = lambda _: Reply(gap_s=0.5)
            assert words(await up.ask()) == 5  # beyond the notice
            await asyncio.wait_for(up.running, 5)
            assert up.server.open_connections == 0
            assert up.outcomes == {"completed": 4}

    uvloop.run(body())


class API:
    """The two answers of an API server that discovery asks for: a list, and a watch that a test writes to.

    Its role is that of an older chart: pools and the service are not for this router to read.
    """

    def __init__(self, *slices: dict[str, Any]) -> None:
        self.list = {"kind": "EndpointSliceList", "metadata": {"resourceVersion": "1"}, "items": list(slices)}
        self.watch: Exchange | None = None

    def handle(self, exchange: Exchange) -> None:
        if not exchange.path.endswith("/endpointslices"):
            exchange.respond(403, orjson.dumps({"kind": "Status", "reason": "Forbidden", "message": "no", "code": 403}))
            return
        if "watch=true" not in exchange.query:
            exchange.respond(200, orjson.dumps(self.list))
            return
        exchange.start(200)
        exchange.write(b"")
        self.watch = exchange

    def change(self, slice_: dict[str, Any]) -> None:
        assert self.watch is not None
        versioned = slice_ | {"metadata": slice_["metadata"] | {"resourceVersion": "2"}}
        self.watch.write(orjson.dumps({"type": "MODIFIED", "object": versioned}) + b"\n")


def test_as_a_process_it_follows_a_cluster_and_its_file_and_leaves_after_its_notice(tmp_path: Path) -> None:
    async def body() -> None:
        async with engines("m0") as doubles:
            api = API(make_slice("mixed", "a", doubles))
            server = await serve(api.handle, "127.0.0.1", 0)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "paceline_router", "--port", "0", "--drain-notice-s", "2"),
                *("--config", str(write_config(tmp_path, "c"))),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "KUBECONFIG": str(write_kubeconfig(tmp_path, server.port))},
            )
            try:
                async with asyncio.timeout(20):
                    await drive(process, api, make_slice("mixed", "a", doubles, terminating=True), tmp_path)
            finally:
                if process.returncode is None:
                    process.kill()
                await server.close()

    uvloop.run(body())


async def drive(process: asyncio.subprocess.Process, api: API, going: dict[str, Any], folder: Path) -> None:
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    pool = ClientPool("127.0.0.1", int(line.split("url=http://127.0.0.1:")[1].split()[0]))

    async def post(slo_class: bytes = b"c") -> int:
        headers = [*JSON, (b"x-slo-class", slo_class)]
        return (await fetch(pool, b"POST", b"/v1/completions", headers, b'{"prompt":[1]}', timeout_s=5)).status

    async def until(ask: Callable[[], Awaitable[int]], status: int) -> None:
        while await ask() != status:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)

    async def ready() -> int:
        return (await fetch(pool, b"GET", b"/readyz", timeout_s=5)).status

    await until(ready, 200)
    await until(post, 200)
    assert await post(b"batch") == 400
    write_config(folder, "c", "batch")
    await until(partial(post, b"batch"), 200)
    process.terminate()
    await until(ready, 503)
    assert await post() == 200
    api.change(going)
    await until(post, 503)
    assert await process.wait() == 0
    pool.close()


def write_config(folder: Path, *classes: str) -> Path:
    config = make_config(classes=[{"name": name, "ttft_s": 1, "tpot_s": 1} for name in classes])
    path = folder / "router.json"
    path.with_suffix(".new").write_text(config.to_json())
    return path.with_suffix(".new").rename(path)


def write_kubeconfig(folder: Path, port: int) -> Path:
    path = folder / "kubeconfig"
    named: dict[str, dict[str, Any]] = {
        "contexts": {"context": {"cluster": "n", "user": "n"}},
        "clusters": {"cluster": {"server": f"http://127.0.0.1:{port}"}},
        "users": {"user": {}},
    }
    lists = {kind: [{"name": "n", **entry}] for kind, entry in named.items()}
    path.write_text(yaml.safe_dump({"current-context": "n", **lists}))
    return path
