"""Paceline on a real Kubernetes, step by step; each step leaves the cluster as the next one needs it.

`helm install`, the chat example on simulated engines, and then harm: processes killed, engines changed under load,
files that are wrong, drift, deletion. Every request is accounted for throughout.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from certificates import make_certificate
from fleet_on_cluster import ROOT, Json, Steps, accounted, example, load, refused
from rule_cases import CASES, TRANSITIONS, refused_service
from testbed.cluster import Cluster
from testbed.foreign import Foreign
from testbed.processes import CommandFailed

RELEASE_NAMESPACE = "paceline-system"
NAMESPACE = "llm"
Say = Callable[[str], None]
Command = Callable[..., str]


@pytest.fixture(scope="module")
def steps(cluster: Cluster | Foreign, helm: Command, images: str, say: Say) -> Iterator[Steps]:
    """The chart installed, and a namespace for services; afterwards neither is left."""
    began = time.monotonic()
    helm(
        "install",
        "paceline",
        str(ROOT / "charts" / "paceline"),
        "-n",
        RELEASE_NAMESPACE,
        "--create-namespace",
        "--wait",
    )
    say(f"helm install: {time.monotonic() - began:.1f} s")
    cluster.kubectl("create", "namespace", NAMESPACE)
    yield Steps(cluster, NAMESPACE)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false", "--ignore-not-found")


def test_the_charts_own_test_passes(steps: Steps, helm: Command, say: Say) -> None:
    began = time.monotonic()
    helm("test", "paceline", "-n", RELEASE_NAMESPACE)
    say(f"helm test: {time.monotonic() - began:.1f} s")


def test_the_chat_example_is_ready_within_30_seconds(steps: Steps, say: Say) -> None:
    steps.apply(example("chat"))
    took = steps.wait("chat", "Ready", "True", 30)
    pools = steps.get("llmservice", "chat")["status"]["pools"]
    assert {p["name"]: (p["desired"], p["ready"]) for p in pools} == {"prefill": (2, 2), "decode": (1, 1)}
    say(f"chat example: 2 prefill + 1 decode Ready in {took:.1f} s")


OPENAI_CLIENT = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
stream = client.chat.completions.create(
    model="llama-3.1-8b", messages=[{"role": "user", "content": "Say hello"}], max_tokens=24, stream=True
)
print(sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in stream))
"""


def test_the_openai_client_streams_from_another_pod_by_the_services_dns_name(
    steps: Steps, images: str, say: Say
) -> None:
    if isinstance(steps.cluster, Foreign):
        pytest.skip("the openai package comes from this machine's disk, which only its own test cluster can mount")
    site = next(p for p in sys.path if p.endswith("site-packages"))
    url = steps.url("chat")
    assert url == f"http://chat.{NAMESPACE}.svc:8000"
    container = {
        "name": "client",
        "image": images,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", OPENAI_CLIENT, url],
        "env": [{"name": "PYTHONPATH", "value": "/site"}],
        "volumeMounts": [{"name": "site", "mountPath": "/site", "readOnly": True}],
    }
    volume = {"name": "site", "hostPath": {"path": site}}
    steps.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "client"},
            "spec": {"restartPolicy": "Never", "containers": [container], "volumes": [volume]},
        }
    )
    steps.until("the client ends", lambda: steps.get("pod", "client")["status"]["phase"] in ("Succeeded", "Failed"), 60)
    said = steps.kubectl("logs", "client")
    assert steps.get("pod", "client")["status"]["phase"] == "Succeeded", said
    assert int(said.split()[-1]) == 24
    steps.kubectl("delete", "pod", "client")
    say(f"openai client in a pod: 24 events from {url}")


KEYED_CLIENT = """
import sys, openai
url, ca, key = sys.argv[1:]
http = openai.DefaultHttpxClient(verify=ca, trust_env=False)
client = openai.OpenAI(base_url=url + "/v1", api_key=key, http_client=http, max_retries=0)
try:
    print(client.completions.create(model="mistral-7b", prompt="Say hello", max_tokens=4).usage.completion_tokens)
except openai.AuthenticationError as e:
    print(e.code)
"""


def test_https_and_api_keys_come_from_secrets_and_a_new_key_holds_without_a_restart(
    steps: Steps, tmp_path: Path, say: Say
) -> None:
    made = make_certificate(tmp_path / "pki", addresses=[f"DNS:closed.{NAMESPACE}.svc"])
    pair = (f"--cert={made['certificate']}", f"--key={made['key']}")
    closed = example("mixed", router={"apiKeys": {"secretName": "keys"}, "tls": {"secretName": "pair"}, "replicas": 1})
    closed["metadata"]["name"] = "closed"
    router = "paceline.dev/service=closed,app.kubernetes.io/component=router"

    def answer(key: str) -> str:
        ca = str(tmp_path / "pki/ca.crt")
        return steps.cluster.in_cluster(sys.executable, "-c", KEYED_CLIENT, steps.url("closed"), ca, key).strip()

    steps.apply(closed)
    steps.until(
        "the missing Secret is said",
        lambda: "there is no API key" in steps.condition("closed", "RouterReady").get("message", ""),
        60,
    )
    steps.kubectl("create", "secret", "generic", "keys", "--from-literal=acme=sk-acme")
    steps.kubectl("create", "secret", "tls", "pair", *pair)
    steps.wait("closed", "Ready", "True", 120)
    assert steps.url("closed") == f"https://closed.{NAMESPACE}.svc:8000"
    assert [answer("sk-acme"), answer("sk-late")] == ["4", "invalid_api_key"]
    [before] = steps.pods(router)
    steps.kubectl("patch", "secret", "keys", "-p", json.dumps({"stringData": {"late": "sk-late"}}))
    began = time.monotonic()
    steps.until("the new key holds", lambda: answer("sk-late") == "4", 150)
    [after] = steps.pods(router)
    restarts = [[s["restartCount"] for s in pod["status"]["containerStatuses"]] for pod in (before, after)]
    assert (before["metadata"]["uid"], restarts[0]) == (after["metadata"]["uid"], restarts[1])
    say(f"HTTPS and API keys from Secrets; a new key held after {time.monotonic() - began:.0f} s, no restart")
    steps.kubectl("delete", "llmservice/closed", "secret/keys", "secret/pair")


def test_a_replay_is_accounted_for_in_report_and_routers(steps: Steps, tmp_path: Path, say: Say) -> None:
    before = steps.router_counts("chat")
    folder = os.environ.get("PACELINE_TRACES")
    azure = ("--trace", f"{folder}/azure/AzureLLMInferenceTrace_conv.csv")
    flags = azure if folder else ("--synthetic", "chat", "--rate", "4")
    with load(steps, "chat", tmp_path / "r.json", *flags, "--duration", "15") as report:
        outcomes = accounted(report())
    assert set(outcomes) == {"completed"}
    counted = steps.router_counts("chat") - before
    assert counted["received"] == counted["completed"] == outcomes["completed"]
    what = Path(flags[1]).name
    say(f"replay of {what}: {outcomes['completed']} arrivals, all completed; the two routers counted the same")


@contextmanager
def under_load(steps: Steps, out: Path, *flags: str) -> Iterator[Callable[[], Json]]:
    """`load`, of which the routers have had a few requests."""
    before = steps.router_counts("chat")["received"]
    with load(steps, "chat", out, *flags) as report:
        steps.until("load flows", lambda: steps.router_counts("chat")["received"] >= before + 4, 30)
        yield report


def _kill(steps: Steps, selector: str, say: Say) -> Callable[[], None]:
    def harm() -> None:
        pod = steps.pods(selector)[0]["metadata"]["name"]
        say(f"kill -9 in {pod}: {steps.cluster.kill_pod(NAMESPACE, pod)} processes")

    return harm


@pytest.mark.parametrize(
    ("what", "selector", "allowed"),
    [
        ("a decode engine mid-stream", "paceline.dev/role=decode", {"completed", "upstream_failed", "no_endpoint"}),
        ("a prefill engine", "paceline.dev/role=prefill", {"completed"}),
        ("a router", "app.kubernetes.io/component=router", {"completed", "connection_lost"}),
    ],
    ids=lambda v: v if isinstance(v, str) and " " in v else "",
)
def test_a_killed_process_costs_no_more_than_what_it_was_answering(
    steps: Steps, what: str, selector: str, allowed: set[str], tmp_path: Path, say: Say
) -> None:
    flags = ("--synthetic", "chat", "--rate", "4", "--duration", "10")
    with under_load(steps, tmp_path / "r.json", *flags) as report:
        _kill(steps, f"paceline.dev/service=chat,{selector}", say)()
        outcomes = accounted(report())
    assert set(outcomes) <= allowed
    took = steps.wait("chat", "Ready", "True", 60)
    say(f"{what} killed: {dict(outcomes)}; Ready again {took:.1f} s after the load")


def test_a_killed_operator_comes_back_and_nothing_notices(steps: Steps, say: Say) -> None:
    uids = steps.engine_uids("chat")
    operator = Steps(steps.cluster, RELEASE_NAMESPACE)
    pod = operator.pods("app.kubernetes.io/component=operator")[0]["metadata"]["name"]
    steps.cluster.kill_pod(RELEASE_NAMESPACE, pod)
    operator.until(
        "the operator is ready again",
        lambda: all(
            s["ready"] and s["restartCount"] > 0 for s in operator.get("pod", pod)["status"]["containerStatuses"]
        ),
        60,
    )
    assert steps.engine_uids("chat") == uids
    say("operator killed: back, no engine replaced")


def test_a_lost_node_costs_what_ran_there_and_the_service_is_ready_again_by_itself(
    steps: Steps, tmp_path: Path, say: Say
) -> None:
    selector = "paceline.dev/service=chat,paceline.dev/role=decode"
    lost = steps.pods(selector)[0]["spec"]["nodeName"]
    began = time.monotonic()

    def serves_elsewhere() -> bool:
        return any(
            pod["spec"].get("nodeName") != lost and any(s["ready"] for s in pod["status"].get("containerStatuses", ()))
            for pod in steps.pods(selector)
        )

    flags = ("--synthetic", "chat", "--rate", "2", "--duration", "55")  # some 15 s more than it takes
    with under_load(steps, tmp_path / "r.json", *flags) as report:
        steps.cluster.lose(lost)
        steps.until("a decode engine on another node", serves_elsewhere, 90)
        moved_s = time.monotonic() - began
        outcomes = accounted(report())
    steps.cluster.kubectl("delete", "node", lost)
    steps.wait("chat", "Ready", "True", 120)
    steps.cluster.bring_back(lost)
    assert outcomes["completed"] > 0
    say(f"{lost} lost: decode elsewhere after {moved_s:.0f} s; {dict(outcomes)}; Ready again")


def test_an_engine_argument_changed_under_load_fails_no_request(steps: Steps, tmp_path: Path, say: Say) -> None:
    before = steps.engine_uids("chat")
    flags = ("--synthetic", "chat", "--rate", "4", "--duration", "20")
    with under_load(steps, tmp_path / "r.json", *flags) as report:
        steps.patch("chat", {"spec": {"engine": {"extraArgs": ["--max-requests", "200"]}}})
        outcomes = accounted(report())
    steps.until("no old pod is left", lambda: not steps.engine_uids("chat") & before, 90)
    steps.wait("chat", "Ready", "True", 60)
    assert set(outcomes) == {"completed"}
    say(f"engine argument changed under load: 3 new pods, {outcomes['completed']} completed, none failed")


def test_a_class_edited_and_another_default_image_replace_no_pod(steps: Steps, helm: Command, say: Say) -> None:
    before = steps.engine_uids("chat")
    classes = example("chat")["spec"]["slo"]["classes"]
    classes[0]["ttftMs"] = 500
    steps.patch("chat", {"spec": {"slo": {"classes": classes}}})
    chart = str(ROOT / "charts" / "paceline")
    helm("upgrade", "paceline", chart, "-n", RELEASE_NAMESPACE, "--set", "engineImage=localhost/other:1", "--wait")
    steps.wait("chat", "Ready", "True", 30)
    time.sleep(3)
    assert steps.engine_uids("chat") == before
    say("class edited, operator upgraded with another default image: no pod replaced")


def bad(name: str, **spec: Any) -> Json:
    found = example("chat", **spec)
    found["metadata"]["name"] = name
    return found


POOLS = example("chat")["spec"]["pools"]


@pytest.mark.parametrize(
    ("says", "service"),
    [
        ("raise maxReplicas", bad("bounds", pools=[POOLS[0] | {"minReplicas": 9}, POOLS[1]])),
        (
            "defaultClass",
            bad("classes", slo={"classes": [{"name": n, "ttftMs": 400, "tpotMs": 40} for n in ("a", "b")]}),
        ),
        ("hf://ORG/NAME", bad("scheme", model={"uri": "s3://bucket/model", "maxContextTokens": 2048})),
        ("paceline up", bad("local", model={"uri": "file:///models/x", "maxContextTokens": 2048})),
        ("pool", bad("roles", pools=[POOLS[0]])),
    ],
    ids=["contradictory bounds", "no default class", "an unsupported URI", "a local path", "no decode pool"],
)
def test_a_contradictory_file_is_refused_with_what_to_change(steps: Steps, says: str, service: Json) -> None:
    assert says in refused(steps, service)


def test_every_rule_of_the_crds_is_enforced_by_the_api_server(steps: Steps, say: Say) -> None:
    wanted = {
        f"rule-{number}-{i}": (message, refused_service(carrier, value, f"rule-{number}-{i}"))
        for number, (carrier, message, _, values) in enumerate(CASES)
        if message not in TRANSITIONS
        for i, value in enumerate(values)
    }
    said = refused(steps, *(service for _, service in wanted.values()))
    answers = dict(re.findall(r'"(rule-\d+-\d+)" is invalid: (.*)', said))
    missing = {name: message for name, (message, _) in wanted.items() if message not in answers.get(name, "")}
    assert missing == {}
    steps.apply(bad("roles", pools=[p | {"accelerator": "none"} for p in POOLS]))
    pools = [POOLS[0] | {"accelerator": "none", "role": "Mixed"}, POOLS[1] | {"accelerator": "none"}]
    assert "a pool keeps its role" in refused(steps, bad("roles", pools=pools))
    steps.kubectl("delete", "llmservice", "roles")
    with pytest.raises(CommandFailed, match="never change"):
        steps.kubectl("patch", "llmpool", "chat-decode", "--type=merge", "-p", '{"spec": {"role": "Mixed"}}')
    say(f"{len(wanted) + len(TRANSITIONS)} objects that break a rule refused, each with the rule's own message")


@pytest.mark.parametrize(
    ("says", "service"),
    [
        ("a100-sxm-80gb", bad("unknown", pools=[p | {"accelerator": "tpu-v5"} for p in POOLS])),
        ("8", bad("tensor", pools=[p | {"parallelism": {"tensor": 16}} for p in POOLS], maxGPUs=512)),
        ("ttft", bad("ttft", slo={"classes": [{"name": "i", "ttftMs": 2, "tpotMs": 40}]})),
    ],
    ids=["an unknown accelerator", "tensor above the node", "TTFT below a lone prefill"],
)
def test_an_infeasible_plan_is_said_within_5_seconds_and_makes_no_children(
    steps: Steps, says: str, service: Json
) -> None:
    name = service["metadata"]["name"]
    steps.apply(service)
    steps.wait(name, "PlanFeasible", "False", 5)
    assert says.lower() in steps.condition(name, "PlanFeasible")["message"].lower()
    assert steps.items("deployments", "-l", f"paceline.dev/service={name}") == []
    steps.kubectl("delete", "llmservice", name)


def test_a_missing_secret_is_named_within_5_seconds_of_the_kubelets_report(steps: Steps, images: str, say: Say) -> None:
    engine = {"name": "engine", "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
    small = {"spec": {"containers": [engine]}}  # what a real engine asks for does not fit this machine
    service = example(
        "chat",
        model={"uri": "hf://Qwen/Qwen3-8B", "maxContextTokens": 8192, "tokenSecret": {"name": "no-such-secret"}},
        topology="Aggregated",
        pools=[{"name": "mixed", "role": "Mixed", "replicas": 1, "accelerator": "h100-sxm", "podTemplate": small}],
        engine={"runtime": "VLLM", "image": images},
    )
    service["metadata"]["name"] = "gated"
    steps.apply(service)

    def reported() -> bool:  # its first try may end in a time-out of its own, before it knows
        waiting = [
            status.get("state", {}).get("waiting", {})
            for pod in steps.pods("paceline.dev/service=gated,app.kubernetes.io/component=engine")
            for status in pod["status"].get("containerStatuses", ())
        ]
        return any("no-such-secret" in state.get("message", "") for state in waiting)

    steps.until("the kubelet's report", reported, 60)
    began = time.monotonic()
    steps.until("its name", lambda: "no-such-secret" in steps.condition("gated", "PoolsReady").get("message", ""), 5)
    say(f"missing Secret named {time.monotonic() - began:.1f} s after the kubelet's report")
    steps.kubectl("delete", "llmservice", "gated")


def test_drift_is_healed_and_a_foreign_object_is_left_alone(steps: Steps, say: Say) -> None:
    decode = steps.items("deployments", "-l", "paceline.dev/service=chat,paceline.dev/role=decode")[0]["metadata"][
        "name"
    ]
    steps.kubectl("scale", "deployment", decode, "--replicas=3")
    steps.until("drift healed", lambda: steps.get("deployment", decode)["spec"]["replicas"] == 1, 15)
    foreign = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "other"},
        "spec": {"ports": [{"port": 1}], "selector": {"is": "mine"}},
    }
    steps.apply(foreign)
    steps.apply(bad("other"))
    steps.until(
        "an Event about the foreign object",
        lambda: any(e["involvedObject"]["name"] == "other" for e in steps.items("events")),
        15,
    )
    assert steps.get("service", "other")["spec"]["selector"] == {"is": "mine"}
    steps.kubectl("delete", "llmservice,service", "other")
    say("drift healed; a foreign Service of the same name kept, with an Event")


def test_nothing_is_written_in_a_quiet_minute_but_leases(steps: Steps, say: Say) -> None:
    steps.wait("chat", "Ready", "True", 60)
    time.sleep(2)
    since = time.time()
    if isinstance(steps.cluster, Foreign):
        steps.cluster.writes(since)
    time.sleep(60)
    written = [
        (e["objectRef"]["resource"], e["objectRef"].get("name"))
        for e in steps.cluster.writes(since)
        if "paceline" in e["user"]["username"] and e["objectRef"]["resource"] != "leases"
    ]
    assert written == []
    say("a quiet minute: the operator and the routers wrote nothing but Leases")


def test_deletion_needs_no_operator_and_uninstalling_leaves_the_crds(steps: Steps, helm: Command, say: Say) -> None:
    cluster = steps.cluster
    other = Steps(cluster, "llm-two")
    cluster.kubectl("create", "namespace", other.namespace)
    other.apply(example("chat", engine={"runtime": "Simulated", "drainTimeoutSeconds": 10}))
    other.wait("chat", "Ready", "True", 60)
    cluster.kubectl("scale", "deployment", "-n", RELEASE_NAMESPACE, "--all", "--replicas=0")
    began = time.monotonic()
    steps.kubectl("delete", "llmservice", "chat", "--timeout=60s")
    steps.until("its children are gone", lambda: not steps.items("deployments,services,enginepools"), 60)
    children_s = time.monotonic() - began
    cluster.kubectl("delete", "namespace", other.namespace, "--timeout=110s")
    say(f"operator at 0: service gone in {children_s:.0f} s, a namespace with one in {time.monotonic() - began:.0f} s")
    helm("uninstall", "paceline", "-n", RELEASE_NAMESPACE, "--wait")
    left = cluster.kubectl("get", "all,clusterroles,clusterrolebindings,configmaps,leases", "-A", "-o", "name")
    assert [line for line in left.splitlines() if "paceline" in line] == []
    crds = json.loads(cluster.kubectl("get", "crds", "-o", "json"))["items"]
    ours = {crd["spec"]["names"]["kind"] for crd in crds if crd["spec"]["group"] == "paceline.dev"}
    assert ours == {"LLMService", "EnginePool"}
    say("helm uninstall left the CRDs and nothing else")
