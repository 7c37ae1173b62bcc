"""HTTPS: the router behind a certificate, one that is renewed, and what of plain HTTP's behaviour holds over TLS."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import make_certificate, trust
from engine_double import Reply
from engine_peer import holds
from http1_calls import run
from http1_corpus import ASK, CORPUS, LAST, Sent
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from paceline_api.config import ConfigError, RouterConfig, TLSConfig
from paceline_engine.http1 import Exchange, Limits, serve, tls_listener
from paceline_router.certificate import Certificate
from router_fleet import EXPECTED, Fleet, ask, fleet
from router_processes import engines, router
from waiting import until

CASES = [sent for sent in CORPUS if sent.refused or len(sent.bodies) > 1][::6] + CORPUS[:3]
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tls") / "pki"
    make_certificate(made)
    return made


def files(folder: Path) -> dict[str, str]:
    return {"certificate": str(folder / "router.crt"), "key": str(folder / "router.key")}


def certificate(folder: Path) -> Certificate:
    return Certificate(TLSConfig.model_validate(files(folder)))


def client(folder: Path, **over: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(verify=trust(folder), trust_env=False, timeout=10, **over)


def url(up: Fleet, path: str = "") -> str:
    return f"https://localhost:{up.server.port}{path}"


def test_the_openai_client_streams_over_https(folder: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", tls=files(folder)) as up, client(folder) as http:
            over = DefaultAsyncHttpxClient(verify=trust(folder))
            async with AsyncOpenAI(base_url=url(up, "/v1"), api_key="x", http_client=over, max_retries=0) as openai:
                stream = await openai.completions.create(model="m", prompt="a b c", max_tokens=5, stream=True)
                assert "".join([c.choices[0].text async for c in stream if c.choices]) == EXPECTED
            whole = await http.post(url(up, "/v1/completions"), json=ask())
            assert (whole.status_code, whole.http_version) == (200, "HTTP/1.1")
            assert 'outcome="completed",slo_class="interactive"} 2' in (await http.get(url(up, "/metrics"))).text

    run(test)


def test_a_process_is_told_of_its_certificate_and_keys_by_flags(folder: Path, tmp_path: Path) -> None:
    """As a pod mounts them: the configuration is one for all routers of a service."""
    for name, source in {"tls.crt": "router.crt", "tls.key": "router.key"}.items():
        (tmp_path / name).write_bytes((folder / source).read_bytes())
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "acme").write_text("sk-acme")

    async def test() -> None:
        flags = (f"--tls-dir={tmp_path}", f"--api-keys-dir={keys}")
        async with engines(tmp_path, "mixed0") as up, router(tmp_path, up, *flags) as front, client(folder) as http:
            asked = f"https://localhost:{front.port}/v1/completions"
            assert (await http.post(asked, json=ask())).status_code == 401
            bearer = {"authorization": "Bearer sk-acme"}
            assert (await http.post(asked, json=ask(), headers=bearer)).status_code == 200

    run(test)


def test_a_client_that_leaves_ends_its_request_at_the_engine(folder: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", tls=files(folder)) as up:
            engine = up.engines["mixed0"]
            engine.script = lambda _: Reply(gap_s=0.05)
            async with client(folder) as http:
                body = ask(stream=True, max_tokens=1000)
                async with http.stream("POST", url(up, "/v1/completions"), json=body) as answer:
                    async for _ in answer.aiter_bytes():
                        break
            await until(lambda: len(engine.aborted) == 1)

    run(test)


def test_plain_http_and_an_old_protocol_are_refused(folder: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", tls=files(folder)) as up:
            async with client(folder) as http:
                with pytest.raises(httpx.RemoteProtocolError):
                    await http.get(f"http://127.0.0.1:{up.server.port}/healthz")
            old = trust(folder)
            old.maximum_version = ssl.TLSVersion.TLSv1_2
            async with httpx.AsyncClient(verify=old, trust_env=False) as http:
                assert (await http.get(url(up, "/healthz"))).status_code == 200
            assert context_of(folder).minimum_version is ssl.TLSVersion.TLSv1_2
            async with client(folder) as http:
                assert (await http.get(url(up, "/healthz"))).status_code == 200, "others go on"

    run(test)


def context_of(folder: Path) -> ssl.SSLContext:
    return certificate(folder).context()


def test_a_renewed_certificate_is_for_new_connections_and_cuts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paceline_router.certificate.POLL_S", 0.01)
    old, new, used = tmp_path / "old", tmp_path / "new", tmp_path / "used"
    make_certificate(old)
    make_certificate(new)
    used.mkdir()

    def put(source: Path) -> None:
        for name in ("router.crt", "router.key"):
            (used / name).write_bytes((source / name).read_bytes())

    async def test() -> None:
        put(old)
        async with fleet("mixed0", tls=files(used)) as up, client(old) as before:
            assert (await before.get(url(up, "/healthz"))).status_code == 200
            put(new)
            async with client(new) as after:
                await holds(lambda: answers(after, url(up, "/healthz")))
            assert (await before.get(url(up, "/healthz"))).status_code == 200, "the connection that was there"
            async with client(old) as another:
                assert not await answers(another, url(up, "/healthz"))

    run(test)


async def answers(http: httpx.AsyncClient, address: str) -> bool:
    try:
        return (await http.get(address)).status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.parametrize("spoil", ["key", "certificate"])
def test_a_renewal_that_cannot_be_used_changes_nothing(
    folder: Path, tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("router.crt", "router.key"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found = certificate(tmp_path)
    context = found.context()
    Path(files(tmp_path)[spoil]).write_text("nonsense")
    for _ in range(3):
        found.look()
    assert found.context() is context
    assert caplog.text.count("certificate refused, the earlier one stays") == 1
    for name in ("router.crt", "router.key"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    found.look()
    renewed = found.context()
    found.look()
    assert found.context() is renewed is not context, "once it can be used it is, and stays"


def _none(folder: Path) -> None:
    (folder / "router.key").unlink()


def _strangers(folder: Path) -> None:
    (folder / "router.key").write_bytes((folder / "ca.key").read_bytes())


def _nonsense(folder: Path) -> None:
    (folder / "router.crt").write_text("nonsense")


def _encrypted(folder: Path) -> None:
    key = str(folder / "router.key")
    subprocess.run(["openssl", "ec", "-in", key, "-aes256", "-passout", "pass:x", "-out", key], check=True)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(_none, "router.key: cannot be read: No such file or directory", id="no key"),
        pytest.param(_strangers, "do not belong together", id="another certificate's key"),
        pytest.param(_nonsense, "are no certificate and key in PEM", id="no PEM"),
        pytest.param(_encrypted, "the key is encrypted", id="an encrypted key"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    made = tmp_path / "pki"
    make_certificate(made)
    spoil(made)
    with pytest.raises(ConfigError, match=says) as refused:
        certificate(made)
    assert "\n" not in str(refused.value)


def test_a_process_without_its_certificate_ends_with_one_line(tmp_path: Path) -> None:
    config = {
        "service": "chat",
        "model": "m",
        "max_context_tokens": 4096,
        "default_class": "c",
        "classes": [{"name": "c", "ttft_s": 1, "tpot_s": 1}],
        "discovery": {"kind": "static"},
        "tls": files(tmp_path),
    }
    path = tmp_path / "router.json"
    path.write_text(RouterConfig.model_validate(config).to_json())
    command = [sys.executable, "-m", "paceline_router", "--config", str(path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("paceline_router: TLS: ")
    assert "renew the Secret" in line


# --- the HTTP/1.1 server itself


@pytest.mark.parametrize("sent", CASES, ids=lambda sent: sent.says)
def test_the_corpus_is_answered_over_tls_as_it_is_without(folder: Path, sent: Sent) -> None:
    async def main() -> None:
        handed: list[Exchange] = []

        def handler(exchange: Exchange) -> None:
            handed.append(exchange)
            exchange.respond(200)

        limits = Limits(linger_timeout_s=0.2)  # how long a client may take to close that waits for us to
        server = await serve(handler, "127.0.0.1", 0, limits=limits, tls=certificate(folder).context)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust(folder))
        writer.write(sent.raw + LAST)
        answers = await reader.read()
        writer.transport.abort()
        await server.close()
        assert tuple(exchange.body for exchange in handed if exchange.method == "POST") == sent.bodies
        statuses = [int(status) for status in _STATUS.findall(answers)]
        assert statuses == [200] * len(sent.bodies) + [sent.refused or 200]
        assert server.open_connections == 0

    run(main)


def test_a_client_that_reads_slowly_holds_the_answer_back(folder: Path) -> None:
    async def main() -> None:
        piece, sent = b"x" * 65536, 0
        held = asyncio.Event()

        def handler(exchange: Exchange) -> None:
            def more() -> None:
                nonlocal sent
                while sent < 400 and exchange.write(piece):
                    sent += 1
                if sent < 400:
                    sent += 1
                    held.set()
                else:
                    exchange.end()

            exchange.start(200)
            exchange.on_writable = more
            more()

        server = await serve(handler, "127.0.0.1", 0, tls=certificate(folder).context)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust(folder), limit=1024)
        writer.write(b"GET / HTTP/1.0\r\nhost: h\r\n\r\n")
        await held.wait()
        assert sent < 400
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        assert len(body) == 400 * len(piece)
        writer.close()
        await server.close()

    run(main)


def test_a_slow_reader_gets_the_whole_of_an_answer_that_ends_its_connection(folder: Path) -> None:
    """What was written before the close is still on its way for seconds."""
    answer = b"x" * (12 << 20)

    async def main() -> None:
        server = await serve(
            lambda exchange: exchange.respond(200, answer), "127.0.0.1", 0, tls=certificate(folder).context
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=trust(folder), limit=1 << 16)
        writer.write(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        got = 0
        while part := await reader.read(1 << 16):
            got += len(part)
            await asyncio.sleep(0.02)
        assert got > len(answer)
        writer.close()
        await server.close()

    run(main)


def test_silent_peers_hold_no_handshake_for_long_and_only_so_many(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_listener, "MOST_HANDSHAKES", 2)
    monkeypatch.setattr(tls_listener, "HANDSHAKE_TIMEOUT_S", 4.0)

    async def main() -> None:
        server = await serve(lambda exchange: exchange.respond(200), "127.0.0.1", 0, tls=certificate(folder).context)
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        async with client(folder) as http:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            assert (await http.get(f"https://localhost:{server.port}/")).status_code == 200
            assert loop.time() - began_s < 2.0, "the oldest gave way"
        for each in silent:
            each.settimeout(5)
            with each:
                assert await asyncio.to_thread(each.recv, 1) == b""
        await server.close()

    run(main)


def test_a_drain_cuts_handshakes_off_and_lets_answers_end(folder: Path) -> None:
    async def main() -> None:
        asked: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        server = await serve(asked.set_result, "127.0.0.1", 0, tls=certificate(folder).context)
        with socket.create_connection(("127.0.0.1", server.port)) as silent:
            async with client(folder) as http:
                answer = asyncio.create_task(http.get(f"https://localhost:{server.port}/"))
                exchange = await asked
                drained = asyncio.create_task(server.drain(5.0))
                await asyncio.sleep(0)
                exchange.respond(200, b"whole")
                assert (await answer).text == "whole"
            await drained
            assert server.open_connections == 0
            silent.settimeout(5)
            assert await asyncio.to_thread(silent.recv, 1) == b""
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=1)

    run(main)


def test_the_router_forwards_over_tls_what_it_forwards_without(folder: Path) -> None:
    async def main() -> None:
        async with fleet("mixed0", tls=files(folder)) as up:
            reader, writer = await asyncio.open_connection("127.0.0.1", up.server.port, ssl=trust(folder))
            head = b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: %d\r\n\r\n" % len(ASK)
            for byte in (head + ASK)[:40]:  # the first bytes one record each
                writer.write(bytes([byte]))
                await writer.drain()
            writer.write((head + ASK)[40:])
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.transport.abort()

    run(main)
