"""The prefill/decode contract, once: what the router sends on each leg and what an engine answers (DESIGN §4).

The shape is that of vLLM's NIXL connector, in which the decode engine pulls: leg 1 asks the prefill engine to keep its
KV for someone (`do_remote_decode`), its answer names where that KV lies and until when (the lease), and leg 2 carries
those parameters on, verbatim. Pure; the router, both engine runtimes and the fleet simulator use it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from ipaddress import ip_address, ip_network
from typing import Any

KV_PARAMS = "kv_transfer_params"
LEASE_S = 30.0  # vLLM's default kv_lease_duration
USABLE_LEASE = (
    0.5  # leg 2 starts within this share of the lease, or the prefill is done again: a late pull reads stale KV
)

_STOPS = (
    "stop",
    "stop_token_ids",
    "stream_options",
    "n",
    "best_of",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
)


_RESPONSE_STOPS = frozenset({"stop", "stop_token_ids", "stream_options", "include", "top_logprobs", "max_tool_calls"})


_CALLED = frozenset({"function", "custom", "namespace"})  # tools of a response that its client runs


class InvalidTransfer(ValueError):
    """`kv_transfer_params` that an engine must not act on; the message says which field and what is wrong."""


@dataclass(frozen=True, slots=True)
class RemoteKV:
    """Where a prefill engine keeps one request's KV; `remote_blocks_expiry_time` is Unix time, wall seconds."""

    remote_engine_id: str
    remote_request_id: str
    remote_host: str
    remote_port: int
    remote_num_tokens: int
    remote_blocks_expiry_time: float
    remote_block_ids: tuple[int, ...] = ()
    tp_size: int = 1
    do_remote_prefill: bool = True
    do_remote_decode: bool = False

    def params(self) -> dict[str, Any]:
        return asdict(self)


def prefill_leg(body: Mapping[str, Any]) -> dict[str, Any]:
    """Leg 1 of `body`: one token, whatever stops it cleared so that even an early end of sequence hands its KV over."""
    leg = {key: value for key, value in body.items() if key not in _STOPS}
    if "max_completion_tokens" in body:
        leg["max_completion_tokens"] = 1
    leg |= {"max_tokens": 1, "min_tokens": 1, "n": 1, "stream": False, KV_PARAMS: {"do_remote_decode": True}}
    return leg


def prefill_leg_of_response(body: Mapping[str, Any]) -> dict[str, Any]:
    """Leg 1 of a body of /v1/responses, where vLLM knows no `min_tokens`: the end of sequence ends nothing instead."""
    leg = {key: value for key, value in body.items() if key not in _RESPONSE_STOPS}
    return leg | {"max_output_tokens": 1, "ignore_eos": True, "stream": False, KV_PARAMS: {"do_remote_decode": True}}


def may_go_on(tools: object) -> bool:
    """Whether an engine might run a response's tool itself and compute on: a hand-over is for its first prompt only."""
    if not isinstance(tools, list):
        return False
    return any(not isinstance(tool, Mapping) or str(tool.get("type")) not in _CALLED for tool in tools)


def decode_leg(body: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Leg 2 of `body`: itself, with leg 1's parameters as they came."""
    return {**body, KV_PARAMS: dict(params)}


def asks_remote_decode(params: Mapping[str, Any]) -> bool:
    return params.get("do_remote_decode") is True


def read_remote_kv(params: Mapping[str, Any]) -> RemoteKV:
    """Leg 2's parameters, checked field by field: a missing host would kill a vLLM engine instead of one request."""
    try:
        remote = RemoteKV(
            remote_engine_id=_text(params, "remote_engine_id"),
            remote_request_id=_text(params, "remote_request_id"),
            remote_host=_text(params, "remote_host"),
            remote_port=_whole(params, "remote_port", 1, 65535),
            remote_num_tokens=_whole(params, "remote_num_tokens", 1, 1 << 31),
            remote_blocks_expiry_time=float(params["remote_blocks_expiry_time"]),
            tp_size=_whole(params, "tp_size", 1, 1024),
        )
    except KeyError as e:
        raise InvalidTransfer(f"{KV_PARAMS}.{e.args[0]} is missing; pass leg 1's {KV_PARAMS} on as they came") from e
    except (TypeError, ValueError, OverflowError) as e:
        raise InvalidTransfer(str(e)) from e
    return remote


def must_start_by(prefill_end_s: float, lease_s: float = LEASE_S) -> float:
    """The latest moment (s, same clock) at which leg 2 may still start on KV parked at `prefill_end_s`."""
    return prefill_end_s + USABLE_LEASE * lease_s


def is_allowed_host(host: str, allowed: Collection[str]) -> bool:
    """Whether KV may be pulled from `host`: it is one of `allowed`, or an address in one of its networks (a CIDR)."""
    if host in allowed:
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return any(address in ip_network(entry, strict=False) for entry in allowed if "/" in entry)


def _text(params: Mapping[str, Any], key: str) -> str:
    value = params[key]
    if not isinstance(value, str) or not 0 < len(value) <= 256:
        raise InvalidTransfer(f"{KV_PARAMS}.{key} must be a string of 1 to 256 characters")
    return value


def _whole(params: Mapping[str, Any], key: str, low: int, high: int) -> int:
    value = params[key]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidTransfer(f"{KV_PARAMS}.{key} must be a whole number from {low} to {high}, got {value!r}")
    return value
