"""Engines and routers that die, stand still, break off and talk nonsense: the accounts hold every request.

Engines and routers are processes of their own, so that a signal is a real one; what an engine says wrongly comes from a
scripted one. None of the requests that could have been retried may fail: those fail whose client had read content.
"""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import orjson
import pytest
from engine_peer import Peer
from paceline_engine.http1 import ClientError, ClientPool, fetch
from recording_upstream import End, Says, Upstream, routed
from router_fleet import EXPECTED, JSON, Listener, ask, listen, run, words
from router_processes import Asked, Started, counts, engines, router, settle
from waiting import until

_PAIRS = ("prefill0", "prefill1", "decode0", "decode1")
_LONG_TOKENS = 6000  # of a prompt: more than half a second of an engine's time


@dataclass(frozen=True, slots=True)
class Fault:
    """`signum` is sent to each of `victims` while some requests compute their prompts and others decode."""

    says: str
    victims: tuple[str, ...]
    signum: signal.Signals
    cuts: bool  # whether streams that have begun break off


_FAULTS = [
    Fault("a prefill engine is killed", ("prefill0",), signal.SIGKILL, cuts=False),
    Fault("a decode engine is killed", ("decode0",), signal.SIGKILL, cuts=True),
    Fault("a prefill and a decode engine stand still", ("prefill0", "decode0"), signal.SIGSTOP, cuts=True),
    Fault("a prefill and a decode engine stop in good order", ("prefill0", "decode0"), signal.SIGTERM, cuts=False),
]


async def _is_busy(engine: Started) -> None:
    async with Peer(engine.port) as peer:
        while not (await peer.metrics())["vllm:num_requests_running"]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", _FAULTS, ids=lambda fault: fault.says)
def test_requests_survive_what_happens_to_an_engine(fault: Fault, tmp_path: Path) -> None:
    async def main() -> None:
        async with engines(tmp_path, *_PAIRS) as up, router(tmp_path, up) as front:
            pool = ClientPool("127.0.0.1", front.port)
            decoding = [Asked(pool, stream=i % 4 < 2) for i in range(8)]
            await until(lambda: all(each.begun for each in decoding[:2] + decoding[4:6]))
            computing = [Asked(pool, stream=i % 4 < 2, prompt_tokens=_LONG_TOKENS, tokens=9) for i in range(8)]
            for name in fault.victims:
                await _is_busy(up[name])
            for name in fault.victims:
                up[name].process.send_signal(fault.signum)
            after = [Asked(pool, stream=i % 2 == 0, tokens=9) for i in range(4)]
            endings = await settle(front.port, [*decoding, *computing, *after])
            assert bool(endings["cut"]) is fault.cuts
            assert await counts(front.port, "paceline_retries_total", "fault")
            ejections = await counts(front.port, "paceline_replica_ejections_total", "cause")
            assert ejections["silent" if fault.signum is signal.SIGSTOP else "failed"]
            pool.close()

    run(main())


def test_an_engine_that_stands_still_is_found_within_seconds_and_trusted_once_it_goes_on(tmp_path: Path) -> None:
    async def main() -> None:
        async with engines(tmp_path, "mixed0", "mixed1") as up, router(tmp_path, up) as front:
            pool, stopped = ClientPool("127.0.0.1", front.port), up["mixed0"].process
            for _ in range(2):  # each engine has worked: it is not thought to compile
                first = [Asked(pool, stream=True, tokens=20) for _ in range(2)]
                assert {await each.ending() for each in first} == {"whole"}
            stopped.send_signal(signal.SIGSTOP)
            since_s = monotonic()
            asked = [Asked(pool, stream=True, tokens=20) for _ in range(4)]
            assert {await each.ending() for each in asked} == {"whole"}
            assert 2.0 < monotonic() - since_s < 8.0  # 2 s, and room for a busy machine; 16 s by its probes alone
            stopped.send_signal(signal.SIGCONT)
            log = tmp_path / "router.log"
            async with asyncio.timeout(40):  # at once where its page counts on, else by a trial after 10 s
                while "replica=mixed0 heard_after_s=" not in log.read_text():
                    asked = [Asked(pool, stream=True, tokens=20) for _ in range(4)]
                    assert {await each.ending() for each in asked} == {"whole"}
            pool.close()

    run(main())


def test_a_router_that_is_killed_leaves_no_request_at_its_engines(tmp_path: Path) -> None:
    async def main() -> None:
        async with engines(tmp_path, "mixed0") as up, router(tmp_path, up) as front:
            pool = ClientPool("127.0.0.1", front.port)
            asked = [Asked(pool, stream=i < 3, tokens=4000) for i in range(6)]
            await until(lambda: all(each.begun for each in asked[:3]))
            front.process.kill()
            async with Peer(up["mixed0"].port) as peer:
                await peer.is_idle()
            assert not any([await each.ending() == "whole" for each in asked])
            pool.close()

    run(main())


def test_a_router_is_restarted_under_load_and_nobody_notices(tmp_path: Path) -> None:
    """Two routers behind a balancer that goes by /readyz, as a Service of Kubernetes does; one restarts."""

    async def main() -> None:
        async with (
            engines(tmp_path, "mixed0", "mixed1") as up,
            router(tmp_path, up, name="stays") as stays,
            router(tmp_path, up, "--drain-notice-s=0.5", name="stops") as first,
        ):
            load = _Load(stays.port, first.port)
            async with asyncio.TaskGroup() as group:
                for _ in range(6):
                    group.create_task(load.client())
                await until(lambda: len(load.asked) > 12)
                first.process.send_signal(signal.SIGTERM)
                assert await first.process.wait() == 0
                async with router(tmp_path, up, name="again", port=first.port) as again:
                    served = len(load.asked)
                    await until(lambda: len(load.asked) > served + 24)
                    load.over = True
                    assert {await each.ending() for each in load.asked} == {"whole"}
                    outcomes = [await counts(p.port, "paceline_requests_total", "outcome") for p in (stays, again)]
            assert [set(outcome) for outcome in outcomes] == [{"completed"}, {"completed"}]
            by_these = sum(outcome["completed"] for outcome in outcomes)
            assert by_these < len(load.asked)  # the rest was the one's that stopped

    run(main())


class _Load:
    """Clients that ask one after the other, each time another router that is ready."""

    def __init__(self, *ports: int) -> None:
        self._pools = [ClientPool("127.0.0.1", port) for port in ports]
        self.asked: list[Asked] = []
        self.over = False

    async def client(self) -> None:
        while not self.over:
            pools = [pool for pool in self._pools if await _is_ready(pool)]
            asked = Asked(pools[len(self.asked) % len(pools)], stream=len(self.asked) % 4 < 2, tokens=20)
            self.asked.append(asked)
            await asked.ending()


async def _is_ready(pool: ClientPool) -> bool:
    try:
        return (await fetch(pool, b"GET", b"/readyz", timeout_s=5)).status == 200
    except ClientError:
        return False


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(i: int) -> bytes:
    return b'data: {"choices":[{"index":0,"text":" w%d","finish_reason":null}]}' % i


def _word(i: int) -> bytes:
    return _chunk(_event(i) + b"\n\n")


_USAGE = _chunk(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5}}\n\n')
_DONE = _chunk(b"data: [DONE]\n\n")
_STREAM = _HEAD + b"".join(map(_word, range(5))) + _USAGE + _DONE + b"0\r\n\r\n"

_NONSENSE: list[tuple[str, bytes, End]] = [
    ("closes its half of the connection", b"", End.HALF_CLOSE),
    ("resets the connection", b"", End.RESET),
    ("ends its answer with nothing more", b"0\r\n\r\n", End.KEEP),
    ("breaks off in an event", _chunk(b'data: {"choi'), End.CLOSE),
    ("ends its answer in an event", _chunk(b'data: {"choi') + b"0\r\n\r\n", End.KEEP),
    ("sends a size that is none", b"zz\r\ndata: x\n\n\r\n", End.KEEP),
    ("sends a chunk longer than its size", b"3\r\ndata: {}\n\n\r\n", End.KEEP),
    ("sends another answer amid this one", _STREAM, End.KEEP),
    ("sends an event that is no JSON", _chunk(b'data: {"finish_reason":"\xff\n\n'), End.KEEP),
    ("sends an error", _chunk(b'data: {"error":{"message":"dead"}}\n\n'), End.KEEP),
]


@pytest.mark.parametrize(("raw", "end"), [row[1:] for row in _NONSENSE], ids=[row[0] for row in _NONSENSE])
@pytest.mark.parametrize("words_before", [0, 2], ids=["before any word", "after two words"])
def test_an_engine_that(words_before: int, raw: bytes, end: End) -> None:
    async def main() -> None:
        first = [Says(_HEAD + b"".join(map(_word, range(words_before))) + raw, end)]
        upstreams = [Upstream(first, Says(_STREAM)) for _ in range(2)]
        async with routed(*upstreams) as up:
            if words_before:
                seen: list[bytes] = []
                with pytest.raises(ClientError):
                    await listen(up, seen)
                *before, error, _ = b"".join(seen).split(b"\n\n")
                assert b'"upstream_failed"' in error
                assert [event for event in before if b'"text"' in event] == [_event(i) for i in range(words_before)]
                assert await up.outcomes() == {"upstream_failed": 1}
            else:
                assert words(await up.post("/v1/completions", ask(stream=True))) == EXPECTED
                assert await up.outcomes() == {"completed": 1}
            assert sum(len(upstream.forwarded) for upstream in upstreams) == (1 if words_before else 2)
            assert not any(upstream.strange for upstream in upstreams)

    run(main())


@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, End.HALF_CLOSE], ids=lambda end: end.value)
def test_a_stream_is_complete_once_its_client_was_told_its_end(end: End) -> None:
    async def main() -> None:
        upstream = Upstream(always=Says(_STREAM.removesuffix(b"0\r\n\r\n"), end))
        async with routed(upstream) as up:
            answer = await up.post("/v1/completions", ask(stream=True))
            assert (words(answer), answer.body.count(b"[DONE]")) == (EXPECTED, 1)
            assert answer.body.endswith(b"data: [DONE]\n\n")
            assert await up.outcomes() == {"completed": 1}

    run(main())


def test_a_client_that_leaves_at_the_end_of_its_stream_was_served() -> None:
    async def main() -> None:
        upstream = Upstream(always=Says(_STREAM.removesuffix(b"0\r\n\r\n")))  # the engine's last bytes never come
        async with routed(upstream) as up:
            seen: list[bytes] = []
            call = up.pool.request(b"POST", b"/v1/completions", JSON, orjson.dumps(ask(stream=True)), Listener(seen))
            await until(lambda: b"[DONE]" in b"".join(seen))
            call.abort()
            await until(lambda: not up.router.shell.jobs)
            assert await up.outcomes() == {"completed": 1}

    run(main())
