"""The autoscaler's whole loop: what it writes, and whom it respects."""

from __future__ import annotations

import asyncio

import pytest
from autoscaler_rig import CHAT, HOLD_S, PODS, POOL, Rig, down, rig
from factories_api import make_manifest, make_pool
from paceline_router.autoscale.decide import Pacer
from paceline_router.endpoints import DRAIN_FIRST
from paceline_router.scaling.holds import HELD, SIZED
from paceline_router.scaling.queries import Signal
from prometheus_client import CollectorRegistry
from prometheus_double import healthy


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
