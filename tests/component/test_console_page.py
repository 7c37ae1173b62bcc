"""The console of a running router: its JSON against its /metrics, and the page in a real browser under `paceline up`.

PACELINE_SCREENSHOT=FILE makes the browser's test load the fleet for longer and write the picture of docs/console.md.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvloop
from console_page import ConsolePage, chromium, metrics_figures, pool_figures
from engine_double import EngineDouble, Reply
from paceline_api.config import RouterConfig
from paceline_engine.clock import Clock
from paceline_engine.http1 import ClientPool, Response, fetch
from paceline_router.server import Router
from waiting import until

JSON = [(b"content-type", b"application/json")]
SCREENSHOT = os.environ.get("PACELINE_SCREENSHOT")
PATIENCE_S = 30.0


def make_config(urls: dict[str, str]) -> RouterConfig:
    replicas = [{"name": f"{role}-0", "url": url, "role": role, "pool": role} for role, url in urls.items()]
    return RouterConfig.model_validate(
        {
            "service": "chat",
            "model": "m",
            "max_context_tokens": 4096,
            "default_class": "interactive",
            "classes": [
                {"name": "interactive", "ttft_s": 1, "tpot_s": 1},
                {"name": "batch", "ttft_s": 1e-6, "tpot_s": 1},
            ],
            "discovery": {"kind": "static", "replicas": replicas},
        }
    )


class Up:
    """A running router in front of scripted engines."""

    def __init__(self, pool: ClientPool, engines: dict[str, EngineDouble]) -> None:
        self.pool, self.engines = pool, engines

    async def get(self, path: str, method: bytes = b"GET") -> Response:
        return await fetch(self.pool, method, path.encode(), timeout_s=5)

    async def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads((await self.get("/console.json")).body)
        return found

    async def ask(self, slo_class: str = "interactive", **over: Any) -> Response:
        body = orjson.dumps({"model": "m", "prompt": [1, 2, 3], "max_tokens": 5, "stream": True, **over})
        headers = [*JSON, (b"x-slo-class", slo_class.encode())]
        return await fetch(self.pool, b"POST", b"/v1/completions", headers, body, timeout_s=5)


@asynccontextmanager
async def fleet(*roles: str) -> AsyncIterator[Up]:
    engines = {role: await EngineDouble().start() for role in roles}
    config = make_config({role: engine.url for role, engine in engines.items()})
    router = Router(config, config.discovery, Clock(), token="secret")
    server = await router.listen("127.0.0.1", 0)
    stop = asyncio.Event()
    running = asyncio.create_task(router.run(server, stop))
    pool = ClientPool("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(5):
            while not router.shell.is_ready:  # noqa: ASYNC110 - probes end when they end
                await asyncio.sleep(0.005)
        yield Up(pool, engines)
    finally:
        pool.close()
        for engine in engines.values():
            await engine.stop()
        stop.set()
        await asyncio.wait_for(running, 5)


def named(shown: dict[str, Any]) -> dict[str, Any]:
    """The JSON's figures, by the names that the page gives them."""
    found = {"gpus": sum(pool["gpus"] for pool in shown["pools"])}

    def walk(at: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{at}.{name}", inner)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for inner in value:
                walk(f"{at}.{inner.get('name') or inner.get('role')}", inner)
        else:
            found[at.removeprefix(".")] = value

    walk("", shown)
    return found


def differing(shown: dict[str, Any], metrics: str) -> dict[str, tuple[Any, Any]]:
    """Figures that the two readings do not agree on. A cause of which there is none yet may be absent."""
    told = metrics_figures(metrics) | pool_figures(metrics)
    return {
        name: (shown.get(name), value)
        for name, value in told.items()
        if not (shown.get(name, 0) == value or (value and shown.get(name) == pytest.approx(value)))
    }


def test_the_figures_are_those_of_metrics_while_requests_run_and_after() -> None:
    async def body() -> None:
        async with fleet("prefill", "decode") as up:
            for _ in range(3):
                await up.ask()
            await up.ask("batch")
            await up.ask("no such class")
            await up.ask(prompt=[])
            up.engines["prefill"].script = lambda _: Reply(gap_s=0.3)
            asked, before_s = len(up.engines["prefill"].asked), time.monotonic()
            late = asyncio.create_task(up.ask())
            await until(lambda: len(up.engines["prefill"].asked) > asked)
            shown, metrics = await up.shown(), (await up.get("/metrics")).body.decode()
            assert differing(named(shown), metrics) == {}
            assert shown["requests"]["in_flight"] == 1
            assert [(r["role"], r["waiting"]) for r in shown["roles"]] == [("prefill", 1), ("decode", 0)]
            assert 0 < shown["roles"][0]["oldest_s"] <= time.monotonic() - before_s
            await late
            shown, metrics = await up.shown(), (await up.get("/metrics")).body.decode()
            assert differing(named(shown), metrics) == {}
            assert [c["standing"] for c in shown["classes"]] == ["meeting", "missing"]
            assert shown["requests"]["total"]["outcomes"]["rejected"] == 2
            assert shown["requests"]["recent"] == shown["requests"]["total"] | {
                rate: shown["requests"]["recent"][rate] for rate in ("arrivals_per_s", "goodput_per_s")
            }
            assert sum(shown["misses"]["total"].values()) == 1
            assert shown["scaling"]["note"].startswith("Nothing scales here")
            assert shown["simulated"]

    uvloop.run(body())


def test_the_page_is_served_whole_and_is_not_stored() -> None:
    async def body() -> None:
        async with fleet("mixed") as up:
            page, figures = await up.get("/"), await up.get("/console.json")
            assert page.header(b"content-type") == b"text/html; charset=utf-8"
            assert page.body.startswith(b"<!doctype html>")
            assert page.body.endswith(b"</html>\n")
            assert (page.header(b"content-security-policy") or b"").startswith(b"default-src 'none'")
            for answer in (page, figures):
                assert (answer.status, answer.header(b"cache-control")) == (200, b"no-store")
            head = await up.get("/", b"HEAD")
            assert (head.status, head.body, head.header(b"content-length")) == (200, b"", str(len(page.body)).encode())
            assert (await up.get("/console.json", b"POST")).status == 405

    uvloop.run(body())


# --- in a browser


SERVICE = """
apiVersion: paceline.dev/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  model: {uri: "hf://meta-llama/Llama-3.1-8B-Instruct", servedName: llama-3.1-8b, maxContextTokens: 16384}
  slo:
    defaultClass: interactive
    classes:
    - {name: interactive, ttftMs: 200, tpotMs: 40, attainmentPercent: 95}
    - {name: batch, ttftMs: 5000, tpotMs: 250, attainmentPercent: 90}
  topology: Disaggregated
  pools:
  - {name: prefill, role: Prefill, replicas: 2, accelerator: a100-sxm-80gb}
  - {name: decode, role: Decode, replicas: 1, accelerator: a100-sxm-80gb}
  engine: {runtime: Simulated}
"""
PACELINE = (sys.executable, "-m", "paceline_cli")


@contextmanager
def up(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`paceline up`, ready: its URL and its process."""
    (folder / "chat.yaml").write_text(SERVICE)
    url_file = folder / "url"
    command = (*PACELINE, "up", str(folder / "chat.yaml"), "--port=0", f"--url-file={url_file}", "--no-display")
    with (folder / "out").open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while not url_file.exists():
            assert process.poll() is None, (folder / "out").read_text()
            assert time.monotonic() < deadline_s
            time.sleep(0.02)
        yield url_file.read_text().strip(), process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def offer(url: str, seconds: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """Load of both classes."""
    loads = (("interactive", "chat", "8"), ("batch", "summarisation", "1"))
    to = ("--url", url, "--duration", str(seconds))
    commands = [
        (*PACELINE, "replay", *to, "--synthetic", kind, "--rate", rate, "--class", name, f"--json={folder / name}.json")
        for name, kind, rate in loads
    ]
    return [subprocess.Popen(c, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for c in commands]


@pytest.mark.requires("chromium")
def test_the_page_under_paceline_up_shows_what_metrics_say(tmp_path: Path) -> None:
    with up(tmp_path) as (url, process), chromium(tmp_path / "profile") as page:
        page.open(url)
        page.size(1120, 900)
        loads = offer(url, 100 if SCREENSHOT else 4, tmp_path)
        if SCREENSHOT:
            time.sleep(90)
            page.save(Path(SCREENSHOT))
            page.size(1120, 900)
        assert [load.wait(60) for load in loads] == [0, 0]
        page.refreshed()
        shown, metrics = page.figures(), httpx.get(f"{url}/metrics").text
        assert differing(shown, metrics) == {}
        assert shown["requests.total.arrivals"] == shown["requests.total.outcomes.completed"]
        assert shown["requests.total.arrivals"]
        check_reading(page, shown)
        check_hidden(page)
        for width in (1120, 400):
            page.size(width, 900)
            assert page.run("return document.documentElement.scrollWidth") <= width
        assert page.problems() == []
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_S)
        wait_for(page, "not answered since", "return document.getElementById('away').textContent")


def check_reading(page: ConsolePage, shown: dict[str, float | None]) -> None:
    """What a person reads is the figure beside it."""
    texts = page.texts()
    arrivals = shown["classes.interactive.total.arrivals"]
    share = shown["classes.batch.total.attainment_ratio"]
    p90_s = shown["classes.interactive.total.ttft_s.p90"]
    assert arrivals is not None
    assert share is not None
    assert p90_s is not None
    assert texts["classes.interactive.total.arrivals"] == f"{arrivals:,.0f}"
    assert texts["classes.batch.total.attainment_ratio"] == f"{int(share * 1000 + 1e-9) / 10:.1f} %"
    assert texts["classes.interactive.total.ttft_s.p90"].removesuffix(" ▲") == f"{p90_s * 1000:.0f} ms"
    assert texts["pools.prefill.ready"] == "2 of 2"
    assert {texts[f"classes.{name}.standing"] for name in ("interactive", "batch")} <= {"meeting", "missing"}
    assert page.run("return document.title") == "chat · Paceline"
    assert page.run("return document.getElementById('simulated').hidden") is False
    assert "Nothing scales here" in page.run("return document.querySelector('main').innerText")


def check_hidden(page: ConsolePage) -> None:
    """It asks nothing while nobody sees it, and at once when somebody does."""
    become = "Object.defineProperty(document, 'hidden', {value: %s, configurable: true});"
    told = " document.dispatchEvent(new Event('visibilitychange'));"
    page.run(become % "true" + told)
    time.sleep(0.5)  # an answer under way
    before = page.shown
    time.sleep(1.5)
    assert page.shown == before
    page.run(become % "false" + told)
    page.refreshed()


def wait_for(page: ConsolePage, word: str, script: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while word not in page.run(script):
        assert time.monotonic() < deadline_s, page.run(script)
        time.sleep(0.1)
