"""Services as the autoscaler sees them, with defaults: one class, one mixed pool, everything ready for long."""

from __future__ import annotations

from typing import Any

from paceline_api.slo import SLOClass
from paceline_router.facts import Role
from paceline_router.scaling.views import PodView, PoolView, ServiceView

NOW_S = 1_767_225_600.0  # 2026-01-01T00:00:00Z
LONG_AGO_S = NOW_S - 3600


def make_pool_view(name: str = "mixed", size: int = 1, **over: Any) -> PoolView:
    role = Role(name) if name in tuple(Role) else Role.MIXED
    whole: dict[str, Any] = {"replicas": size, "existing": size, "ready": size, "least": 1, "most": 8, "revision": "r1"}
    return PoolView(**{"name": name, "role": role, "table": "a100-sxm-80gb", **whole, **over})


def make_pod_view(name: str, pool: str = "", ready_since_s: float | None = LONG_AGO_S) -> PodView:
    return PodView(name, pool, "r1", LONG_AGO_S, ready_since_s)


def make_view(*pools: PoolView, routers: int = 1, **over: Any) -> ServiceView:
    """With the pods of its routers, and of as many engines as are ready."""
    pools = pools or (make_pool_view(),)
    names = [(f"chat-router-{i}", "") for i in range(routers)]
    names += [(f"chat-{pool.name}-{i}", pool.name) for pool in pools for i in range(pool.ready)]
    whole: dict[str, Any] = {
        "namespace": "llm",
        "name": "chat",
        "uid": "uid-chat",
        "generation": 1,
        "mode": "Enabled",
        "stabilisation_s": 60.0,
        "model": "hf://meta-llama/Llama-3.1-8B-Instruct",
        "classes": (SLOClass("interactive", 0.4, 0.04, 0.95),),
        "pools": pools,
        "pods": tuple(make_pod_view(*name) for name in names),
    }
    return ServiceView(**{**whole, **over})
