"""From which hosts an engine may pull KV: those named, and addresses in the networks named."""

from __future__ import annotations

import pytest
from paceline_engine.pd import is_allowed_host


@pytest.mark.parametrize(
    ("host", "allowed", "may"),
    [
        ("prefill", {"prefill"}, True),
        ("other", {"prefill"}, False),
        ("10.1.2.3", {"10.0.0.0/8"}, True),
        ("11.1.2.3", {"10.0.0.0/8"}, False),
        ("fd00::1", {"10.0.0.0/8", "fd00::/8"}, True),
        ("evil.example", {"0.0.0.0/0"}, False),
        ("10.1.2.3", set(), False),
    ],
    ids=["named", "not named", "in a network", "outside", "IPv6 too", "a name is in no network", "nobody is named"],
)
def test_hosts(host: str, allowed: set[str], may: bool) -> None:
    assert is_allowed_host(host, allowed) is may
