"""EndpointSlices, pools and members with defaults, and a membership with what it looks after."""

from __future__ import annotations

from typing import Any

from paceline_engine.clock import Clock
from paceline_router.endpoints import Member
from paceline_router.facts import Role
from paceline_router.members import Membership
from paceline_router.scrape import Scraper
from paceline_router.state import Ledger
from paceline_router.upstream import Upstreams

Json = dict[str, Any]


def make_endpoint(name: str, ip: str = "198.18.0.1", **conditions: bool) -> Json:
    target = {"kind": "Pod", "name": name, "uid": f"uid-{name}"}
    return {"addresses": [ip], "conditions": {"ready": True, **conditions}, "targetRef": target}


def make_slice(name: str, *endpoints: Json, role: str = "mixed", family: str = "IPv4", **labels: str) -> Json:
    known = {"service": "chat", "pool": role, "role": role, "revision": "a", **labels}
    return {
        "metadata": {"name": name, "labels": {f"paceline.dev/{key}": value for key, value in known.items()}},
        "addressType": family,
        "ports": [{"name": "metrics", "port": 9000}, {"name": "http", "port": 8000}],
        "endpoints": list(endpoints),
    }


# --- the members of a router
def make_member(name: str, role: Role = Role.MIXED, **over: Any) -> Member:
    return Member(**{"uid": name, "name": name, "host": "127.0.0.1", "port": 1, "role": role, "pool": "p", **over})


class Parts:
    """A membership and what it looks after; nothing is probed."""

    def __init__(self) -> None:
        self.ledger, self.upstreams = Ledger(), Upstreams()
        self.scraper = Scraper(self.ledger, self.upstreams.pools, Clock(), "m", lambda name: None)
        self.membership = Membership(self.ledger, self.upstreams, self.scraper)

    def apply(self, *wanted: Member) -> None:
        self.membership.apply(wanted)
        self.check()

    def drain_first(self, *names: str) -> None:
        self.membership.drain_first({"p": frozenset(names)})
        self.check()

    def reconcile(self) -> None:
        self.membership.reconcile()
        self.check()

    def check(self) -> None:
        assert set(self.ledger.replicas) == set(self.upstreams.pools)

    def active(self) -> list[str]:
        for name in self.ledger.replicas:
            self.ledger.set_ready(name, True)
        return [replica.name for replica in self.ledger.ready(Role.MIXED)]


# --- pods that are removed first
def make_pool(pool: str, named: str | None) -> Json:
    annotations = {} if named is None else {"paceline.dev/drain-first": named}
    return {"metadata": {"name": f"chat-{pool}", "annotations": annotations}, "spec": {"pool": pool}}
