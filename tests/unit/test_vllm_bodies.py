"""What of a body reaches vLLM: nothing of ours without the token, nothing unchecked with it, and no exception ever."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paceline_engine.pd import KV_PARAMS, decode_leg, prefill_leg, prefill_leg_of_response
from paceline_engine.request import Leg, Objective
from paceline_engine.sim.api import Refused
from paceline_engine.vllm.bodies import EXPIRY, PATHS, RESPONSES, Admitted, admit, is_unicode, stamped
from paceline_engine.vllm.objectives import read_objective
from paceline_engine.vllm.rules import InvalidRules, Rules, read_rules

NOW, LEASE_S = 1_800_000_000.0, 30.0
RULES = Rules(kv_hosts=frozenset({"10.0.0.0/8"}), kv_lease_s=LEASE_S)
OURS = ("kv_transfer_params", "ec_transfer_params", "slo_class", "slo_ttft_ms", "slo_tpot_ms", "slo_max_stall_ms")
PREFILL: dict[str, Any] = {"do_remote_decode": True}


def make_params(**over: Any) -> dict[str, Any]:
    """What vLLM's NIXL connector answers, with the lease's end that the prefill engine's border adds."""
    vllm = {"do_remote_prefill": True, "do_remote_decode": False, "remote_block_ids": [[3, 4]], "remote_port": 5600}
    vllm |= {"remote_engine_id": "e", "remote_request_id": "r", "remote_host": "10.0.0.7", "remote_num_tokens": 200}
    vllm |= {"tp_size": 1, "dcp_size": 1, "pp_size": 1, "transfer_mode": "pull", EXPIRY: NOW + LEASE_S}
    return {**vllm, **over}


def make_body(**over: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": [1, 2, 3], "max_tokens": 8, **over}


def admitted(body: object, sent: Mapping[str, bytes] | None = None, *, trusted: bool = True, **over: Any) -> Any:
    given = {name.encode(): value for name, value in (sent or {}).items()}
    rules, path = over.get("rules", RULES), over.get("path", PATHS[0])
    return admit(path, body, given.get, rules, trusted=trusted, now=over.get("now", NOW))


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (make_body(), make_body()),
        (make_body(kv_transfer_params=make_params()), make_body()),
        (make_body(kv_transfer_params=PREFILL, ec_transfer_params=3), make_body()),
        (make_body(vllm_xargs={"slo_tpot_ms": 1, "mine": 2}), make_body(vllm_xargs={"mine": 2})),
        (make_body(vllm_xargs={"kv_transfer_params": "x"}), make_body(vllm_xargs={})),
        (
            make_body(sampling_params={"n": 2, "extra_args": {"kv_transfer_params": {}, "mine": 1}}),
            make_body(sampling_params={"n": 2, "extra_args": {"mine": 1}}),
        ),
        (make_body(vllm_xargs=[1]), make_body(vllm_xargs=[1])),
        ([make_body(kv_transfer_params={})], [make_body(kv_transfer_params={})]),
    ],
    ids=[
        "nothing of ours: as it came",
        "where KV lies is dropped",
        "a prefill leg is none, and encoder outputs go too",
        "an objective among extra arguments goes, others stay",
        "KV parameters do not come in as an extra argument either",
        "nor inside the sampling parameters of vLLM's own API",
        "what is no object is vLLM's to refuse",
        "so is what is no request",
    ],
)
def test_without_the_token_ours_is_dropped(body: object, kept: object) -> None:
    got = admitted(body, {"x-slo-tpot-ms": b"5"}, trusted=False)
    assert got.body == kept
    assert got.changed is (body != kept)
    assert bool(got.dropped) is (body != kept)
    assert got.leg is Leg.WHOLE


def test_headers_become_what_the_scheduler_reads() -> None:
    sent = {"x-slo-class": b"chat", "x-slo-ttft-remaining-ms": b"-20", "x-slo-tpot-ms": b"30"}
    body = admitted(make_body(vllm_xargs={"mine": 1, "slo_tpot_ms": 9999}), sent).body
    assert body["vllm_xargs"] == {"mine": 1, "slo_class": "chat", "slo_ttft_ms": -20.0, "slo_tpot_ms": 30.0}
    assert read_objective(body["vllm_xargs"], None) == Objective("chat", -0.02, 0.03, 0.09)


def test_without_headers_the_bytes_may_stay_as_they_came() -> None:
    assert admitted(make_body()) == Admitted(make_body())


@pytest.mark.parametrize(
    ("raw", "unicode"),
    [
        (rb'{"prompt": "plain"}', True),
        (rb'{"prompt": "\ud83d\ude00"}', True),
        ('{"prompt": "한"}'.encode(), True),
        (rb'{"prompt": "\uD800"}', False),
        (rb'{"a": [{"\ude00": 1}]}', False),
        (b'{"prompt": "\xed\xa0\x80"}', False),
    ],
    ids=["ASCII", "a whole pair", "beyond ASCII", "its first half", "its second half, in a key", "a half in bytes"],
)
def test_half_a_surrogate_pair_is_no_text(raw: bytes, unicode: bool) -> None:
    assert is_unicode(raw, json.loads(raw)) is unicode


@pytest.mark.parametrize("value", [0, 0.5, True, "", "x", [], [{"regex": "a"}]])
@pytest.mark.parametrize("trusted", [True, False])
def test_a_structure_that_is_no_object_is_refused_before_vllm_stumbles_over_it(value: object, trusted: bool) -> None:
    answer = admitted(make_body(structured_outputs=value), trusted=trusted)
    assert isinstance(answer, Refused)
    assert (answer.status, answer.param) == (400, "structured_outputs")


@pytest.mark.parametrize("name", ["x-slo-ttft-remaining-ms", "x-slo-tpot-ms", "x-slo-max-stall-ms"])
@pytest.mark.parametrize("value", [b"", b"soon", b"nan", b"inf", b"1e300", b"-1e300", b"\xff", b"9" * 400])
def test_a_limit_that_is_no_limit_is_refused_by_its_name(name: str, value: bytes) -> None:
    got = admitted(make_body(), {name: value})
    assert isinstance(got, Refused)
    assert (got.status, got.param) == (400, name)
    assert name in got.message


@pytest.mark.parametrize("name", ["x-slo-tpot-ms", "x-slo-max-stall-ms"])
@pytest.mark.parametrize("value", [b"-5", b"0"])
def test_only_a_ttft_may_be_over_already(name: str, value: bytes) -> None:
    assert isinstance(admitted(make_body(), {name: value}), Refused)
    assert isinstance(admitted(make_body(), {"x-slo-ttft-remaining-ms": value}), Admitted)


def test_a_prefill_leg_generates_one_token_whatever_would_stop_it() -> None:
    body = make_body(max_tokens=1, stop=["a"], stream=True, kv_transfer_params={**make_params(), **PREFILL})
    got = admitted(body)
    assert got.leg is Leg.PREFILL
    assert got.body == prefill_leg(make_body())
    assert (got.body["min_tokens"], got.body["stream"], got.body[KV_PARAMS]) == (1, False, PREFILL)


@pytest.mark.parametrize("limits", [{}, {"max_completion_tokens": 1}, {"max_tokens": 1}], ids=["none", "new", "old"])
def test_a_prefill_leg_says_that_it_generates_one_token(limits: dict[str, int]) -> None:
    got = admitted({"prompt": "a", KV_PARAMS: PREFILL, **limits})
    assert isinstance(got, Admitted) is bool(limits)
    assert limits or got.param == "max_tokens"


def test_a_decode_leg_reaches_vllm_without_the_expiry_that_it_would_misread() -> None:
    got = admitted(decode_leg(make_body(), make_params(unknown={"a": 1})))
    assert got.leg is Leg.DECODE
    sent = got.body[KV_PARAMS]
    assert EXPIRY not in sent
    assert "unknown" not in sent
    assert {k: make_params()[k] for k in sent} == sent
    assert sent["do_remote_prefill"] is True


@pytest.mark.parametrize(
    "over",
    [
        {"remote_host": None},
        {"remote_host": "203.0.113.9"},
        {"remote_port": "5600"},
        {"remote_port": 0},
        {"remote_engine_id": ""},
        {"remote_num_tokens": -1},
        {"tp_size": True},
        {"remote_block_ids": None},
        {"remote_block_ids": []},
        {"remote_block_ids": [[], []]},
        {"remote_block_ids": [1, 2]},
        {"remote_block_ids": [[1, -2]]},
        {"remote_block_ids": [[1, 1 << 40]]},
        {"remote_block_ids": [["1"]]},
        {"dcp_size": 0},
        {"pp_size": "2"},
        {EXPIRY: "tomorrow"},
        {EXPIRY: 10**400},
        {EXPIRY: float("nan")},
        {EXPIRY: True},
    ],
    ids=str,
)
def test_parameters_on_which_an_engine_would_die_are_refused(over: dict[str, Any]) -> None:
    got = admitted(decode_leg(make_body(), make_params(**over)))
    assert isinstance(got, Refused)
    assert (got.status, got.param) == (400, KV_PARAMS)


@pytest.mark.parametrize("missing", ["remote_host", "remote_port", "remote_engine_id", "remote_request_id", "tp_size"])
def test_a_parameter_that_is_missing_is_refused_by_its_name(missing: str) -> None:
    params = make_params()
    del params[missing]
    got = admitted(decode_leg(make_body(), params))
    assert isinstance(got, Refused)
    assert missing in got.message


@pytest.mark.parametrize(
    ("expiry", "late"),
    [
        (NOW + LEASE_S, False),
        (NOW + LEASE_S / 2 + 0.1, False),
        (NOW + LEASE_S / 2, True),
        (NOW - 1, True),
        (None, True),
    ],
    ids=["just parked", "within half of the lease", "past half of it", "over", "nobody says until when"],
)
def test_kv_whose_lease_may_end_is_not_fetched(expiry: float | None, late: bool) -> None:
    body = decode_leg(make_body(), make_params(**{EXPIRY: expiry}))
    got = admitted(body)
    assert got.late is late
    assert (KV_PARAMS in got.body) is not late
    assert got.changed
    strict = admitted(body, rules=Rules(RULES.kv_hosts, kv_recompute=False))
    assert isinstance(strict, Refused) is late
    assert not late or (strict.status, strict.code) == (500, "upstream_failed")


@pytest.mark.parametrize("params", [make_params(), PREFILL], ids=["decode leg", "prefill leg"])
@pytest.mark.parametrize(
    "over",
    [
        {"n": 2},
        {"best_of": 3},
        {"use_beam_search": True},
        {"prompt": ["a", "b"]},
        {"prompt": [[1], [2]]},
        {"prompt": 3},
    ],
    ids=str,
)
def test_one_kv_serves_one_answer(params: dict[str, Any], over: dict[str, Any]) -> None:
    got = admitted(make_body(max_tokens=1, kv_transfer_params=params, **over))
    assert got.leg is Leg.WHOLE
    assert KV_PARAMS not in got.body
    assert got.dropped == (KV_PARAMS,)


@pytest.mark.parametrize(
    "path", ["/v1/embeddings", "/tokenize", "/inference/v1/generate", "/v1/completions/render", "/v1/completions/"]
)
def test_legs_go_by_three_paths_only(path: str) -> None:
    got = admitted(make_body(kv_transfer_params=make_params()), {"x-slo-tpot-ms": b"30"}, path=path)
    assert got.body == make_body()


def make_response(**over: Any) -> dict[str, Any]:
    return {"model": "m", "input": "Say something", "max_output_tokens": 8, **over}


def test_a_response_has_legs_and_an_objective_too() -> None:
    ask = make_response(stop=["x"], store=False, stream=True)
    first = admitted(prefill_leg_of_response(ask), {"x-slo-tpot-ms": b"30"}, path=RESPONSES)
    assert first.leg is Leg.PREFILL
    assert {"max_output_tokens": 1, "ignore_eos": True, "stream": False}.items() <= first.body.items()
    assert first.body[KV_PARAMS] == PREFILL
    assert first.body["vllm_xargs"] == {"slo_tpot_ms": 30.0}
    assert not {"stop", "max_tokens", "min_tokens", "n"} & first.body.keys()
    second = admitted(decode_leg(ask, make_params()), path=RESPONSES)
    assert (second.leg, second.body["stream"]) == (Leg.DECODE, True)
    assert second.body[KV_PARAMS]["remote_host"] == "10.0.0.7"
    for asked in (None, 2, True, "1"):
        longer = {**prefill_leg_of_response(ask), "max_output_tokens": asked}
        assert isinstance(admitted(longer, path=RESPONSES), Refused), asked


@pytest.mark.parametrize("type_", ["web_search_preview", "code_interpreter", "mcp", "container", None, [1]], ids=str)
def test_a_response_whose_tools_an_engine_may_run_is_never_handed_over(type_: object) -> None:
    for params in (make_params(), PREFILL):
        body = make_response(tools=[{"type": "function"}, {"type": type_}], kv_transfer_params=params)
        got = admitted(body, path=RESPONSES)
        assert (got.leg, got.dropped) == (Leg.WHOLE, (KV_PARAMS,))
        assert KV_PARAMS not in got.body


def test_the_end_of_the_lease_is_added_to_leg_1s_answer() -> None:
    answer = {"id": "x", KV_PARAMS: make_params(**{EXPIRY: None})}
    got = stamped(answer, LEASE_S, NOW)
    assert got is not None
    assert admitted(decode_leg(make_body(), got[KV_PARAMS])).leg is Leg.DECODE
    assert stamped({"id": "x", KV_PARAMS: None}, LEASE_S, NOW) is None
    assert stamped([], LEASE_S, NOW) is None


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**400)
NAMES = st.sampled_from((*OURS, "vllm_xargs", "sampling_params", "extra_args", "do_remote_prefill", "n", "prompt"))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
MUTATED = st.one_of(
    JSON,
    st.dictionaries(NAMES, JSON).map(lambda over: make_body(**over)),
    st.tuples(st.sampled_from(sorted(make_params())), JSON).map(
        lambda over: make_body(kv_transfer_params=make_params(**{over[0]: over[1]}))
    ),
)


def read_by_vllm(body: object) -> list[object]:
    """Where vLLM 0.32 looks for what is ours, and what it finds."""
    if not isinstance(body, dict):
        return []
    sampling = body.get("sampling_params")
    places = [body, body.get("vllm_xargs"), sampling.get("extra_args") if isinstance(sampling, dict) else None]
    names = (OURS[:2], OURS, OURS)
    return [p[k] for p, ks in zip(places, names, strict=True) if isinstance(p, dict) for k in ks if k in p]


@settings(max_examples=500)
@given(MUTATED, st.sampled_from((*PATHS, "/v1/responses", "/inference/v1/generate")))
def test_no_field_of_ours_passes_without_the_token(body: object, path: str) -> None:
    got = admitted(body, trusted=False, path=path)
    assert isinstance(got, Admitted)
    assert read_by_vllm(got.body) == []
    assert (got.leg, got.late) == (Leg.WHOLE, False)


@settings(max_examples=500)
@given(MUTATED, st.dictionaries(st.sampled_from(("x-slo-class", "x-slo-tpot-ms")), st.binary(max_size=8)))
def test_with_the_token_nothing_raises_and_hosts_are_known(body: object, sent: dict[str, bytes]) -> None:
    got = admitted(body, sent)
    if isinstance(got, Refused):
        assert got.message
        return
    json.dumps(got.body)
    if got.leg is Leg.DECODE:
        assert got.body[KV_PARAMS]["remote_host"] == "10.0.0.7"
        assert any(got.body[KV_PARAMS]["remote_block_ids"])


def test_rules_come_from_the_environment() -> None:
    given = {
        "PACELINE_KV_HOSTS": "prefill,10.0.0.0/8",
        "PACELINE_KV_ON_FAILURE": "fail",
        "PACELINE_KV_LEASE_S": "6",
        "PACELINE_DRAIN_NOTICE_S": "",
    }
    rules = read_rules(given)
    assert rules.kv_hosts == {"127.0.0.1", "localhost", "::1", "prefill", "10.0.0.0/8"}
    assert (rules.kv_recompute, rules.kv_lease_s, rules.drain_notice_s) == (False, 6.0, 0.0)
    assert read_rules({}) == Rules()


@pytest.mark.parametrize(
    "wrong",
    [
        {"PACELINE_KV_LEASE_S": "-1"},
        {"PACELINE_DRAIN_TIMEOUT_S": "nan"},
        {"PACELINE_DRAIN_NOTICE_S": "soon"},
        {"PACELINE_KV_ON_FAILURE": "retry"},
        {"PACELINE_KV_HOSTS": "10.0.0.0/99"},
    ],
    ids=str,
)
def test_a_rule_that_is_none_stops_the_engine_by_its_name(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidRules, match=next(iter(wrong))):
        read_rules(wrong)
