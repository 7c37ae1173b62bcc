"""What the border is told at its start, by the environment: `paceline_engine.launch` sets these variables.

Anything that is wrong stops the engine with a message that names the variable, before it serves. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from paceline_engine.pd import LEASE_S

KV_HOSTS, KV_LEASE_S, KV_ON_FAILURE = "PACELINE_KV_HOSTS", "PACELINE_KV_LEASE_S", "PACELINE_KV_ON_FAILURE"
DRAIN_NOTICE_S, DRAIN_TIMEOUT_S = "PACELINE_DRAIN_NOTICE_S", "PACELINE_DRAIN_TIMEOUT_S"
STARTED_S = "PACELINE_STARTED_S"  # Unix time; the process sets it itself (`__main__`)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class InvalidRules(ValueError):
    """The environment cannot be followed; the message names the variable."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Wall seconds. `kv_recompute`: a prompt whose KV cannot be had is computed here, else its request fails."""

    kv_hosts: frozenset[str] = LOOPBACK
    kv_recompute: bool = True
    kv_lease_s: float = LEASE_S
    drain_notice_s: float = 0.0
    drain_timeout_s: float = 300.0
    started_s: float = 0.0  # Unix time, 0: not known
    max_body_bytes: int = 64 << 20  # chats may carry images


def read_rules(environ: Mapping[str, str]) -> Rules:
    """InvalidRules for a wrong number, policy or network; a variable that is empty or missing has its default."""
    default = Rules()
    on_failure = environ.get(KV_ON_FAILURE) or "recompute"
    if on_failure not in ("recompute", "fail"):
        raise InvalidRules(f"{KV_ON_FAILURE} must be recompute or fail, got {on_failure!r}")
    return Rules(
        LOOPBACK | _hosts(environ.get(KV_HOSTS, "")),
        on_failure == "recompute",
        _seconds(environ, KV_LEASE_S, default.kv_lease_s),
        _seconds(environ, DRAIN_NOTICE_S, default.drain_notice_s),
        _seconds(environ, DRAIN_TIMEOUT_S, default.drain_timeout_s),
        _seconds(environ, STARTED_S, default.started_s, most_s=1e12),
    )


def _seconds(environ: Mapping[str, str], name: str, default: float, most_s: float = 1e9) -> float:
    text = environ.get(name) or str(default)
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= most_s:
        raise InvalidRules(f"{name} must be seconds from 0 to {most_s:g}, got {text!r}")
    return seconds


def _hosts(text: str) -> frozenset[str]:
    """Names, addresses, and networks like 10.0.0.0/8, with commas between them."""
    hosts = frozenset(filter(None, text.split(",")))
    for network in (host for host in hosts if "/" in host):
        try:
            ip_network(network, strict=False)
        except ValueError as e:
            raise InvalidRules(f"{KV_HOSTS}: {e}; write networks like 10.0.0.0/8") from e
    return hosts
