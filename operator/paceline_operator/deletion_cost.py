"""Which pods Kubernetes removes first when a pool shrinks: those that the EnginePool's annotation names (DESIGN §3).

A ReplicaSet removes pods of lower pod-deletion-cost before others. Only pods of the service's own Deployments are
looked at, and only our own value is ever taken back: one that a person set stays. Invariant: each named pod has the
cost and no other keeps it; where that is so, nothing is to be written. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paceline_router.endpoints import POOL_LABEL, drained_first

from paceline_operator.manifests.meta import COMPONENT_LABEL
from paceline_operator.observe import Observed

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
FIRST = "-1000"  # pods without the annotation cost 0
TEMPLATE_HASH = "pod-template-hash"  # label by which a Deployment tells its ReplicaSets apart


@dataclass(frozen=True, slots=True)
class Cost:
    """What a pod's annotation has to become; `value` None: it goes."""

    pod: str
    value: str | None


def find_costs(seen: Observed) -> tuple[Cost, ...]:
    """Those that differ from what the EnginePools ask for."""
    named = {pool["spec"]["pool"]: drained_first(pool) for pool in seen.of("EnginePool")}
    found = []
    for pod in seen.pods_of({COMPONENT_LABEL: "engine"}):
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp") or not _is_ours(metadata, seen):
            continue
        cost = (metadata.get("annotations") or {}).get(DELETION_COST)
        first = metadata["name"] in named.get(metadata["labels"].get(POOL_LABEL), ())
        if first != (cost == FIRST):
            found.append(Cost(metadata["name"], FIRST if first else None))
    return tuple(found)


def _is_ours(metadata: Mapping[str, Any], seen: Observed) -> bool:
    """A Deployment calls its ReplicaSets <its name>-<template hash>; ours are known, ReplicaSets are not watched."""
    suffix = f"-{metadata['labels'].get(TEMPLATE_HASH)}"
    owners = (r["name"] for r in metadata.get("ownerReferences") or () if r.get("controller"))
    return any(name.endswith(suffix) and seen.get("Deployment", name.removesuffix(suffix)) for name in owners)
