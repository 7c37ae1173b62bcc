"""The operator's shell against an API server in memory: what is written, once, and what is left alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import httpx
import pytest
from api_double import ApiDouble, Json
from factories_api import make_class, make_manifest, make_pool
from operator_cluster import SETTINGS
from paceline_operator.deletion_cost import DELETION_COST, FIRST
from paceline_operator.loop import Loop
from paceline_operator.metrics import OperatorMetrics
from paceline_operator.store import WATCHED, follow
from paceline_router.endpoints import DRAIN_FIRST
from paceline_router.kube import Kube
from paceline_router.lease import Lease, LeaseLost
from prometheus_client import CollectorRegistry, generate_latest

SERVICES = "/apis/paceline.dev/v1alpha1/namespaces/llm/llmservices"
CHAT = f"{SERVICES}/chat"
SERVICE = "/api/v1/namespaces/llm/services/chat"
QUIET_S = 0.3  # longer than the loop lets events settle


class Operator:
    """A running loop and its API server."""

    def __init__(self, api: ApiDouble, kube: Kube, registry: CollectorRegistry) -> None:
        self.api, self.kube, self.registry = api, kube, registry

    def condition(self, kind: str) -> Json:
        conditions = self.api.objects[CHAT].get("status", {}).get("conditions", [])
        found: Json = next((c for c in conditions if c["type"] == kind), {})
        return found

    async def until(self, holds: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110  # what it waits for are objects, which set no event
                await asyncio.sleep(0.01)

    async def quiet(self) -> list[tuple[str, str]]:
        """What is written from now until nothing has been for a while."""
        start = len(self.api.writes)
        while True:
            count = len(self.api.writes)
            await asyncio.sleep(QUIET_S)
            if len(self.api.writes) == count:
                return self.api.writes[start:]


def operate(
    act: Callable[[Operator], Awaitable[None]], manifest: Json | None = None, others: dict[str, Json] | None = None
) -> None:
    """Runs `act` beside an operator that finds one service, and `others` by path."""

    async def run() -> None:
        api, registry = ApiDouble(), CollectorRegistry()
        service = manifest or make_manifest()
        service["metadata"] |= {"namespace": "llm", "generation": 1}
        for path, obj in {**(others or {}), CHAT: service}.items():
            api.put(path, obj)
        client = httpx.AsyncClient(transport=api.transport, base_url="https://server")
        async with Kube(client, first_delay_s=0.01) as kube, asyncio.TaskGroup() as group:
            loop = Loop(kube, SETTINGS, OperatorMetrics(registry))
            tasks = [group.create_task(follow(kube, loop.store, kind, "")) for kind in WATCHED]
            tasks.append(group.create_task(loop.run()))
            await act(Operator(api, kube, registry))
            for task in tasks:
                task.cancel()

    asyncio.run(run())


def test_a_service_gets_its_objects_and_then_nothing_is_written() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: o.condition("PoolsReady"))
        await o.quiet()
        assert o.api.paths("secrets") == ["/api/v1/namespaces/llm/secrets/chat-token"]
        assert len(o.api.paths("deployments")) == 2
        assert not [path for method, path in o.api.writes if method == "DELETE"]
        o.api.put(CHAT, o.api.objects[CHAT])  # an event without a change
        assert await o.quiet() == []

    operate(act)


def test_a_pool_gets_its_first_size_through_scale() -> None:
    async def act(o: Operator) -> None:
        pool = "/apis/paceline.dev/v1alpha1/namespaces/llm/enginepools/chat-mixed"
        await o.until(lambda: ("PATCH", f"{pool}/scale") in o.api.writes)
        assert o.api.objects[pool]["spec"]["replicas"] == 3
        await o.quiet()
        assert "replicas" not in o.api.objects[pool]["metadata"]["annotations"]
        deployment = next(o.api.objects[p] for p in o.api.paths("deployments") if "mixed" in p)
        assert deployment["spec"]["replicas"] == 3

    operate(act, make_manifest(pools=[make_pool(minReplicas=3)]))


def test_a_pod_that_an_engine_pool_names_is_marked_before_its_deployment_shrinks() -> None:
    pool = "/apis/paceline.dev/v1alpha1/namespaces/llm/enginepools/chat-mixed"
    pod = "/api/v1/namespaces/llm/pods/chat-mixed-0"

    async def act(o: Operator) -> None:
        await o.until(lambda: o.condition("PoolsReady"))
        deployment = next(p for p in o.api.paths("deployments") if "mixed" in p)
        labels = {**o.api.objects[deployment]["spec"]["template"]["metadata"]["labels"], "pod-template-hash": "5f7d"}
        owner = {"kind": "ReplicaSet", "name": f"{deployment.rsplit('/', 1)[1]}-5f7d", "controller": True}
        metadata = {"name": "chat-mixed-0", "labels": labels, "ownerReferences": [owner]}
        o.api.put(pod, {"kind": "Pod", "metadata": metadata})
        await o.kube.set_scale(pool, 3)
        await o.quiet()
        start = len(o.api.writes)
        live = o.api.objects[pool]
        annotations = live["metadata"]["annotations"] | {DRAIN_FIRST: "chat-mixed-0"}
        spec = {**live["spec"], "replicas": 2}
        o.api.put(pool, {**live, "metadata": {**live["metadata"], "annotations": annotations}, "spec": spec})
        await o.quiet()
        assert [path for _, path in o.api.writes[start:] if not path.endswith("/status")] == [pod, deployment]
        assert o.api.objects[pod]["metadata"]["annotations"] == {DELETION_COST: FIRST}
        assert o.api.objects[pod]["metadata"]["labels"] == labels
        o.api.put(pool, o.api.objects[pool])
        assert await o.quiet() == []
        del annotations[DRAIN_FIRST]
        o.api.put(pool, {**o.api.objects[pool], "metadata": {**live["metadata"], "annotations": annotations}})
        assert await o.quiet() == [("PATCH", pod)]
        assert o.api.objects[pod]["metadata"]["annotations"] == {}

    operate(act)


def test_somebody_elses_object_is_left_alone_and_said_once() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: "exists and is not this service's" in o.condition("RouterReady").get("message", ""))
        await o.quiet()
        assert o.api.objects[SERVICE]["spec"] == {"theirs": True}
        events = [o.api.objects[path] for path in o.api.paths("events")]
        assert [(e["reason"], e["type"]) for e in events] == [("NameTaken", "Warning")]
        o.api.put(CHAT, o.api.objects[CHAT])
        assert await o.quiet() == []
        o.api.drop(SERVICE)
        o.api.put(CHAT, o.api.objects[CHAT])
        await o.until(lambda: SERVICE in o.api.objects)

    foreign = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "chat"}, "spec": {"theirs": True}}
    operate(act, make_manifest(), others={SERVICE: foreign})


def test_what_is_left_of_an_earlier_service_of_the_name_is_waited_for() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: b'reconciles_total{result="error"}' in generate_latest(o.registry))
        o.api.drop(SERVICE)
        await o.until(lambda: o.condition("PoolsReady"))
        assert o.api.paths("events") == []

    reference = {"kind": "LLMService", "name": "chat", "uid": "earlier", "controller": True}
    metadata = {"name": "chat", "ownerReferences": [reference]}
    operate(act, others={SERVICE: {"apiVersion": "v1", "kind": "Service", "metadata": metadata}})


def test_an_object_that_is_refused_keeps_no_other_from_being_written_and_is_tried_again() -> None:
    async def act(o: Operator) -> None:
        o.api.refused = "deployments/chat-decode"
        await o.until(lambda: o.condition("PoolsReady").get("reason") == "ApplyFailed")
        assert o.condition("PoolsReady")["message"].startswith("Deployment chat-decode")
        assert [p.rpartition("/")[2].rpartition("-")[0] for p in o.api.paths("deployments")] == ["chat-prefill", "chat"]
        assert b'reconciles_total{result="error"}' in generate_latest(o.registry)
        o.api.refused = ""
        await o.until(lambda: len(o.api.paths("deployments")) == 3)
        await o.until(lambda: o.condition("PoolsReady").get("reason") != "ApplyFailed")

    pools = [make_pool("prefill", "Prefill"), make_pool("decode", "Decode")]
    operate(act, make_manifest(pools=pools))


def test_a_value_that_the_server_keeps_otherwise_is_written_once() -> None:
    async def act(o: Operator) -> None:
        o.api.rewrite = {"30 s": "30.0 s"}
        await o.until(lambda: o.condition("PoolsReady"))
        await o.quiet()
        o.api.put(CHAT, o.api.objects[CHAT])
        assert await o.quiet() == []

    over = {"metadata": {"annotations": {"patience": "30 s"}}}
    operate(act, make_manifest(pools=[make_pool(podTemplate=over)]))


def test_an_infeasible_service_gets_a_reason_and_nothing_else() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: o.condition("PlanFeasible"))
        assert o.condition("PlanFeasible")["reason"] == "ObjectiveUnattainable"
        assert [path for _, path in o.api.writes] == [f"{CHAT}/status"]

    operate(act, make_manifest(slo={"classes": [make_class(ttftMs=1)]}))


def test_what_is_deleted_comes_back() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: o.condition("PoolsReady"))
        await o.quiet()
        o.api.drop(SERVICE)
        await o.until(lambda: SERVICE in o.api.objects)
        assert await o.quiet() == []

    operate(act)


def test_a_lost_token_is_made_again_when_the_kubelet_misses_it() -> None:
    async def act(o: Operator) -> None:
        secret, pod = "/api/v1/namespaces/llm/secrets/chat-token", "/api/v1/namespaces/llm/pods/chat-mixed-0"
        await o.until(lambda: o.condition("PoolsReady"))
        o.api.drop(secret)
        waiting = {"reason": "CreateContainerConfigError", "message": 'secret "chat-token" not found'}
        template = next(o.api.objects[p] for p in o.api.paths("deployments") if "mixed" in p)["spec"]["template"]
        status = {"containerStatuses": [{"name": "engine", "state": {"waiting": waiting}}]}
        metadata = {"name": "chat-mixed-0", "labels": template["metadata"]["labels"]}
        o.api.put(pod, {"kind": "Pod", "metadata": metadata, "status": status})
        await o.until(lambda: secret in o.api.objects)

    operate(act)


def test_a_service_that_is_gone_is_forgotten_and_one_that_is_going_is_left_alone() -> None:
    async def act(o: Operator) -> None:
        await o.until(lambda: o.condition("PoolsReady"))
        await o.quiet()
        assert b'paceline_service_ready{llmservice="chat"' in generate_latest(o.registry)
        going = o.api.objects[CHAT]
        o.api.put(CHAT, {**going, "metadata": {**going["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
        o.api.drop(SERVICE)
        assert await o.quiet() == []
        o.api.drop(CHAT)
        await o.until(lambda: b'paceline_service_ready{llmservice="chat"' not in generate_latest(o.registry))

    operate(act)


def lease(kube: Kube, holder: str) -> Lease:
    return Lease(kube, "llm", "paceline-operator", holder)


def test_one_operator_holds_the_lease_and_hands_it_over_when_it_stops() -> None:
    async def act(o: Operator) -> None:
        first, second = lease(o.kube, "first"), lease(o.kube, "second")
        await first.acquire()
        assert not await second.renew()
        await first.release()
        assert await second.renew()
        assert not await first.renew()
        held = o.api.objects["/apis/coordination.k8s.io/v1/namespaces/llm/leases/paceline-operator"]["spec"]
        assert (held["holderIdentity"], held["leaseTransitions"]) == ("second", 1)

    operate(act)


def test_a_restarted_container_goes_on_with_its_pods_lease() -> None:
    async def act(o: Operator) -> None:
        await lease(o.kube, "pod-0").acquire()
        assert await lease(o.kube, "pod-0").renew()

    operate(act)


def test_a_lease_that_nobody_renews_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(o: Operator) -> None:
        now = [100.0]
        monkeypatch.setattr("paceline_router.lease.monotonic", lambda: now[0])
        await lease(o.kube, "first").acquire()
        second = lease(o.kube, "second")
        assert not await second.renew()
        now[0] += 14
        assert not await second.renew()
        now[0] += 2
        assert await second.renew()

    operate(act)


def test_a_lease_that_was_taken_stops_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    async def act(o: Operator) -> None:
        monkeypatch.setattr("paceline_router.lease.RENEW_S", 0.01)
        first = lease(o.kube, "first")
        await first.acquire()
        await first.release()
        assert await lease(o.kube, "second").renew()
        with pytest.raises(LeaseLost, match="another's"):
            await first.keep()

    operate(act)
