"""EndpointSlices → the replicas that they name, and EnginePools → which of those rest: pure reduction of what a watch
tells (DESIGN §3).

The labels of a pool's headless Service stand on its slices and say role, pool, revision and GPUs of a replica. An
endpoint may stand in several slices at once, while the controller moves it and once for each IP family: those of one
pod are merged by its uid, IPv4 before IPv6; it is a member while one of them says ready and none says terminating.
Invariant: members are unique by name, in its order, and the order of the slices changes none; a slice that makes no
sense names nobody; at least one member of each role and revision does not rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from paceline_router.facts import Role

SERVICE_LABEL = "paceline.dev/service"
POOL_LABEL = "paceline.dev/pool"
ROLE_LABEL = "paceline.dev/role"
REVISION_LABEL = "paceline.dev/revision"
GPUS_LABEL = "paceline.dev/gpus"  # of one replica; absent: 1
FAMILIES = ("IPv4", "IPv6")  # in order of preference
DEFAULT_PORT = 8000
DRAIN_FIRST = "paceline.dev/drain-first"  # annotation of an EnginePool: POD,POD,… that are removed first

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Member:
    """One replica that may get requests, and how to reach it. Another `uid` of the same name is another replica."""

    uid: str
    name: str
    host: str
    port: int
    role: Role
    pool: str
    revision: str = ""
    gpus: int = 1


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What one slice says of one pod."""

    member: Member
    family: str
    ready: bool
    terminating: bool


Slices = Mapping[str, tuple[Endpoint, ...]]  # by the name of the EndpointSlice
Named = Mapping[str, frozenset[str]]  # by pool: the pods that its EnginePool names to be removed first


def listed(objects: Iterable[Json]) -> Slices:
    """All slices that there are."""
    return {_name(slice_): _endpoints(slice_) for slice_ in objects}


def changed(slices: Slices, deleted: bool, slice_: Json) -> Slices:
    """`slices` after one of them was added, modified or deleted."""
    others = {name: endpoints for name, endpoints in slices.items() if name != _name(slice_)}
    return others if deleted else {**others, _name(slice_): _endpoints(slice_)}


def members(slices: Slices) -> tuple[Member, ...]:
    """The replicas that may get new requests."""
    by_uid: dict[str, list[Endpoint]] = {}
    for _, endpoints in sorted(slices.items()):
        for endpoint in endpoints:
            by_uid.setdefault(endpoint.member.uid, []).append(endpoint)
    found: dict[str, Member] = {}
    for _, merged in sorted(by_uid.items()):
        ready = [e for e in merged if e.ready]
        if ready and not any(e.terminating for e in merged):
            member = min(ready, key=lambda e: FAMILIES.index(e.family)).member
            found.setdefault(member.name, member)
    return tuple(found[name] for name in sorted(found))


def drained_first(pool: Json) -> frozenset[str]:
    """The pods that one EnginePool names; empty without the annotation."""
    annotations = (pool.get("metadata") or {}).get("annotations") or {}
    return frozenset(name for part in str(annotations.get(DRAIN_FIRST) or "").split(",") if (name := part.strip()))


def resting(members: Iterable[Member], named: Named) -> frozenset[str]:
    """Names of the members that get nothing new because they are about to be removed.

    Where all of a role and revision are named, none of them rests: requests need somebody, and prefill and decode
    replicas pair within a revision.
    """
    groups: dict[tuple[Role, str], list[Member]] = {}
    for member in members:
        groups.setdefault((member.role, member.revision), []).append(member)
    found: set[str] = set()
    for group in groups.values():
        chosen = {member.name for member in group if member.name in named.get(member.pool, ())}
        if len(chosen) < len(group):
            found |= chosen
    return frozenset(found)


def _name(slice_: Json) -> str:
    return str((slice_.get("metadata") or {}).get("name", ""))


def _endpoints(slice_: Json) -> tuple[Endpoint, ...]:
    labels = (slice_.get("metadata") or {}).get("labels") or {}
    role, family = labels.get(ROLE_LABEL), slice_.get("addressType", "")
    if role not in tuple(Role) or family not in FAMILIES:
        return ()
    gpus = str(labels.get(GPUS_LABEL, ""))
    facts = _Facts(
        _port(slice_),
        Role(role),
        labels.get(POOL_LABEL, ""),
        labels.get(REVISION_LABEL, ""),
        int(gpus) if gpus.isdecimal() and gpus.isascii() and int(gpus) else 1,
    )
    return tuple(_endpoint(entry, family, facts) for entry in slice_.get("endpoints") or () if entry.get("addresses"))


@dataclass(frozen=True, slots=True)
class _Facts:
    """What all endpoints of a slice share."""

    port: int
    role: Role
    pool: str
    revision: str
    gpus: int


def _endpoint(entry: Json, family: str, facts: _Facts) -> Endpoint:
    """A condition that is not given holds, but for `terminating` (discovery.k8s.io/v1, EndpointConditions)."""
    address = str(entry["addresses"][0])
    target = entry.get("targetRef") or {}
    name = str(target.get("name") or address)
    conditions = entry.get("conditions") or {}
    uid = str(target.get("uid") or name)
    member = Member(uid, name, address, facts.port, facts.role, facts.pool, facts.revision, facts.gpus)
    return Endpoint(member, family, conditions.get("ready") is not False, conditions.get("terminating") is True)


def _port(slice_: Json) -> int:
    """The port called `http`, or else the first."""
    ports = [port for port in slice_.get("ports") or () if port.get("port")]
    chosen = next((port for port in ports if port.get("name") == "http"), ports[0] if ports else None)
    return int(chosen["port"]) if chosen else DEFAULT_PORT
