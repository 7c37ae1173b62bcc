"""The autoscaler's whole loop: an API server and a Prometheus in memory, a law that is told what to want, and faults.

Time is the test's own. What a tick reads, it reads through the real watches, and what it writes goes through the real
client.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from api_double import ApiDouble, Json
from factories_api import make_manifest, make_pool
from factories_scaling import NOW_S
from paceline_router import autoscaler
from paceline_router.autoscale.decide import Pacer
from paceline_router.autoscale.signals import Change, Ruling, ServiceSignals
from paceline_router.endpoints import DRAIN_FIRST, POOL_LABEL, REVISION_LABEL, SERVICE_LABEL
from paceline_router.kube import Kube
from paceline_router.scaling.actuate import Actuator
from paceline_router.scaling.holds import HELD, SIZED
from paceline_router.scaling.loop import Loop
from paceline_router.scaling.metrics import AutoscalerMetrics
from paceline_router.scaling.prometheus import Prometheus
from paceline_router.scaling.queries import Signal
from paceline_router.scaling.steward import Law, Moment
from paceline_router.scaling.store import READERS, Store, follow
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_double import SCRAPE_S, PrometheusDouble, bend, healthy

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


def test_a_pool_grows_at_once_and_the_status_says_why() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.law.wanted = {"mixed": 3}
        resized = [("PATCH", POOL), ("PATCH", f"{POOL}/scale"), ("PATCH", POOL)]
        assert await r.tick() == [*resized, ("PATCH", f"{CHAT}/status")]
        assert (r.size(), r.annotation(SIZED)) == (3, "3")
        (decision,) = r.status()["decisions"]
        assert (decision["pool"], decision["from"], decision["to"]) == ("mixed", 1, 3)
        assert (decision["binding"], decision["why"]) == ("interactive/ttft", "as told")
        assert r.condition("MetricsAvailable")[:2] == ("True", "MetricsFresh")
        assert r.condition("ScalingActive")[:2] == ("True", "Scaling")
        assert r.drain_first() is None
        assert (
            'paceline_autoscaler_replicas{llmservice="chat",llmservice_namespace="llm",pool="mixed"} 3.0' in r.metrics()
        )
        assert 'direction="up",llmservice="chat",llmservice_namespace="llm",pool="mixed"} 1.0' in r.metrics()

    rig(act)


def test_the_pods_to_remove_are_named_before_the_pool_shrinks_and_forgotten_after() -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        r.law.wanted = {"mixed": 2}
        assert (await r.tick())[:2] == [("PATCH", POOL), ("PATCH", f"{POOL}/scale")]
        assert (r.size(), r.drain_first()) == (2, "chat-mixed-0")  # the one with the fewest requests
        assert await r.tick() == []  # it shrinks still
        assert r.drain_first() == "chat-mixed-0"
        r.api.drop(f"{PODS}/chat-mixed-0")
        r.change(POOL, "status", replicas=2, readyReplicas=2)
        assert (await r.tick())[0] == ("PATCH", POOL)
        assert r.drain_first() is None

    rig(act)


def test_the_names_go_when_the_pool_grows_again() -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        r.law.wanted = {"mixed": 2}
        await r.tick()
        assert r.drain_first()
        r.law.wanted = {"mixed": 3}
        await r.tick()
        assert r.size() == 3
        r.law.wanted = {}
        await r.tick()
        assert r.drain_first() is None

    rig(act)


def test_an_idle_service_causes_no_writes() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.prometheus.rows["chat"] = healthy(rates={"interactive": 0.0})
        assert await r.tick() == [("PATCH", f"{CHAT}/status")]
        assert r.condition("SLOMet")[:2] == ("Unknown", "NoTraffic")
        for _ in range(20):
            assert await r.tick() == []

    rig(act)


def test_figures_alone_are_written_once_a_minute() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        written = []
        for turn in range(16):
            r.prometheus.rows["chat"] = healthy(rates={"interactive": 4.0 + turn / 10})
            written.append(len(await r.tick(15.0)))
        assert written == [1, 0, 0, 0] * 4

    rig(act)


def refusing(code: int) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(code)


def down(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("All connection attempts failed")


def dated(r: Rig) -> None:
    r.prometheus.rows["chat"] = bend(r.prometheus.rows["chat"], Signal.ROUTER_AGES, 7.0)


def emptied(r: Rig) -> None:
    r.prometheus.rows["chat"] = {signal: [] for signal in Signal}


def not_a_number(r: Rig) -> None:
    r.prometheus.rows["chat"] = bend(r.prometheus.rows["chat"], Signal.ARRIVALS, float("nan"))


def contradicting(r: Rig) -> None:
    r.prometheus.rows["chat"] = healthy(pools={"mixed": 1})


def fault(answer: Callable[[httpx.Request], httpx.Response]) -> Callable[[Rig], None]:
    def bring(r: Rig) -> None:
        r.prometheus.fault = answer

    return bring


def skewed(r: Rig) -> None:
    r.prometheus.skew_s = -60.0


FAULTS = [
    pytest.param(fault(down), "MetricsUnreachable", "ConnectError", id="Prometheus is down"),
    pytest.param(fault(refusing(401)), "MetricsUnreachable", "tokenSecret", id="it refuses us with 401"),
    pytest.param(fault(refusing(503)), "MetricsUnreachable", "503", id="it starts"),
    pytest.param(fault(lambda _: httpx.Response(200, text="hi")), "MetricsInvalid", "no answer of", id="it is another"),
    pytest.param(emptied, "MetricsStale", "sees no router", id="it is cut off from routers and engines"),
    pytest.param(dated, "MetricsStale", "younger than 6 s", id="its samples are old"),
    pytest.param(not_a_number, "MetricsInvalid", "arrivals of interactive", id="a figure is no number"),
    pytest.param(contradicting, "MetricsInvalid", "2 of 3 are missing", id="it sees one engine of three"),
    pytest.param(skewed, "MetricsInvalid", "NTP", id="its clock is a minute behind"),
]


@pytest.mark.parametrize(("bring", "reason", "says"), FAULTS)
def test_no_size_changes_and_the_condition_says_so_when(bring: Callable[[Rig], None], reason: str, says: str) -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        await r.tick()
        assert r.condition("MetricsAvailable")[0] == "True"
        rows = r.prometheus.rows["chat"]
        r.law.wanted = {"mixed": 1}
        bring(r)
        for _ in range(5):
            assert all(path == f"{CHAT}/status" for _, path in await r.tick())
        assert (r.size(), r.drain_first()) == (3, None)
        status, found, message = r.condition("MetricsAvailable")
        assert (status, found) == ("False", reason)
        assert says in message
        assert r.condition("ScalingActive")[:2] == ("False", reason)
        assert r.law.blinds == 5
        assert 'paceline_autoscaler_metrics_available{llmservice="chat",llmservice_namespace="llm"} 0.0' in r.metrics()
        r.prometheus.fault, r.prometheus.skew_s, r.prometheus.rows["chat"] = None, 0.0, rows
        await r.tick()
        assert r.condition("MetricsAvailable")[0] == "True"
        assert r.size() == 1

    rig(act)


def test_without_a_prometheus_it_says_what_to_set() -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=3)
        r.registry = CollectorRegistry()
        r.loop = r.make_loop(None)
        await r.tick()
        assert r.condition("MetricsAvailable")[:2] == ("False", "MetricsUnreachable")
        assert "prometheus.url" in r.condition("MetricsAvailable")[2]
        assert r.prometheus.asked == []
        assert await r.tick() == []

    rig(act)


def test_a_clock_that_jumps_restarts_what_was_seen() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        await r.tick()
        await r.tick()
        assert r.law.restarts == 0
        await r.tick(jump_s=-6.0)
        assert r.law.restarts == 1
        await r.tick(jump_s=4.0)
        assert r.law.restarts == 1

    rig(act)


def test_a_persons_size_is_respected_for_a_while_also_by_the_next_leader() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        await r.tick()
        r.change(POOL, "spec", replicas=5)
        r.law.wanted = {"mixed": 2}
        await r.tick()
        assert r.size() == 5
        assert r.law.signals[-1].pools[0].held
        held = r.condition("ScalingActive")
        assert held[:2] == ("False", "ManualHold")
        assert held[2].startswith("mixed: 5 replicas, set by others, until 2026-01-01T00:15:")
        assert 'paceline_autoscaler_held{llmservice="chat",llmservice_namespace="llm",pool="mixed"} 1.0' in r.metrics()
        r.registry = CollectorRegistry()
        r.loop = r.make_loop(r.client)
        await r.tick(HOLD_S / 2)
        assert r.size() == 5
        assert r.condition("ScalingActive") == held
        await r.tick(HOLD_S / 2)
        assert r.size() == 2
        assert r.condition("ScalingActive")[:2] == ("True", "Scaling")
        await r.tick()
        assert r.annotation(SIZED) == "2"
        assert r.annotation(HELD) is None

    rig(act)


def test_the_size_at_first_sight_counts_as_ours_and_so_does_the_operators_clamp() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.change(POOL, "metadata", annotations={})
        await r.tick()
        assert r.annotation(SIZED) == "1"
        pools = make_manifest()["spec"]["pools"]
        r.change(CHAT, "spec", pools=[pool | {"minReplicas": 2, "maxReplicas": 8} for pool in pools])
        r.change(POOL, "spec", replicas=2)
        r.law.wanted = {"mixed": 3}
        await r.tick()
        assert r.size() == 3

    rig(act)


def test_a_size_that_changed_since_it_was_decided_on_stays() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.law.wanted = {"mixed": 3}
        for _ in range(20):
            await asyncio.sleep(0)
        r.api.objects[POOL]["spec"]["replicas"] = 6  # no watch has told yet
        assert await r.tick() == [("PATCH", f"{CHAT}/status")]
        assert r.size() == 6
        assert r.status()["decisions"] == []

    rig(act)


def test_recommend_records_what_it_would_do_once_and_does_nothing() -> None:
    async def act(r: Rig) -> None:
        r.add_service(autoscaling={"mode": "Recommend"})
        r.change(POOL, "metadata", annotations={DRAIN_FIRST: "somebodys-own"})
        r.law.wanted = {"mixed": 3}
        assert await r.tick() == [("PATCH", f"{CHAT}/status")]
        assert await r.tick() == []
        r.registry = CollectorRegistry()
        r.loop = r.make_loop(r.client)
        assert await r.tick() == []  # another leader recommends the same
        r.law.wanted = {"mixed": 4}
        assert await r.tick() == [("PATCH", f"{CHAT}/status")]
        assert (r.size(), r.drain_first(), r.annotation(SIZED)) == (1, "somebodys-own", None)
        assert [d["to"] for d in r.status()["decisions"]] == [3, 4]
        assert all(d["why"] == "recommended: as told" for d in r.status()["decisions"])
        assert r.condition("ScalingActive")[:2] == ("False", "RecommendOnly")

    rig(act)


def test_disabled_reports_and_rules_nothing() -> None:
    async def act(r: Rig) -> None:
        r.add_service(autoscaling={"mode": "Disabled"})
        r.law.wanted = {"mixed": 3}
        await r.tick()
        assert (r.size(), r.law.signals) == (1, [])
        assert r.condition("ScalingActive")[:2] == ("False", "ScalingDisabled")
        assert r.condition("SLOMet")[:2] == ("True", "ObjectivesMet")
        assert r.status()["classes"][0]["attainmentPercent"] == "98.0"

    rig(act)


def test_a_new_leader_keeps_the_history() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.law.wanted = {"mixed": 2}
        await r.tick()
        r.registry = CollectorRegistry()
        r.loop = r.make_loop(r.client)
        r.law.wanted = {"mixed": 3}
        r.prometheus.rows["chat"] = healthy(pools={"mixed": 2})
        await r.tick()
        assert [(d["from"], d["to"]) for d in r.status()["decisions"]] == [(1, 2), (2, 3)]

    rig(act)


def test_settling_is_counted_from_its_first_sight() -> None:
    async def act(r: Rig) -> None:
        r.add_service(size=2)
        for _ in range(3):
            await r.tick(10.0)
        r.change(POOL, "status", readyReplicas=1)
        await r.tick(10.0)
        r.change(POOL, "status", readyReplicas=2)
        await r.tick(10.0)
        await r.tick(10.0)
        assert [s.pools[0].settled_s for s in r.law.signals] == [0.0, 10.0, 20.0, 0.0, 0.0, 10.0]

    rig(act)


def test_one_query_a_signal_for_all_services() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        r.add_service(name="code")
        await r.tick()
        assert len(r.prometheus.asked) == len(set(r.prometheus.asked)) == len(Signal) + 1
        assert r.condition("MetricsAvailable", "code")[0] == "True"

    rig(act)


def test_one_services_bug_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def act(r: Rig) -> None:
        r.add_service(name="bad")
        r.add_service(name="chat")
        r.prometheus.rows["bad"][Signal.PROMPT_BUCKETS][0].labels["le"] = "many"  # type: ignore[index]  # on purpose
        r.law.wanted = {"mixed": 2}
        await r.tick()
        assert (r.size("bad"), r.size("chat")) == (1, 2)
        assert 'llmservice="bad",llmservice_namespace="llm",result="failed"} 1.0' in r.metrics()
        assert "tick failed namespace=llm service=bad" in caplog.text

    rig(act)


def test_a_service_that_is_gone_leaves_no_metrics() -> None:
    async def act(r: Rig) -> None:
        r.add_service()
        await r.tick()
        assert 'llmservice="chat"' in r.metrics()
        r.api.drop(CHAT)
        assert await r.tick() == []
        assert 'llmservice="chat"' not in r.metrics()

    rig(act)


def test_with_the_real_law_three_times_the_load_grows_the_pool_and_its_absence_does_not_shrink_it() -> None:
    async def act(r: Rig) -> None:
        r.add_service(pools=[make_pool(maxReplicas=8)])
        r.prometheus.rows["chat"] = healthy(rates={"interactive": 2.0})
        await r.tick()
        assert r.size() == 1
        r.prometheus.rows["chat"] = healthy(rates={"interactive": 40.0}, good=0.5)
        await r.tick()
        grown = r.size()
        assert 1 < grown <= 8
        assert r.status()["decisions"][-1]["why"]
        r.prometheus.fault = down
        for _ in range(60):
            await r.tick()
        assert r.size() == grown

    rig(act, Pacer)


LEASE = "/apis/coordination.k8s.io/v1/namespaces/llm/leases/paceline-autoscaler"


def process(monkeypatch: pytest.MonkeyPatch, act: Callable[[ApiDouble], Awaitable[None]]) -> tuple[int, ApiDouble]:
    """`main` itself, in this process, on an API server in memory; its exit code."""
    api = ApiDouble()
    r = Rig(api)
    r.add_service()
    monkeypatch.setenv("POD_NAME", "autoscaler-0")
    acting: list[asyncio.Task[None]] = []

    def connect() -> Kube:
        acting.append(asyncio.ensure_future(act(api)))
        return Kube(httpx.AsyncClient(transport=api.transport, base_url="http://api"), "llm")

    monkeypatch.setattr(Kube, "connect", connect)
    code = autoscaler.main(["--port", "0", "--host", "127.0.0.1", "--interval-s", "0.01"])
    assert acting[0].done()
    acting[0].result()
    return code, api


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110  # what it waits for are objects, which set no event
            await asyncio.sleep(0.01)


def test_the_process_acts_while_it_holds_the_lease_and_hands_it_over_when_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def act(api: ApiDouble) -> None:
        await until(lambda: "status" in api.objects[CHAT])
        assert api.objects[LEASE]["spec"]["holderIdentity"] == "autoscaler-0"
        os.kill(os.getpid(), signal.SIGTERM)

    code, api = process(monkeypatch, act)
    assert code == 0
    assert api.objects[LEASE]["spec"]["holderIdentity"] == ""
    assert api.objects[CHAT]["status"]["conditions"][0]["reason"] == "MetricsUnreachable"


def test_the_process_waits_for_anothers_lease_and_writes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(api: ApiDouble) -> None:
        meta = {"name": "paceline-autoscaler", "namespace": "llm"}
        held = {"holderIdentity": "autoscaler-1", "leaseDurationSeconds": 15}
        api.put(LEASE, {"kind": "Lease", "metadata": meta, "spec": held})
        await asyncio.sleep(0.3)
        assert api.writes == []
        os.kill(os.getpid(), signal.SIGTERM)

    code, api = process(monkeypatch, act)
    assert (code, api.objects[LEASE]["spec"]["holderIdentity"]) == (0, "autoscaler-1")


def test_the_process_ends_when_another_takes_the_lease(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paceline_router.lease.RENEW_S", 0.05)

    async def act(api: ApiDouble) -> None:
        await until(lambda: "status" in api.objects[CHAT])
        lease = api.objects[LEASE]
        api.put(LEASE, {**lease, "spec": {**lease["spec"], "holderIdentity": "autoscaler-1"}})

    code, api = process(monkeypatch, act)
    assert (code, api.objects[LEASE]["spec"]["holderIdentity"]) == (1, "autoscaler-1")
    assert capsys.readouterr().err.splitlines()[-1] == (
        "paceline_router.autoscaler: Lease paceline-autoscaler is another's"
    )


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "no cluster is configured", id="without a cluster"),
        pytest.param(["--prometheus-url", "prom:9090"], "no URL of a Prometheus", id="with a URL that is none"),
        pytest.param(["--interval-s", "31"], "above half of the window of rates, 30 s", id="with looks too far apart"),
        pytest.param(
            ["--prometheus-url", "https://prom", "--prometheus-ca-file", "/nowhere"], "/nowhere", id="without its CA"
        ),
    ],
)
def test_the_process_ends_with_one_line(args: list[str], says: str) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    command = [sys.executable, "-m", "paceline_router.autoscaler", "--port", "0", "--host", "127.0.0.1", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1
