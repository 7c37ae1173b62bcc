"""What of a request's body reaches vLLM 0.32, and with which objective and KV hand-over.

In a body vLLM believes whatever it is told: an address to fetch KV from, extra arguments for the scheduler, and a
text where it expects KV parameters ends the whole engine. So those fields are taken out of every body, wherever vLLM
would read them, and set again here: the objective from headers, the hand-over from `kv_transfer_params`, both only for
a caller with the service's token and only after each value was checked. Invariant: nothing that a client sends raises,
and KV is fetched only while its lease is safely running. Times are Unix time, seconds. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from paceline_api import headers

from paceline_engine.pd import (
    KV_PARAMS,
    InvalidTransfer,
    RemoteKV,
    asks_remote_decode,
    is_allowed_host,
    may_go_on,
    must_start_by,
    prefill_leg,
    prefill_leg_of_response,
    read_remote_kv,
)
from paceline_engine.request import Leg
from paceline_engine.sim.api import Refused
from paceline_engine.sim.objectives import read_objective
from paceline_engine.vllm.objectives import BEST_EFFORT, CLASS, MAX_STALL_MS, TPOT_MS, TTFT_MS
from paceline_engine.vllm.rules import Rules

RESPONSES = "/v1/responses"
PATHS = ("/v1/completions", "/v1/chat/completions", RESPONSES)  # where the router sends legs
EXPIRY = "remote_blocks_expiry_time"
_XARGS, _BLOCKS, _STRUCTURE = "vllm_xargs", "remote_block_ids", "structured_outputs"
_NO_STRUCTURE = Refused(f"{_STRUCTURE} must be an object", _STRUCTURE)  # vLLM would answer 500
_TRANSFERS = frozenset({KV_PARAMS, "ec_transfer_params"})  # the other one: encoder outputs, which Paceline never moves
_EXTRA = _TRANSFERS | {CLASS, TTFT_MS, TPOT_MS, MAX_STALL_MS}
_CARRIED = {headers.TTFT_REMAINING_MS: TTFT_MS, headers.TPOT_MS: TPOT_MS, headers.MAX_STALL_MS: MAX_STALL_MS}
_COUNTS = ("dcp_size", "pp_size", "remote_block_size", "remote_prefill_cached_tokens")
_MOST = 1 << 31

Header = Callable[[bytes], bytes | None]


@dataclass(frozen=True, slots=True)
class Admitted:
    """`body` goes on to vLLM; `changed`: it is not what came. `dropped` names what was taken out without effect.

    `late`: the KV that it names may be gone, and the prompt is computed here.
    """

    body: object
    leg: Leg = Leg.WHOLE
    changed: bool = False
    dropped: tuple[str, ...] = ()
    late: bool = False


def admit(path: str, body: object, header: Header, rules: Rules, *, trusted: bool, now: float) -> Admitted | Refused:
    """What becomes of a decoded JSON body; `header` gives a request header's value by its lower-case name."""
    if not isinstance(body, dict):
        return Admitted(body)
    if not isinstance(body.get(_STRUCTURE), dict | None):
        return _NO_STRUCTURE
    kept, dropped = _without_ours(body)
    if not trusted or path not in PATHS:
        return Admitted(kept, changed=bool(dropped), dropped=dropped)
    extra = _carried(header)
    if isinstance(extra, Refused):
        return extra
    if extra and isinstance(kept.get(_XARGS), dict | None):
        kept = {**kept, _XARGS: {**(kept.get(_XARGS) or {}), **extra}}
    dropped = tuple(name for name in dropped if name != KV_PARAMS)
    admitted = _hand_over(path == RESPONSES, body.get(KV_PARAMS), kept, rules, now)
    if isinstance(admitted, Refused):
        return admitted
    return replace(admitted, changed=bool(extra or dropped) or KV_PARAMS in body, dropped=dropped + admitted.dropped)


def is_unicode(raw: bytes, body: object) -> bool:
    """False where a text in the body that `raw` says holds half a surrogate pair, which vLLM cannot pass on: a 500."""
    if raw.isascii() and b"\\ud" not in raw.lower():
        return True
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def stamped(answer: object, lease_s: float, now: float) -> dict[str, Any] | None:
    """Leg 1's answer with the end of its lease, which vLLM keeps to itself; None where it hands no KV over."""
    params = answer.get(KV_PARAMS) if isinstance(answer, dict) else None
    if not isinstance(params, dict) or not isinstance(answer, dict):
        return None
    return {**answer, KV_PARAMS: {**params, EXPIRY: now + lease_s}}


def _without_ours(body: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The body without what vLLM would take from here, and the names of what was there."""
    dropped = [name for name in _TRANSFERS if name in body]
    kept = {key: value for key, value in body.items() if key not in _TRANSFERS} if dropped else body
    for place, inner in ((_XARGS, None), ("sampling_params", "extra_args")):
        outer = kept.get(place)
        extra = outer.get(inner) if inner and isinstance(outer, dict) else outer
        if isinstance(extra, dict) and not _EXTRA.isdisjoint(extra):
            dropped += [f"{place}.{name}" for name in extra if name in _EXTRA]
            left = {key: value for key, value in extra.items() if key not in _EXTRA}
            kept = {**kept, place: {**outer, inner: left} if inner and isinstance(outer, dict) else left}
    return kept, tuple(sorted(dropped))


def _carried(header: Header) -> dict[str, str | float] | Refused:
    """The extra arguments that carry a request's objective to the scheduler: those that its headers name."""
    objective = read_objective(header, BEST_EFFORT, trusted=True)
    if isinstance(objective, Refused):
        return objective
    seconds = dict(zip(_CARRIED, (objective.ttft_s, objective.tpot_s, objective.max_stall_s), strict=True))
    extra: dict[str, str | float] = {
        key: round(seconds[name] * 1e3, 3) for name, key in _CARRIED.items() if header(name.encode()) is not None
    }
    if header(headers.SLO_CLASS.encode()) is not None:
        extra[CLASS] = objective.class_name
    return extra


def _hand_over(is_response: bool, params: object, kept: dict[str, Any], rules: Rules, now: float) -> Admitted | Refused:
    """Which leg `params` make of a request; several answers or prompts would all read the same KV: they are no leg."""
    if params is None:
        return Admitted(kept)
    if not isinstance(params, dict):
        return Refused(f"{KV_PARAMS} must be an object", KV_PARAMS)
    decode = asks_remote_decode(params)
    if not decode and params.get("do_remote_prefill") is not True:
        return Admitted(kept)
    if may_go_on(kept.get("tools")) if is_response else not _is_single(kept):
        return Admitted(kept, dropped=(KV_PARAMS,))
    if decode:
        return _prefill_response(kept) if is_response else _prefill(kept)
    try:
        remote, checked = _checked(params)
    except InvalidTransfer as e:
        return Refused(str(e), KV_PARAMS)
    if not is_allowed_host(remote.remote_host, rules.kv_hosts):
        message = f"{KV_PARAMS}.remote_host {remote.remote_host!r} is none of the hosts that KV may come from"
        return Refused(message, KV_PARAMS)
    lease_s = rules.kv_lease_s
    if now < must_start_by(remote.remote_blocks_expiry_time - lease_s, lease_s):
        return Admitted({**kept, KV_PARAMS: checked}, Leg.DECODE)
    if rules.kv_recompute:
        return Admitted(kept, late=True)
    return Refused("KV transfer failed: its lease is nearly over, or unknown", KV_PARAMS, 500, "upstream_failed")


def _prefill(kept: dict[str, Any]) -> Admitted | Refused:
    asked = next((kept[k] for k in ("max_completion_tokens", "max_tokens") if kept.get(k) is not None), None)
    if asked != 1 or isinstance(asked, bool):
        return Refused("a prefill leg generates one token: max_tokens must be 1", "max_tokens")
    return Admitted(prefill_leg(kept), Leg.PREFILL)


def _prefill_response(kept: dict[str, Any]) -> Admitted | Refused:
    asked = kept.get("max_output_tokens")
    if asked != 1 or isinstance(asked, bool):
        return Refused("a prefill leg generates one token: max_output_tokens must be 1", "max_output_tokens")
    return Admitted(prefill_leg_of_response(kept), Leg.PREFILL)


def _is_single(body: Mapping[str, Any]) -> bool:
    """Whether one prompt is to have one answer."""
    if any(body.get(name) not in (None, 1) for name in ("n", "best_of")) or body.get("use_beam_search"):
        return False
    prompt = body.get("prompt")
    if prompt is None:
        return "messages" in body
    return isinstance(prompt, str) or (isinstance(prompt, list) and (len(prompt) == 1 or _are_whole(prompt)))


def _checked(params: Mapping[str, Any]) -> tuple[RemoteKV, dict[str, Any]]:
    """Leg 2's parameters, and those that vLLM gets: InvalidTransfer for one on which it would not survive.

    An expiry that is not there has passed. vLLM gets none: it would read Unix time by another clock.
    """
    expiry = params.get(EXPIRY)
    if expiry is not None and (
        isinstance(expiry, bool) or not isinstance(expiry, int | float) or not 0 <= expiry < 1e12
    ):
        raise InvalidTransfer(f"{KV_PARAMS}.{EXPIRY} must be Unix time in seconds")
    remote = read_remote_kv({**params, EXPIRY: 0.0 if expiry is None else expiry})
    blocks = params.get(_BLOCKS)
    if not _are_groups(blocks):
        raise InvalidTransfer(f"{KV_PARAMS}.{_BLOCKS} must be a list of lists of block numbers, and not empty")
    checked: dict[str, Any] = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        _BLOCKS: blocks,
        "remote_engine_id": remote.remote_engine_id,
        "remote_request_id": remote.remote_request_id,
        "remote_host": remote.remote_host,
        "remote_port": remote.remote_port,
        "remote_num_tokens": remote.remote_num_tokens,
        "tp_size": remote.tp_size,
    }
    for name in _COUNTS:
        value = params.get(name)
        if value is not None and not (_is_whole(value) and (value > 0 or name == _COUNTS[-1])):
            raise InvalidTransfer(f"{KV_PARAMS}.{name} must be a whole number")
        checked |= {} if value is None else {name: value}
    return remote, checked


def _are_groups(blocks: object) -> bool:
    """vLLM's block numbers by KV cache group. ("Nothing" for a prompt that is elsewhere fails an assertion there.)"""
    if not isinstance(blocks, list) or not any(blocks):
        return False
    return all(isinstance(group, list) and _are_whole(group) for group in blocks)


def _are_whole(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int} and (not values or (min(values) >= 0 and max(values) < _MOST))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST
