"""A router that asks for API keys: whom it serves, what it says to others, and what engines see of a key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from engine_double import Reply
from engine_peer import holds
from openai import AsyncOpenAI, AuthenticationError
from paceline_router.app import OPEN
from router_fleet import Fleet, ask, fleet, run
from waiting import until

ROOM: dict[str, Any] = {"policy": "least-misses", "waiting_room": True}
KEY = [(b"authorization", b"Bearer sk-acme")]
CLOSED = ["/v1/completions", "/v1/chat/completions", "/v1/models", "/tokenize", "/v1/none", "/metrics/", "//metrics"]


def make_folder(folder: Path, **keys: str) -> dict[str, Any]:
    """Configuration of a router with these keys."""
    for owner, key in keys.items():
        (folder / owner).write_text(key)
    return {"api_keys_dir": str(folder)}


async def status(up: Fleet, path: str, headers: list[tuple[bytes, bytes]]) -> int:
    return (await up.post(path, ask(), headers)).status


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("sent", [[], [(b"authorization", b"Bearer sk-other")]], ids=["no key", "a wrong key"])
def test_without_a_key_nothing_but_the_open_paths_is_there(
    tmp_path: Path, path: str, sent: list[tuple[bytes, bytes]]
) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            answer = await up.post(path, ask(), sent)
            assert answer.status == 401
            error = orjson.loads(answer.body)["error"]
            assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
            headers = dict(answer.headers)
            assert headers[b"www-authenticate"] == b"Bearer"
            assert headers[b"x-request-id"]
            assert (await up.get(path)).status == 401, "whatever the method"
            assert [engine.asked for engine in up.engines.values()] == [[]]
            found = await up.outcomes()
            refused = (await up.samples()).get("paceline_passthrough_requests_total", {})
            assert found.get("rejected", 0) + sum(refused.values()) == 2

    run(test())


CHUNKED = b"transfer-encoding: chunked"


@pytest.mark.parametrize("framing", [b"content-length: 65537", CHUNKED], ids=["large", "of unknown size"])
@pytest.mark.parametrize("path", [b"/v1/completions", b"/healthz"])
def test_without_a_key_no_large_body_is_read(tmp_path: Path, framing: bytes, path: bytes) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            head = b"POST %b HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n%b\r\n" % (path, framing)
            reader, writer = await asyncio.open_connection("127.0.0.1", up.server.port)
            writer.write(head + b"\r\n")
            said = await asyncio.wait_for(reader.read(), 5)  # to the end: without a byte of the body
            assert said.startswith(b"HTTP/1.1 401 ")
            assert b"\r\nwww-authenticate: Bearer\r\n" in said
            assert orjson.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"
            writer.close()
            assert (await up.outcomes())["rejected"] == 1

    run(test())


def test_with_a_key_a_large_body_is_read(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            assert (await up.post("/v1/completions", ask(user="x" * 70_000), KEY)).status == 200

    run(test())


@pytest.mark.parametrize("path", sorted(OPEN))
def test_what_is_open_needs_no_key(tmp_path: Path, path: str) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            assert (await up.get(path)).status == 200

    run(test())


def test_a_key_is_served_and_never_reaches_an_engine(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme\n")) as up:
            assert await status(up, "/v1/completions", KEY) == 200
            [asked] = up.engines["mixed0"].asked
            assert "sk-acme" not in repr((asked.headers, asked.body))
            assert await up.outcomes() == {"completed": 1}

    run(test())


def test_a_key_reaches_no_engine_where_a_request_is_passed_on(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            assert await status(up, "/tokenize", KEY) != 401
            assert up.engines["mixed0"].asked
            assert all("sk-acme" not in repr(asked) for asked in up.engines["mixed0"].asked)

    run(test())


def test_a_client_takes_turns_as_its_keys_owner_whatever_it_calls_itself(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme"), **ROOM) as up:
            up.engines["mixed0"].script = lambda _: Reply(hang=True)
            asked = asyncio.create_task(status(up, "/v1/completions", [*KEY, (b"x-tenant", b"zeta")]))
            await until(lambda: len(up.router.shell.jobs) == 1)
            [job] = up.router.shell.jobs
            assert job.claim.tenant == "acme"
            asked.cancel()
            await asyncio.wait([asked])

    run(test())


def test_a_key_that_was_renewed_is_taken_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paceline_router.api_keys.POLL_S", 0.01)

    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-old")) as up:
            (tmp_path / "acme").write_text("sk-acme")

            async def renewed() -> bool:
                return await status(up, "/v1/completions", KEY) == 200

            await holds(renewed)
            assert await status(up, "/v1/completions", [(b"authorization", b"Bearer sk-old")]) == 401

    run(test())


def test_the_openai_client_sends_its_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            url = f"http://127.0.0.1:{up.server.port}/v1"
            async with AsyncOpenAI(base_url=url, api_key="sk-acme", max_retries=0) as client:
                assert [m.id for m in (await client.models.list()).data] == ["m"]
            async with AsyncOpenAI(base_url=url, api_key="sk-other", max_retries=0) as client:
                with pytest.raises(AuthenticationError) as refused:
                    await client.models.list()
                assert refused.value.code == "invalid_api_key"

    run(test())


def test_the_document_says_what_needs_a_key(tmp_path: Path) -> None:
    async def test() -> None:
        async with fleet("mixed0", **make_folder(tmp_path, acme="sk-acme")) as up:
            document = orjson.loads((await up.get("/openapi.json")).body)
            asked = {path: "security" in op for path, ops in document["paths"].items() for op in ops.values()}
            assert asked == {path: path not in OPEN for path in asked}
            assert document["paths"]["/v1/models"]["get"]["responses"].keys() >= {"200", "401"}
            assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}

    run(test())
