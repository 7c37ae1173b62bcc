"""`paceline status`: causes from conditions and pods, the tables, and the one line where nothing can be told."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from factories_api import make_class, make_manifest, make_pool
from paceline_api.v1alpha1 import EnginePool, LLMService
from paceline_cli.__main__ import main
from paceline_cli.service_view import NO_SCALING, NO_WORD, ServiceView, view
from paceline_cli.status import show
from paceline_engine.http1 import Exchange, serve
from rich.console import Console

Json = dict[str, Any]
PARTS = ("PlanFeasible", "PoolsReady", "RouterReady")


def make_condition(type_: str, status: str = "True", reason: str = "Fine", message: str = "all well") -> Json:
    at = "2026-01-01T00:00:00Z"
    return {"type": type_, "status": status, "reason": reason, "message": message, "lastTransitionTime": at}


def make_live(*conditions: Json, generation: int = 3, **status: Any) -> Json:
    """A service as the API server has it; the conditions replace those that hold."""
    by_type = {c["type"]: c for c in [make_condition(t) for t in ("Ready", *PARTS)] + list(conditions)}
    manifest = make_manifest()
    manifest["metadata"] |= {"namespace": "llm", "generation": generation, "resourceVersion": "7"}
    plan = {"topology": "Aggregated", "reason": "the only one", "predicted": {"attainmentPercent": "97.1"}}
    whole = {"observedGeneration": 3, "url": "http://chat.llm.svc:8000", "plan": plan}
    return manifest | {"status": whole | {"conditions": list(by_type.values())} | status}


def make_engine_pool(replicas: int = 2, ready: int = 2) -> Json:
    return {
        "apiVersion": "paceline.dev/v1alpha1",
        "kind": "EnginePool",
        "metadata": {"name": "chat-mixed", "namespace": "llm"},
        "spec": {
            "service": "chat",
            "pool": "mixed",
            "role": "Mixed",
            "replicas": replicas,
            "image": "localhost/engine:1",
            "plan": {"topology": "Aggregated", "tensor": 2},
        },
        "status": {"replicas": replicas, "readyReplicas": ready, "revision": "7c9f"},
    }


def make_pod(name: str, pool: str = "mixed", ready: bool = False, **status: Any) -> Json:
    labels = {"paceline.dev/service": "chat", "paceline.dev/revision": "7c9f"} | (
        {"paceline.dev/pool": pool} if pool else {"app.kubernetes.io/component": "router"}
    )
    conditions = [{"type": "Ready", "status": str(ready)}, *status.pop("conditions", [])]
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Running", "conditions": conditions, **status},
    }


def waiting(reason: str, message: str = "", **more: Any) -> Json:
    said = {"reason": reason} | ({"message": message} if message else {})
    return {"containerStatuses": [{"name": "engine", "state": {"waiting": said}, "restartCount": 0, **more}]}


def make_view(service: Json, *pods: Json, pools: tuple[Json, ...] = ()) -> ServiceView:
    return view(LLMService.model_validate(service), [EnginePool.model_validate(p) for p in pools], pods)


def test_a_ready_service_has_no_cause() -> None:
    seen = make_view(make_live(), make_pod("r", pool="", ready=True), make_pod("e", ready=True))
    assert (seen.ready, seen.causes) == (True, ())
    assert (seen.routers_ready, seen.routers_desired) == (1, 2)


NOT_READY = make_condition("Ready", "False", "NotServing", "PoolsReady is missing")
POOLS = make_condition("PoolsReady", "False", "ReplicasStarting", "mixed: 0 of 1 ready")
INFEASIBLE = make_condition("PlanFeasible", "False", "UnknownAccelerator", "h900 is none of a40, h100-sxm")
MISSING = 'secret "hf" not found'
KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.mark.parametrize(
    ("says", "service", "pods", "causes"),
    [
        ("nobody has reported", make_manifest(), [], [NO_WORD]),
        ("a plan that is not feasible", make_live(NOT_READY, INFEASIBLE), [],
         ["PlanFeasible: UnknownAccelerator: h900 is none of a40, h100-sxm"]),
        ("an edit that waits", make_live(NOT_READY, POOLS, generation=4), [],
         ["the operator has acted on generation 3 of 4: the latest edit waits for it",
          "PoolsReady: ReplicasStarting: mixed: 0 of 1 ready"]),
        ("no part says why", make_live(NOT_READY), [], ["Ready: NotServing: PoolsReady is missing"]),
        ("pods that only start", make_live(NOT_READY, POOLS),
         [make_pod("a", **waiting("ContainerCreating")), make_pod("b", phase="Pending")],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready"]),
        ("a missing Secret, for all pods in one", make_live(NOT_READY, POOLS),
         [make_pod(name, **waiting("CreateContainerConfigError", MISSING)) for name in "abcde"],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready",
          f"pods a, b, c and 2 more: CreateContainerConfigError: {MISSING}"]),
        ("a problem that the operator has told", make_live(NOT_READY, POOLS | {
            "message": f"pod a: CreateContainerConfigError: {MISSING}"}),
         [make_pod("a", **waiting("CreateContainerConfigError", MISSING))],
         [f"PoolsReady: ReplicasStarting: pod a: CreateContainerConfigError: {MISSING}"]),
        ("no node has room", make_live(NOT_READY, POOLS),
         [make_pod("a", phase="Pending", conditions=[
             {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}])],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready", "pod a: Unschedulable: 0/1 nodes"]),
        ("a crash loop", make_live(NOT_READY, POOLS),
         [make_pod("a", **waiting("CrashLoopBackOff", "back-off", lastState=KILLED, restartCount=4))],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready",
          "pod a: engine exited with 137 (OOMKilled)"]),
        ("an evicted pod", make_live(NOT_READY, POOLS), [make_pod("a", phase="Failed", reason="Evicted")],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready", "pod a: Evicted"]),
        ("a problem of one that goes", make_live(NOT_READY, POOLS),
         [make_pod("a", phase="Failed") | {"metadata": {"name": "a", "deletionTimestamp": "now"}}],
         ["PoolsReady: ReplicasStarting: mixed: 0 of 1 ready"]),
        ("ready, and yet a pod has a problem", make_live(), [make_pod("a", **waiting("ErrImagePull", "no such image"))],
         ["pod a: ErrImagePull: no such image"]),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_why_not_ready(says: str, service: Json, pods: list[Json], causes: list[str]) -> None:
    assert list(make_view(service, *pods).causes) == causes


def test_a_pool_shows_what_its_engine_pool_says_and_unused_ones_only_before_there_is_any() -> None:
    service = make_live()
    service["spec"]["pools"].append(make_pool("prefill", "Prefill"))
    (pool,) = make_view(service, pools=(make_engine_pool(ready=1),)).pools
    assert (pool.name, pool.desired, pool.ready, pool.tensor, pool.pipeline) == ("mixed", 2, 1, 2, 1)
    assert (pool.revision, pool.image) == ("7c9f", "localhost/engine:1")
    assert [(p.name, p.desired) for p in make_view(service).pools] == [("mixed", None), ("prefill", None)]


def test_a_class_shows_its_objective_beside_what_was_measured() -> None:
    measured = {"name": "interactive", "attainmentPercent": "96.4", "goodputPerSecond": "7.7", "ttftP90Ms": 310}
    service = make_live(classes=[measured])
    service["spec"]["slo"] = {
        "defaultClass": "batch",
        "classes": [make_class(attainmentPercent="99.9", ttftMsPer1kPromptTokens=50), make_class("batch")],
    }
    one, two = make_view(service).classes
    assert (one.target_percent, one.attainment_percent, one.ttft_p90_ms, one.is_default) == ("99.9", "96.4", 310, False)
    assert (two.target_percent, two.attainment_percent, two.is_default) == ("90", None, True)


MISSING_METRICS = make_condition("MetricsAvailable", "False", "MetricsUnreachable", "set prometheus.url of the chart")
HELD = make_condition("ScalingActive", "False", "ManualHold", "mixed: 5 replicas, set by others, until 12:34:56Z")
NO_TRAFFIC = make_condition("SLOMet", "Unknown", "NoTraffic", "no request in the last 60 s")
SCALING = make_condition("ScalingActive", "True", "Scaling", "sizes follow the load")
FRESH = make_condition("MetricsAvailable", "True", "MetricsFresh", "3 s old")
MISSED = make_condition("SLOMet", "False", "ObjectivesMissed", "interactive attains 81.2 %, target 90 %")


@pytest.mark.parametrize(
    ("says", "mode", "conditions", "notes"),
    [
        ("all is well", "Enabled", [SCALING, FRESH], []),
        ("no word of it", "Enabled", [], [NO_SCALING]),
        ("no word where none is due", "Disabled", [], []),
        ("a person's size is held", "Enabled", [FRESH, HELD],
         ["ScalingActive False: ManualHold: mixed: 5 replicas, set by others, until 12:34:56Z"]),
        ("no metrics", "Enabled", [HELD, MISSING_METRICS],
         ["MetricsAvailable False: MetricsUnreachable: set prometheus.url of the chart",
          "ScalingActive False: ManualHold: mixed: 5 replicas, set by others, until 12:34:56Z"]),
        ("nobody calls", "Recommend", [FRESH, NO_TRAFFIC],
         ["SLOMet Unknown: NoTraffic: no request in the last 60 s"]),
        ("it misses", "Enabled", [FRESH, SCALING, MISSED],
         ["SLOMet False: ObjectivesMissed: interactive attains 81.2 %, target 90 %"]),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)  # fmt: skip
def test_what_keeps_sizes_from_following_the_load(
    says: str, mode: str, conditions: list[Json], notes: list[str]
) -> None:
    service = make_live(*conditions)
    service["spec"]["autoscaling"] = {"mode": mode}
    seen = make_view(service)
    assert (seen.scaling.mode, list(seen.scaling.notes)) == (mode, notes)
    assert all(note in text(seen) for note in notes)
    assert ("Autoscaler" in text(seen)) == bool(notes)


def test_the_autoscaler_makes_no_service_unready() -> None:
    seen = make_view(make_live(MISSING_METRICS, MISSED))
    assert (seen.ready, seen.causes) == (True, ())


def text(seen: ServiceView) -> str:
    out = io.StringIO()
    show(seen, Console(file=out, width=140))
    return " ".join(out.getvalue().split())


def test_the_text_tells_what_runs_the_objective_and_why() -> None:
    decisions = [
        {"time": f"2026-01-01T00:0{i}:00Z", "pool": "mixed", "from": i, "to": i + 1, "binding": "interactive/tpot",
         "why": f"step {i}"} for i in range(5)
    ]  # fmt: skip
    service = make_live(NOT_READY, POOLS, decisions=decisions)
    shown = text(make_view(service, make_pod("a", **waiting("ErrImagePull")), pools=(make_engine_pool(ready=0),)))
    for part in (
        "chat (SIMULATED) in llm: Not ready",
        "http://chat.llm.svc:8000",
        "Aggregated; expects 97.1 % attained (the only one)",
        "0 of 2 ready",
        "interactive (default) 400 40 90 - - - -",
        "mixed Mixed a100-sxm-80gb 2 0 of 2 7c9f localhost/engine:1",
        "PoolsReady: ReplicasStarting: mixed: 0 of 1 ready",
        "pod a: ErrImagePull",
        "scaling Enabled",
        "2026-01-01T00:04:00Z mixed 4 → 5 for interactive/tpot: step 4",
    ):
        assert part in shown, shown
    assert "step 1" not in shown


# --- the command, against answers over loopback


@contextmanager
def api_server(answers: Mapping[str, tuple[int, Json]], folder: Path) -> Iterator[Path]:
    """A kubeconfig of a server that gives these answers."""

    def handle(exchange: Exchange) -> None:
        missing = {"kind": "Status", "reason": "NotFound", "code": 404, "message": f"no {exchange.path}"}
        status, body = answers.get(exchange.path, (404, missing))
        exchange.respond(status, orjson.dumps(body))

    ready, stop = threading.Event(), threading.Event()
    port = 0

    async def run() -> None:
        nonlocal port
        server = await serve(handle, "127.0.0.1", 0)
        port = server.port
        ready.set()
        await asyncio.to_thread(stop.wait)
        await server.close()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait(5)
    try:
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u", "namespace": "llm"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "users": [{"name": "u", "user": {}}],
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield path
    finally:
        stop.set()
        thread.join(5)


SERVICE = "/apis/paceline.dev/v1alpha1/namespaces/llm/llmservices/chat"
LISTS = {
    "/apis/paceline.dev/v1alpha1/namespaces/llm/enginepools": ("EnginePoolList", [make_engine_pool()]),
    "/api/v1/namespaces/llm/pods": ("PodList", [make_pod("a", ready=True)]),
}


def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: tuple[int, Json], *flags: str) -> int:
    lists = {p: (200, {"kind": kind, "metadata": {}, "items": items}) for p, (kind, items) in LISTS.items()}
    with api_server(lists | {SERVICE: service}, tmp_path) as kubeconfig:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        return main(["status", "chat", *flags])


def test_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(tmp_path, monkeypatch, (200, make_live()), "--json") == 0
    told = orjson.loads(capsys.readouterr().out)
    assert (told["schema"], told["ready"], told["namespace"]) == ("paceline.status/v1", True, "llm")
    assert told["pools"][0]["desired"] == 2
    assert told["scaling"] == {"mode": "Enabled", "conditions": [], "decisions": []}
    assert told["pods"][0]["name"] == "a"


def failure(status: int, reason: str, message: str) -> tuple[int, Json]:
    return status, {"kind": "Status", "code": status, "reason": reason, "message": message}


@pytest.mark.parametrize(
    ("says", "answer", "told"),
    [
        (
            "no such service",
            failure(404, "NotFound", 'llmservices.paceline.dev "chat" not found'),
            "kubectl get llm -A",
        ),
        ("no such API", failure(404, "", "404 page not found"), "install the chart"),
        ("not allowed", failure(403, "Forbidden", "you may not"), "you may not"),
        ("another version", (200, make_manifest(magic=1)), "another version of the API"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    says: str, answer: tuple[int, Json], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert ask(tmp_path, monkeypatch, answer) == 1
    error = capsys.readouterr().err
    assert error.startswith("paceline status: ")
    assert error.count("\n") == 1
    assert told in error


def test_without_a_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert main(["status", "chat"]) == 1
    assert "set KUBECONFIG" in capsys.readouterr().err
