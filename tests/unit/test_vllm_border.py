"""The border before vLLM, a small application in its place: what passes, who is refused, and whether it is well."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from paceline_engine.pd import KV_PARAMS, prefill_leg
from paceline_engine.vllm.life import Phase
from paceline_engine.vllm.passage import Message
from vllm_double import BEARER, NOW, REMOTE, TOKEN, VLLM, Client, counted, make_border, run

REMOTE |= {"remote_host": "127.0.0.1", "remote_port": 5600, "remote_num_tokens": 3, "tp_size": 1}


# --- what passes


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE}).encode(),
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE, "x": float("nan")}).encode(),
        json.dumps({"prompt": "a", KV_PARAMS: REMOTE}).encode("utf-16"),
        b"\xef\xbb\xbf" + json.dumps({KV_PARAMS: REMOTE}).encode(),
        b'{"kv_transfer_p\\u0061rams": {"do_remote_prefill": true}, "s": "\\ud83d\\ude00"}',
        b'{"kv_transfer_params": {"do_remote_prefill": true}, "kv_transfer_params": 1}',
    ],
    ids=["plain", "with a NaN", "in UTF-16", "with a mark in front", "escaped", "twice"],
)
def test_what_vllm_could_read_of_ours_is_gone_however_it_is_written(raw: bytes) -> None:
    async def test() -> None:
        vllm = VLLM()
        client = await Client(make_border(vllm)).ask("POST", "/v1/completions", raw[:9], raw[9:])
        scope, body = vllm.seen[0]
        assert KV_PARAMS not in json.loads(body)
        assert dict(scope["headers"])[b"content-length"] == str(len(body)).encode()
        assert b"transfer-encoding" not in dict(scope["headers"])
        assert client.status == 200
        assert counted(client.border, "paceline_dropped_fields_total") == 1

    run(test)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\x00", b'{"prompt": "a",  "n": 1}'], ids=str)
def test_what_needs_no_change_passes_byte_by_byte(raw: bytes) -> None:
    async def test() -> None:
        vllm = VLLM()
        await Client(make_border(vllm)).ask("POST", "/v1/completions", raw)
        assert vllm.seen[0][1] == raw

    run(test)


def test_objectives_pass_with_the_token_and_no_header_of_ours_does() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        objective = {"x-slo-class": "chat", "x-slo-tpot-ms": "30", "x-prefiller-host-port": "1.2.3.4:5"}
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers=objective)
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers={**objective, **BEARER})
        (scope, stranger), (_, bearer) = vllm.seen
        assert stranger == b'{"prompt":"a"}'
        assert json.loads(bearer)["vllm_xargs"] == {"slo_class": "chat", "slo_tpot_ms": 30.0}
        assert not [k for k, _ in scope["headers"] if k.startswith((b"x-slo", b"x-paceline", b"x-prefiller"))]

    run(test)


@pytest.mark.parametrize("token", ["", "service-toke", "service-token ", "SERVICE-TOKEN", "\xff"])
def test_a_token_is_right_or_wrong(token: str) -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        headers = {"x-paceline-token": token, "x-slo-tpot-ms": "30"}
        await Client(border).ask("POST", "/v1/completions", b'{"prompt":"a"}', headers=headers)
        assert vllm.seen[0][1] == b'{"prompt":"a"}'
        assert (await Client(border).ask("POST", "/paceline/drain", headers=headers)).status == 403
        assert border.life.phase is Phase.READY

    run(test)


def test_nobody_is_trusted_where_no_token_is_set() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm, PACELINE_TOKEN="")
        for token in ("", TOKEN):
            client = await Client(border).ask("POST", "/paceline/drain", headers={"x-paceline-token": token})
            assert (client.status, client.error["code"]) == (403, "forbidden")

    run(test)


@pytest.mark.parametrize(
    ("headers", "raw", "status", "says"),
    [
        ({"x-slo-tpot-ms": "-1"}, b"{}", 400, "x-slo-tpot-ms must be"),
        ({"x-slo-ttft-remaining-ms": "1e99"}, b"{}", 400, "x-slo-ttft-remaining-ms must be"),
        ({}, b'{"kv_transfer_params": 7}', 400, "kv_transfer_params must be an object"),
        ({}, b'{"prompt":"a","kv_transfer_params":{"do_remote_prefill":true}}', 400, "is missing"),
        ({}, b"[" * 100_000 + b"]" * 100_000, 400, "nested too deeply"),
        ({}, rb'{"prompt": "\ud800"}', 400, "half a surrogate pair"),
        ({"content-type": "Multipart/Form-Data; boundary=x"}, b"--x\r\nvllm_xargs", 415, "must be JSON"),
        ({"content-type": "application/x-www-form-urlencoded"}, b'{"a":"&vllm%5Fxargs={}&"}', 415, "must be JSON"),
        ({}, b" " * (1 << 19), 413, "larger than"),
    ],
    ids=[
        "a negative pace",
        "a huge limit",
        "no object",
        "no host",
        "a deep hole",
        "half a character",
        "a form",
        "a form that is JSON as well",
        "a body without end",
    ],
)
def test_what_cannot_be_is_refused_and_told_why(headers: dict[str, str], raw: bytes, status: int, says: str) -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        border.rules = replace(border.rules, max_body_bytes=1 << 18)
        client = await Client(border).ask("POST", "/v1/completions", raw[:9], raw[9:], headers={**headers, **BEARER})
        assert (client.status, client.error["type"]) == (status, "invalid_request_error")
        assert says in client.error["message"]
        assert vllm.seen == []
        assert counted(border, "paceline_engine_legs_total", result="rejected") == 1

    run(test)


def test_leg_1_is_answered_with_the_end_of_its_lease() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm, PACELINE_KV_LEASE_S="6")
        leg = json.dumps(prefill_leg({"prompt": [1, 2, 3]})).encode()
        client = await Client(border).ask("POST", "/v1/completions", leg, headers=BEARER)
        params = json.loads(client.body)[KV_PARAMS]
        assert params == {**REMOTE, "remote_blocks_expiry_time": NOW + 6}
        assert client.headers[b"content-length"] == str(len(client.body)).encode()
        assert json.loads(vllm.seen[0][1])["min_tokens"] == 1
        leg = json.dumps({"prompt": [1, 2, 3], KV_PARAMS: params}).encode()
        await Client(border).ask("POST", "/v1/completions", leg, headers=BEARER)
        assert json.loads(vllm.seen[1][1])[KV_PARAMS] == {**REMOTE, "do_remote_decode": False}

    run(test)


def test_kv_whose_lease_may_be_over_is_computed_again_and_counted() -> None:
    async def test() -> None:
        vllm = VLLM()
        border = make_border(vllm)
        leg = {"prompt": [1, 2, 3], KV_PARAMS: {**REMOTE, "remote_blocks_expiry_time": NOW + 14}}
        await Client(border).ask("POST", "/v1/completions", json.dumps(leg).encode(), headers=BEARER)
        assert KV_PARAMS not in json.loads(vllm.seen[0][1])
        assert counted(border, "paceline_kv_transfer_failures_total", cause="late") == 1

    run(test)


# --- health


@pytest.mark.parametrize(("health", "status", "says"), [(200, 200, b"ready"), (503, 503, b"dead"), (500, 503, b"dead")])
def test_it_is_ready_while_vllm_is_well(health: int, status: int, says: bytes) -> None:
    async def test() -> None:
        client = await Client(make_border(VLLM(health))).ask("GET", "/readyz")
        assert (client.status, client.body) == (status, says)

    run(test)


def test_reading_routes_are_vllms_own() -> None:
    async def test() -> None:
        vllm = VLLM()
        assert (await Client(make_border(vllm)).ask("GET", "/v1/models")).status == 200
        assert vllm.seen[0][0]["path"] == "/v1/models"

    run(test)


def test_websockets_are_closed_before_vllm_sees_them() -> None:
    async def test() -> None:
        vllm = VLLM()
        sent: list[str] = []

        async def receive() -> Message:
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            sent.append(message["type"])

        await make_border(vllm)({"type": "websocket", "path": "/v1/realtime"}, receive, send)
        assert (sent, vllm.seen) == (["websocket.close"], [])

    run(test)


def test_the_start_is_told_once_the_server_begins() -> None:
    async def test() -> None:
        border = make_border(VLLM(), PACELINE_STARTED_S=str(NOW - 42))

        async def receive() -> Message:
            return {"type": "lifespan.startup"}

        async def send(message: Message) -> None:
            return

        assert counted(border, "paceline_engine_start_seconds") == 0
        await border({"type": "lifespan"}, receive, send)
        assert counted(border, "paceline_engine_start_seconds") == 42

    run(test)
