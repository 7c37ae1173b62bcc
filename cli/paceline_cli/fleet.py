"""Runs a laid-out fleet: starts router and engines, waits until all are ready, watches attainment, drains.

The order is the point: engines and router start together, the URL is told when every replica is ready and the router
knows it, and a stop drains the router first, so that what it has accepted still finds its engines. SIGINT, SIGTERM and
SIGHUP stop; a second one forces. Raises ChildDied or NotReady; whatever happens, the group's end is the end of every
process.
"""

from __future__ import annotations

import asyncio
import resource
import secrets
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
from paceline_api.headers import TOKEN_ENV

from paceline_cli.display import Display
from paceline_cli.layout import Layout
from paceline_cli.processes import Child, Ended, Group
from paceline_cli.watch import Snapshot, Window, read_metrics

DRAINED, FAILED, STOPPED = 0, 1, 130
PROBE_EVERY_S = 0.1
WATCH_EVERY_S = 1.0
PROBE_TIMEOUT_S = 2.0
MOST_FILES = 65_536
DRAIN_MARGIN_S = 10.0  # a child ends its own drain at its timeout; only then is it killed


class NotReady(Exception):
    """The fleet was not ready in time; says which part."""


class Fleet:
    """One run of a layout within a group."""

    def __init__(
        self, layout: Layout, group: Group, display: Display, on_line: Callable[[str, str], None], url_file: Path | None
    ) -> None:
        self._layout = layout
        self._display = display
        self._url_file = url_file
        config = group.folder / "router.json"
        config.write_text(layout.config.to_json(), encoding="utf-8")
        self._router = Child(layout.router(config), group, self._crashed, on_line)
        self._urls: dict[Child, tuple[str, ...]] = {self._router: (layout.url,)}
        self._engines = [Child(engine.command, group, self._crashed, on_line) for engine in layout.engines]
        self._urls |= {child: e.urls for child, e in zip(self._engines, layout.engines, strict=True)}
        self._down: set[Child] = set()
        self._stop = asyncio.Event()
        self._forced = False

    async def run(self) -> int:
        """Until it is stopped; the exit code."""
        main = asyncio.current_task()
        assert main is not None
        loop = asyncio.get_running_loop()

        def on_signal() -> None:
            if self._stop.is_set() and not self._forced:
                self._forced = True
                main.cancel()
            self._stop.set()

        hang_up = () if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else (signal.SIGHUP,)  # nohup
        for number in (signal.SIGINT, signal.SIGTERM, *hang_up):
            loop.add_signal_handler(number, on_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                for child in self._urls:
                    tasks.create_task(child.run())
                lead = tasks.create_task(self._lead())
            return lead.result()
        except asyncio.CancelledError:
            if not self._forced:
                raise
            self._display.event("forced", note="ended without a drain")
            return STOPPED
        except ExceptionGroup as e:
            raise e.exceptions[0] from None  # the first failure cancelled the rest
        finally:
            self._remove_url()

    async def _lead(self) -> int:
        timeout = httpx.Timeout(PROBE_TIMEOUT_S)
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            ready = await self._until_ready(client)
            if ready:
                self._tell_ready()
                await self._watch(client)
        self._remove_url()
        clean = await self._drain()
        return (DRAINED if clean else FAILED) if ready else STOPPED

    async def _until_ready(self, client: httpx.AsyncClient) -> bool:
        """False when it was stopped first."""
        deadline_s = time.monotonic() + self._layout.startup_timeout_s
        ready = {url: False for urls in self._urls.values() for url in urls}
        while True:
            for child, urls in self._urls.items():
                for url in urls:
                    # the router is ready as soon as an engine can serve
                    ready[url] = ready[url] or await _is_ready(client, url)
                child.was_ready = all(ready[url] for url in urls)
            counts = {c.command.name: (sum(ready[u] for u in urls), len(urls)) for c, urls in self._urls.items()}
            self._display.starting(counts)
            if all(ready.values()) and await self._router_knows(client):
                return True
            if await self._stopped_within(PROBE_EVERY_S):
                return False
            if time.monotonic() > deadline_s:
                late = ", ".join(f"{name} {some} of {of}" for name, (some, of) in counts.items() if some < of)
                late = late or "the router, which does not find every engine ready"
                raise NotReady(
                    f"not ready within {self._layout.startup_timeout_s:g} s: {late}; "
                    "raise engine.startupTimeoutSeconds, or read what they print with --log FILE"
                )

    async def _router_knows(self, client: httpx.AsyncClient) -> bool:
        """Whether it gives requests to every engine: it asks them itself, and until then others do their work."""
        snapshot = await self._scrape(client)
        return snapshot is not None and snapshot.ready_replicas >= sum(len(self._urls[each]) for each in self._engines)

    async def _scrape(self, client: httpx.AsyncClient) -> Snapshot | None:
        """What the router's page says; None without one: a crashed router has its own line."""
        with suppress(httpx.HTTPError):
            answer = await client.get(f"{self._layout.url}/metrics")
            answer.raise_for_status()
            return read_metrics(answer.text, time.monotonic())
        return None

    def _tell_ready(self) -> None:
        layout = self._layout
        self._display.event("ready", **({"url": layout.url} | dict(layout.facts)))
        self._display.say(layout.curl)
        self._display.say(f"console {layout.url}/")
        if self._url_file:
            part = self._url_file.with_name(self._url_file.name + ".part")
            part.write_text(f"{layout.url}\n", encoding="utf-8")
            part.replace(self._url_file)

    def _remove_url(self) -> None:
        if self._url_file:
            self._url_file.unlink(missing_ok=True)

    async def _watch(self, client: httpx.AsyncClient) -> None:
        """Shows attainment until the stop."""
        window = Window()
        next_look_s = 0.0
        while not await self._stopped_within(WATCH_EVERY_S):
            for child in tuple(self._down):
                if child.pid and all([await _is_ready(client, url) for url in self._urls[child]]):
                    self._down.discard(child)
                    self._display.event("recovered", process=child.command.name)
            if (now_s := time.monotonic()) >= next_look_s:
                next_look_s = now_s + self._display.every_s
                if (snapshot := await self._scrape(client)) is not None:
                    self._display.attainment(window.add(snapshot), snapshot.in_flight)

    async def _drain(self) -> bool:
        """Router first, then engines; True when all of them ended by themselves."""
        within_s = self._layout.drain_timeout_s + DRAIN_MARGIN_S
        self._display.event("draining", timeout_s=f"{self._layout.drain_timeout_s:g}", note="Ctrl-C again forces")
        began_s = time.monotonic()
        for child in self._urls:
            child.retire()
        ended = {self._router: await self._router.stop(within_s)}
        ended |= dict(zip(self._engines, await asyncio.gather(*(e.stop(within_s) for e in self._engines)), strict=True))
        for child, clean in ended.items():
            if not clean:
                self._display.event("unclean", process=child.command.name, note="its drain failed, or took too long")
        self._display.event("stopped", seconds=f"{time.monotonic() - began_s:.1f}")
        return all(ended.values())

    async def _stopped_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)
        return self._stop.is_set()

    def _crashed(self, ended: Ended) -> None:
        self._down |= {child for child in self._urls if child.command.name == ended.name}
        again = f"{ended.again_in_s:g}"
        self._display.event("crashed", process=ended.name, how=ended.how, restart_in_s=again, last_line=ended.last_line)


async def _is_ready(client: httpx.AsyncClient, url: str) -> bool:
    try:
        status = (await client.get(f"{url}/readyz")).status_code
        if status == 404:  # vLLM without Paceline's plugin
            status = (await client.get(f"{url}/health")).status_code
        return status == 200
    except httpx.HTTPError:
        return False


def _raise_file_limit() -> None:
    """For the children, which inherit it: a router holds two connections a request, and many shells allow 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def run_fleet(
    layout: Layout, display: Display, on_line: Callable[[str, str], None], url_file: Path | None
) -> int:
    _raise_file_limit()
    env = {TOKEN_ENV: secrets.token_urlsafe(32), "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
    async with Group(env) as group:
        return await Fleet(layout, group, display, on_line, url_file).run()
