"""The fleet resizes itself by what a real Prometheus measures, step by step; each step leaves it as the next needs it.

Load three times as high and back, Prometheus cut off and stopped, the leading autoscaler killed, sizes set by a person,
modes and revisions changed at five replicas; then every query of dashboards and rules, and the console in a browser.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path

import console_figures
import pytest
from fleet_on_cluster import Json, Steps, accounted, load
from panel_queries import RIGHTLY_EMPTY, expressions
from scaling_on_cluster import (
    CHART,
    SCRAPE_S,
    STABILISATION_S,
    TICK_S,
    VALUES,
    WINDOW_S,
    Scaling,
    fewest_since,
    make_fleet,
    monitoring,
    ready_over_time,
)
from testbed.cluster import Cluster
from testbed.foreign import Foreign
from testbed.prometheus import Prometheus

RELEASE_NAMESPACE = "paceline-system"
NAMESPACE = "scaling"
SERVICE = "fleet"
BASE_RPS, SURGE_RPS = 1.6, 4.8
TARGET = 0.9
FIVE = 5
STALE = "PacelineMetricsStale"
PREFILL = f"paceline.dev/service={SERVICE},paceline.dev/role=prefill"
Say = Callable[[str], None]
Command = Callable[..., str]
Replay = Callable[[float, int], AbstractContextManager[Callable[[], Json]]]


@pytest.fixture(scope="module")
def scaling(cluster: Cluster | Foreign, helm: Command, images: str, say: Say) -> Iterator[Scaling]:
    """The chart installed and Prometheus beside it; afterwards neither is left."""
    if isinstance(cluster, Foreign):
        pytest.skip("a Prometheus that can be stopped and cut off needs the project's own test cluster")
    began = time.monotonic()
    prometheus = Prometheus(cluster)
    prometheus.configure(*monitoring(cluster, RELEASE_NAMESPACE))
    prometheus.start()
    helm("install", "paceline", CHART, "-n", RELEASE_NAMESPACE, "--create-namespace", *VALUES, "--wait")
    cluster.kubectl("create", "namespace", NAMESPACE)
    say(f"Prometheus and helm install: {time.monotonic() - began:.1f} s")
    yield Scaling(Steps(cluster, NAMESPACE), prometheus, SERVICE, Steps(cluster, RELEASE_NAMESPACE))
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    helm("uninstall", "paceline", "-n", RELEASE_NAMESPACE, "--wait")
    prometheus.stop()


@pytest.fixture
def replay(scaling: Scaling, tmp_path: Path) -> Replay:
    """`replay(rps, seconds)`: load beside what the block does. Each has prompts of its own, which no cache knows."""

    def at(rps: float, seconds: int) -> AbstractContextManager[Callable[[], Json]]:
        seed = len(scaling.reports) + 1
        flags = ("--synthetic", "fixed:4000,20", "--rate", str(rps), "--duration", str(seconds), "--seed", str(seed))
        return load(scaling.steps, SERVICE, tmp_path / f"{seed}.json", *flags)

    return at


def test_the_base_load_runs_on_one_replica_of_each(scaling: Scaling, replay: Replay, say: Say) -> None:
    scaling.steps.apply(make_fleet(SERVICE))
    ready_s = scaling.wait("Ready", "True", 60)
    with replay(BASE_RPS, 25) as report:
        seen_s = scaling.wait("MetricsAvailable", "True", 60)
        scaling.reports.append(report())
    assert (scaling.size("prefill"), scaling.size("decode")) == ((1, 1), (1, 1))
    attained = scaling.ttft_attained()
    assert attained >= TARGET
    say(f"Ready in {ready_s:.1f} s, MetricsAvailable {seen_s:.1f} s later")
    say(f"{BASE_RPS} requests/s on 1 prefill + 1 decode: {attained:.1%} within the TTFT limit, target {TARGET:.0%}")


def test_at_three_times_the_load_pools_grow_until_the_ttft_target_is_attained(
    scaling: Scaling, replay: Replay, say: Say
) -> None:
    settled_s = 20
    restless = time.monotonic()  # when pools were last on their way

    def attains() -> bool:
        """All that are wanted have been ready for so long, and attained the target since then."""
        nonlocal restless
        wanted, ready = scaling.size("prefill")
        if wanted == 1 or wanted != ready:
            restless = time.monotonic()
        return time.monotonic() - restless > settled_s and scaling.ttft_attained(settled_s) >= TARGET

    with replay(SURGE_RPS, 110) as report:
        began = time.monotonic()
        scaling.steps.until("prefill grows", lambda: scaling.size("prefill")[0] > 1, 60)
        decided_s = time.monotonic() - began
        worst = scaling.ttft_attained()
        scaling.steps.until("the TTFT target is attained", attains, 90)
        attained, took_s = scaling.ttft_attained(settled_s), time.monotonic() - began
        scaling.reports.append(report())
    sizes = scaling.size("prefill"), scaling.size("decode")
    say(f"{SURGE_RPS} requests/s: first growth after {decided_s:.0f} s at {worst:.1%} within TTFT (last {WINDOW_S} s)")
    say(f"grown to {sizes[0][0]} prefill + {sizes[1][0]} decode: {attained:.1%} within TTFT after {took_s:.0f} s")
    say(f"of the whole surge: {dict(accounted(scaling.reports[-1]))}")


def test_cut_off_from_the_fleet_nothing_shrinks_and_the_stale_metrics_alert_fires(
    scaling: Scaling, replay: Replay, say: Say
) -> None:
    before = scaling.size("prefill")[0]
    assert before > 1
    with replay(BASE_RPS, 70) as report:
        began = time.monotonic()
        scaling.prometheus.cut_off()
        try:
            scaling.wait("MetricsAvailable", "False", 30)
            blind_s, held = time.monotonic() - began, scaling.size("prefill")[0]
            condition = scaling.condition("MetricsAvailable")
            scaling.steps.until(f"{STALE} fires", lambda: STALE in scaling.prometheus.alerts(), 100)
            alarm_s = time.monotonic() - began
            scaling.steady("prefill", max(0.0, WINDOW_S + STABILISATION_S + 5 - alarm_s))
        finally:
            scaling.prometheus.restore()
        assert scaling.size("prefill")[0] == held >= before  # until it was blind it may have grown
        scaling.reports.append(report())
    assert set(accounted(scaling.reports[-1])) == {"completed"}
    back_s = scaling.wait("MetricsAvailable", "True", 60)
    say(f"cut off at {BASE_RPS} requests/s: {condition['reason']} after {blind_s:.1f} s ({condition['message']})")
    say(f"{STALE} fires after {alarm_s:.0f} s; {held} prefill stay; sees again {back_s:.1f} s after the load")


def test_with_prometheus_stopped_nothing_shrinks(scaling: Scaling, replay: Replay, say: Say) -> None:
    before = scaling.size("prefill")[0]
    assert before > 1
    with replay(BASE_RPS, 30) as report:
        scaling.prometheus.stop()
        blind_s = scaling.wait("MetricsAvailable", "False", 30)
        condition = scaling.condition("MetricsAvailable")
        assert condition["reason"] == "MetricsUnreachable"
        assert scaling.steady("prefill", STABILISATION_S + 10) == before
        scaling.reports.append(report())
    assert set(accounted(scaling.reports[-1])) == {"completed"}
    said = f"{condition['reason']} after {blind_s:.1f} s ({condition['message']})"
    say(f"Prometheus stopped: {said}; {before} prefill stay")


def test_a_second_autoscaler_takes_over_and_shrinks_after_a_whole_window_without_a_failed_request(
    scaling: Scaling, replay: Replay, say: Say
) -> None:
    before = scaling.size("prefill")[0]
    first = scaling.leader()["holderIdentity"]
    with replay(BASE_RPS, 60) as report:
        began = time.monotonic()
        scaling.autoscalers.cluster.kill_pod(RELEASE_NAMESPACE, first)
        scaling.autoscalers.kubectl("delete", "pod", first, "--force", "--grace-period=0")
        scaling.prometheus.start()
        scaling.steps.until("another leads", lambda: scaling.leader()["holderIdentity"] not in ("", first), 30)
        taken_s = time.monotonic() - began
        scaling.wait("MetricsAvailable", "True", 60)
        scaling.steps.until("prefill shrinks", lambda: scaling.size("prefill")[0] < before, 90)
        shrunk = datetime.now().astimezone()
        leader = scaling.leader()
        sees = datetime.fromisoformat(scaling.condition("MetricsAvailable")["lastTransitionTime"])
        scaling.reports.append(report())
    led_s = (shrunk - datetime.fromisoformat(leader["acquireTime"])).total_seconds()
    seen_s = (shrunk - sees).total_seconds()
    assert leader["holderIdentity"] != first
    assert min(led_s, seen_s + TICK_S) >= STABILISATION_S
    assert set(accounted(scaling.reports[-1])) == {"completed"}
    after = scaling.size("prefill")[0]
    why = scaling.steps.get("llmservice", SERVICE)["status"]["decisions"][-1]
    say(f"leading autoscaler killed: another leads after {taken_s:.1f} s")
    say(f"prefill {before} → {after}, first {led_s:.1f} s after it led and {seen_s:.1f} s after it saw; none failed")
    say(f"last decision: {why['pool']} {why['from']} → {why['to']}: {why['why']}")


def test_arrivals_and_outcomes_are_the_same_in_the_reports_and_in_prometheus(scaling: Scaling, say: Say) -> None:
    arrivals = sum(report["arrivals"] for report in scaling.reports)
    good = sum(one["good"] for report in scaling.reports for one in report["classes"])
    outcomes = {
        name: sum(report["outcomes"][name] for report in scaling.reports)
        for name in scaling.reports[0]["outcomes"]
        if name != "connection_lost"
    }
    ended = partial(scaling.total, "paceline_requests_total")
    scaling.steps.until("Prometheus has the end of each", lambda: ended() == arrivals, 5 * SCRAPE_S)
    assert scaling.total("paceline_requests_received_total") == arrivals
    counted = {name: scaling.total("paceline_requests_total", outcome=name) for name in outcomes}
    assert counted == outcomes
    assert sum(counted.values()) == arrivals
    counted_good = scaling.total("paceline_slo_decided_total", result="good")
    assert math.isclose(counted_good, good, rel_tol=0.01)
    say(f"{len(scaling.reports)} reports and Prometheus: {arrivals} arrivals in both, the same outcomes")
    say(f"good requests: {good} reported, {counted_good} counted")


def test_every_query_of_dashboards_and_rules_returns_data_or_is_rightly_empty(scaling: Scaling, say: Say) -> None:
    wanted = expressions(NAMESPACE, SERVICE, "interactive")
    answers = scaling.prometheus.queries([one.expr for one in wanted])
    empty = {(one.dashboard, one.panel) for one, samples in zip(wanted, answers, strict=True) if not samples}
    assert empty <= set(RIGHTLY_EMPTY)
    prometheus = scaling.prometheus  # it was started anew: each rule has its first turn within a minute
    scaling.steps.until("no rule is new", lambda: all(r["health"] != "unknown" for r in prometheus.rules()), 70)
    rules = prometheus.rules()
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    recorded = sorted({rule["name"] for rule in rules if rule["type"] == "recording"})
    recorded = [name for name in recorded if not name.endswith("30d")]  # they have their first turn much later
    unseen = list(recorded)

    def all_seen() -> bool:
        samples = scaling.prometheus.queries(unseen)
        unseen[:] = [name for name, found in zip(unseen, samples, strict=True) if not found]
        return not unseen

    # Sums over hours look at every fifth minute of the clock, and need one that has data.
    scaling.steps.until("every recorded series has data", all_seen, 420)
    alerts = [rule["name"] for rule in rules if rule["type"] == "alerting"]
    said = ", ".join(sorted(panel for _, panel in empty)) or "none"
    say(f"{len(wanted)} queries of {len({one.dashboard for one in wanted})} dashboards; rightly empty: {said}")
    say(f"{len(recorded)} recorded series hold data; of {len(alerts)} alerts fire: {scaling.prometheus.alerts()}")


def test_a_size_that_a_person_sets_is_held_and_that_is_said(scaling: Scaling, say: Say) -> None:
    scaling.scale("prefill", FIVE)
    scaling.steps.until(
        "ManualHold is said", lambda: scaling.condition("ScalingActive").get("reason") == "ManualHold", 20
    )
    scaling.wait_size("prefill", FIVE, 90)
    held = f"prefill: {FIVE} replicas, set by others"
    scaling.steps.until("what is held", lambda: held in scaling.condition("ScalingActive")["message"], 20)
    message = scaling.condition("ScalingActive")["message"]
    say(f"kubectl scale llmpool to {FIVE} without load; ScalingActive: {message}")


def test_changing_the_mode_at_five_replicas_takes_none_away(scaling: Scaling, tmp_path: Path, say: Say) -> None:
    def disabled_is(wanted: bool) -> bool:
        return (scaling.condition("ScalingActive").get("reason") == "ScalingDisabled") is wanted

    with ready_over_time(scaling.steps, PREFILL, tmp_path / "watch") as counts:
        for mode in ("Disabled", "Enabled"):
            scaling.steps.patch(SERVICE, {"spec": {"autoscaling": {"mode": mode}}})
            scaling.steps.until(f"{mode} is seen", partial(disabled_is, mode == "Disabled"), 30)
            assert scaling.steady("prefill", 5) == FIVE
        seen = counts()
    assert fewest_since(seen, FIVE) == FIVE
    say(f"mode Disabled and Enabled again: never fewer than {FIVE} ready")


def test_a_new_revision_at_five_replicas_under_load_takes_none_away(
    scaling: Scaling, replay: Replay, tmp_path: Path, say: Say
) -> None:
    before = scaling.steps.engine_uids(SERVICE)
    began = time.monotonic()
    with ready_over_time(scaling.steps, PREFILL, tmp_path / "watch") as counts, replay(BASE_RPS, 35) as report:
        scaling.steps.patch(SERVICE, {"spec": {"engine": {"extraArgs": ["--max-requests", "200"]}}})
        scaling.steps.until("no old pod is left", lambda: not scaling.steps.engine_uids(SERVICE) & before, 150)
        took_s = time.monotonic() - began
        scaling.wait_size("prefill", FIVE, 60)
        scaling.reports.append(report())
        seen = counts()
    assert fewest_since(seen, FIVE) == FIVE
    assert set(accounted(scaling.reports[-1])) == {"completed"}
    say(f"new revision at {FIVE} prefill under load: {took_s:.0f} s, {FIVE} to {max(seen)} ready, no failed request")


def test_with_mode_disabled_kubectl_scale_and_what_an_hpa_reads_work(scaling: Scaling, say: Say) -> None:
    scaling.steps.patch(SERVICE, {"spec": {"autoscaling": {"mode": "Disabled"}}})
    scaling.scale("prefill", 4)
    scaling.wait_size("prefill", 4, 60)
    name = f"{SERVICE}-prefill"
    path = f"/apis/paceline.dev/v1alpha1/namespaces/{NAMESPACE}/enginepools/{name}/scale"
    scale: Json = json.loads(scaling.steps.kubectl("get", "--raw", path))
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (4, 4)
    selected = scaling.steps.pods(scale["status"]["selector"])
    assert {pod["metadata"]["labels"]["paceline.dev/pool"] for pod in selected} == {"prefill"}
    assert len(selected) == 4
    scaling.steps.apply(hpa(name))
    scaling.steps.until("the HPA controller has read /scale", lambda: hpa_reads(scaling.steps, name) == 4, 45)
    scaling.steps.kubectl("delete", "hpa", name)
    say("mode Disabled: kubectl scale to 4 pods; /scale says 4 and selects them; an HPA reads currentReplicas 4")


def hpa(pool: str) -> Json:
    target = {"apiVersion": "paceline.dev/v1alpha1", "kind": "EnginePool", "name": pool}
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": pool},
        "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 6, "metrics": [cpu]},
    }


def hpa_reads(steps: Steps, name: str) -> int | None:
    """The size that Kubernetes' own HPA controller got from /scale."""
    status = steps.get("hpa", name).get("status", {})
    able = any(c["type"] == "AbleToScale" and c["status"] == "True" for c in status.get("conditions", ()))
    return status.get("currentReplicas") if able else None


@pytest.mark.requires("chromium")
def test_the_console_shows_in_a_browser_what_the_routers_metrics_say(
    scaling: Scaling, tmp_path: Path, say: Say
) -> None:
    assert isinstance(scaling.steps.cluster, Cluster)
    router = scaling.steps.pods(f"paceline.dev/service={SERVICE},app.kubernetes.io/component=router")[0]
    url = f"http://{router['status']['podIP']}:8000"
    program = str(Path(console_figures.__file__))
    said: Json = json.loads(scaling.steps.cluster.in_cluster(sys.executable, program, url, str(tmp_path / "profile")))
    shown, metrics = said["shown"], said["metrics"]
    # What has not occurred yet is not on the page.
    assert {name: shown.get(name, 0.0) for name in metrics} == pytest.approx(metrics)
    assert said["problems"] == []
    decisions = scaling.steps.get("llmservice", SERVICE)["status"]["decisions"]
    assert len(said["decisions"]) == len(decisions) > 0
    assert decisions[-1]["why"] in said["decisions"][0]
    counted = f"{len(metrics)} figures equal /metrics ({metrics['requests.total.arrivals']:.0f} arrivals)"
    say(f"console in Chromium: {counted}, {len(decisions)} decisions")
