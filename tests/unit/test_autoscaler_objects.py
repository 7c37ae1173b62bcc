"""What the autoscaler sees of a service's objects in Kubernetes."""

from __future__ import annotations

import pytest
from factories_api import Json, make_manifest, make_pool
from paceline_router.scaling.objects import Pool, read_pool, read_service, view_of

DECLARED = [make_pool("prefill", "Prefill"), make_pool("decode", "Decode"), make_pool("mixed", "Mixed")]


def make_engine_pool(name: str, role: str, owner: str = "uid-chat") -> Pool:
    found = read_pool(
        {
            "apiVersion": "paceline.dev/v1alpha1",
            "kind": "EnginePool",
            "metadata": {"name": f"chat-{name}", "ownerReferences": [{"uid": owner, "controller": True}]},
            "spec": {"service": "chat", "pool": name, "role": role, "replicas": 2},
        }
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("plan", "seen"),
    [
        ({"topology": "Disaggregated"}, ["prefill", "decode"]),
        ({"topology": "Aggregated"}, ["mixed"]),
        (None, ["prefill", "decode", "mixed"]),
    ],
)
def test_pools_of_a_topology_that_was_left_are_the_operators(plan: Json | None, seen: list[str]) -> None:
    manifest = make_manifest(pools=DECLARED) | {"status": {"plan": plan} if plan else {}}
    manifest["metadata"] |= {"uid": "uid-chat", "namespace": "llm"}
    service = read_service(manifest)
    assert service is not None
    pools = [make_engine_pool(pool["name"], pool["role"]) for pool in DECLARED]
    assert [pool.name for pool in view_of(service, pools, []).pools] == seen
    assert view_of(service, [make_engine_pool("mixed", "Mixed", "uid-other")], []).pools == ()
