"""One autoscaler on an API server and a Prometheus in memory, with a law that is told what to want.

Time is the test's own. What a tick reads, it reads through the real watches, and what it writes goes through the real
client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from api_double import ApiDouble, Json
from factories_api import make_manifest
from factories_scaling import NOW_S
from paceline_router.autoscale.signals import Change, Ruling, ServiceSignals
from paceline_router.endpoints import DRAIN_FIRST, POOL_LABEL, REVISION_LABEL, SERVICE_LABEL
from paceline_router.kube import Kube
from paceline_router.scaling.actuate import Actuator
from paceline_router.scaling.holds import SIZED
from paceline_router.scaling.loop import Loop
from paceline_router.scaling.metrics import AutoscalerMetrics
from paceline_router.scaling.prometheus import Prometheus
from paceline_router.scaling.steward import Law, Moment
from paceline_router.scaling.store import READERS, Store, follow
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_double import SCRAPE_S, PrometheusDouble, healthy

PACELINE = "/apis/paceline.dev/v1alpha1/namespaces/llm"


CHAT, POOL, PODS = f"{PACELINE}/llmservices/chat", f"{PACELINE}/enginepools/chat-mixed", "/api/v1/namespaces/llm/pods"


LONG_AGO = "2025-12-31T00:00:00Z"


HOLD_S = 900.0


class TellingLaw:
    """Wants what the test says of each pool; remembers what it was told."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self.wanted = wanted
        self.stabilisation_s = 0.0
        self.signals: list[ServiceSignals] = []
        self.blinds = self.restarts = 0

    def rule(self, signals: ServiceSignals, now: float) -> Ruling:
        self.signals.append(signals)
        changes = tuple(
            Change(pool.name, pool.replicas, wanted, "interactive/ttft", "as told")
            for pool in signals.pools
            if (wanted := self.wanted.get(pool.name, pool.replicas)) != pool.replicas and not pool.held
        )
        return Ruling(self.wanted, changes, {})

    def blind(self, now: float) -> None:
        self.blinds += 1

    def restart(self, now: float) -> None:
        self.restarts += 1

    def seen_s(self, now: float) -> float:
        return self.stabilisation_s


class Rig:
    """One autoscaler, its cluster and its Prometheus; `chat` is a service with one mixed pool."""

    def __init__(self, api: ApiDouble, make_law: Callable[[float], Law] | None = None) -> None:
        self.api = api
        self.kube = Kube(httpx.AsyncClient(transport=api.transport, base_url="http://api"))
        self.now_s = NOW_S
        self.mono_s = 1000.0
        self.prometheus = PrometheusDouble(lambda: self.now_s)
        self.law = TellingLaw({})
        self.registry = CollectorRegistry()
        self.store = Store()
        self.client = Prometheus(httpx.AsyncClient(transport=self.prometheus.transport), "http://prom:9090")
        self.loop = self.make_loop(self.client, make_law)

    def make_loop(self, client: Prometheus | None, make_law: Callable[[float], Law] | None = None) -> Loop:
        return Loop(
            self.store,
            Actuator(self.kube),
            client,
            AutoscalerMetrics(self.registry),
            make_law or (lambda _: self.law),
            scrape_s=SCRAPE_S,
            hold_s=HOLD_S,
            clock=lambda: Moment(self.now_s, self.mono_s),
        )

    def add_service(self, size: int = 1, name: str = "chat", **spec: Any) -> None:
        manifest = make_manifest(name, **spec)
        manifest["metadata"] |= {"namespace": "llm", "uid": f"uid-{name}", "generation": 1}
        self.api.put(f"{PACELINE}/llmservices/{name}", manifest)
        owner = {"apiVersion": "v1", "kind": "LLMService", "name": name, "uid": f"uid-{name}", "controller": True}
        sized = {SIZED: str(size)}  # as the first sight of it leaves it
        meta = {"name": f"{name}-mixed", "namespace": "llm", "ownerReferences": [owner], "annotations": sized}
        status = {"replicas": size, "readyReplicas": size, "revision": "r1"}
        pool = {"service": name, "pool": "mixed", "role": "Mixed", "replicas": size}
        head = {"apiVersion": "paceline.dev/v1alpha1", "kind": "EnginePool", "metadata": meta}
        self.api.put(f"{PACELINE}/enginepools/{name}-mixed", {**head, "spec": pool, "status": status})
        self._pod(name, f"{name}-router-0", "router")
        for engine in range(size):
            self._pod(name, f"{name}-mixed-{engine}", "engine", {POOL_LABEL: "mixed", REVISION_LABEL: "r1"})
        self.prometheus.rows[name] = healthy(name, pools={"mixed": size})

    def _pod(self, service: str, name: str, component: str, labels: dict[str, str] | None = None) -> None:
        component_label = {"app.kubernetes.io/component": component, "app.kubernetes.io/name": "paceline"}
        meta = {
            "name": name,
            "namespace": "llm",
            "creationTimestamp": LONG_AGO,
            "labels": {SERVICE_LABEL: service, **component_label, **(labels or {})},
        }
        ready = {"type": "Ready", "status": "True", "lastTransitionTime": LONG_AGO}
        self.api.put(f"{PODS}/{name}", {"kind": "Pod", "metadata": meta, "status": {"conditions": [ready]}})

    def size(self, name: str = "chat") -> int:
        return int(self.api.objects[f"{PACELINE}/enginepools/{name}-mixed"]["spec"]["replicas"])

    def status(self, name: str = "chat") -> Json:
        found: Json = self.api.objects[f"{PACELINE}/llmservices/{name}"].get("status", {})
        return found

    def condition(self, kind: str, name: str = "chat") -> tuple[str, str, str]:
        found = next(c for c in self.status(name)["conditions"] if c["type"] == kind)
        return found["status"], found["reason"], found["message"]

    def drain_first(self) -> str | None:
        return self.annotation(DRAIN_FIRST)

    def annotation(self, name: str) -> str | None:
        value: str | None = (self.api.objects[POOL]["metadata"].get("annotations") or {}).get(name)
        return value

    def metrics(self) -> str:
        return generate_latest(self.registry).decode()

    def change(self, path: str, part: str, **values: Any) -> None:
        live = self.api.objects[path]
        self.api.put(path, {**live, part: {**live.get(part, {}), **values}})

    async def tick(self, seconds: float = 15.0, jump_s: float = 0.0) -> list[tuple[str, str]]:
        """Time goes on, the watches catch up, the loop looks; what it wrote."""
        self.now_s += seconds + jump_s
        self.mono_s += seconds
        for _ in range(20):
            await asyncio.sleep(0)
        start = len(self.api.writes)
        await self.loop.tick()
        return self.api.writes[start:]


def rig(act: Callable[[Rig], Awaitable[None]], make_law: Callable[[float], Law] | None = None) -> None:
    async def run() -> None:
        r = Rig(ApiDouble(), make_law)
        followers = [asyncio.create_task(follow(r.kube, r.store, place, "")) for place in READERS]
        async with r.kube, r.client, asyncio.timeout(30):
            try:
                await r.store.synced.wait()
                await act(r)
            finally:
                for follower in followers:
                    follower.cancel()
                await asyncio.gather(*followers, return_exceptions=True)

    asyncio.run(run())


def down(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed")
