"""Real vLLM in pods of two nodes, prefill and decode apart over NIXL, through operator and router; step by step.

Right answers are those of a single engine: the decode engine's own, when it is asked without a hand-over. Either engine
is then lost under load: who was answered was answered right, and who was not was told why.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from fleet_on_cluster import ROOT, Steps
from greedy_client import Asked, Job, Question
from paceline_engine.pd import LEASE_S
from testbed.cluster import Cluster
from testbed.foreign import Foreign
from testbed.processes import CommandFailed
from vllm_engine import found
from vllm_on_cluster import (
    DRAIN_S,
    MODEL,
    SERVED,
    START_S,
    VOLUME,
    ask_once,
    asking,
    make_vllm_service,
    metric,
    readable_copy,
    shared_cache,
    volume,
)

pytestmark = pytest.mark.requires("vllm")
RELEASE_NAMESPACE = "paceline-system"
NAMESPACE, SERVICE = "vllm", "tiny"
NODES = ("node-1", "node-2")
ENGINES = f"paceline.dev/service={SERVICE},app.kubernetes.io/component=engine"
HELD = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "paceline_kv_parked_requests")
PROMPTS: list[Question] = [list(range(2000 * k + 10, 2000 * k + 10 + n)) for k, n in enumerate((5, 129, 700, 1500))]
ONCE = Job(SERVED, [*PROMPTS, "Say hello"], tokens=24, clients=2, rounds=1)
LOAD = replace(ONCE, rounds=0, pause_s=1.0)
LONG = Job(SERVED, [PROMPTS[1]], tokens=2500, rounds=1)  # a stream of 8 s or more
DECODE_LOST = {"completed", "upstream_failed", "no_endpoint"}
Say = Callable[[str], None]
Command = Callable[..., str]


@dataclass(frozen=True)
class Fleet:
    """The service; `answers` are a single engine's, by question, once they are known."""

    steps: Steps
    cluster: Cluster
    answers: list[str] = field(default_factory=list)

    def engine(self, role: str) -> str:
        """The name of a role's one pod. ValueError where there is none, or more than one."""
        (pod,) = self.steps.pods(f"{ENGINES},paceline.dev/role={role}")
        name: str = pod["metadata"]["name"]
        return name

    def await_ready(self, status: str = "True") -> None:
        """By a watch: looking again and again would take the CPU from engines that start."""
        awaited = (f"llmservice/{SERVICE}", f"--for=condition=Ready={status}", f"--timeout={START_S}s")
        self.cluster.kubectl("-n", NAMESPACE, "wait", *awaited, timeout_s=START_S + 10)

    def sources(self, role: str) -> Counter[str]:
        """Prompt tokens that an engine had since it started, by where they came from; none while it is away."""
        try:
            return self._counted(self.engine(role), "vllm:prompt_tokens_by_source_total", "source")
        except (CommandFailed, ValueError):
            return Counter()

    def holds_nothing(self, role: str) -> bool:
        return not any(
            value for name in HELD for value in metric(self.steps, self.engine(role), name, "engine").values()
        )

    def decodes(self) -> bool:
        """Whether an answer is under way."""
        running = metric(self.steps, self.engine("decode"), "vllm:num_requests_running", "engine")
        return any(running.values())

    def ask(self) -> list[Asked]:
        return ask_once(self.cluster, self.steps.url(SERVICE), ONCE)

    def legs(self) -> Counter[str]:
        """Requests that the routers sent to engines, by role."""
        routers = self.steps.pods(f"paceline.dev/service={SERVICE},app.kubernetes.io/component=router")
        counts = (self._counted(router["metadata"]["name"], "paceline_legs_total", "role") for router in routers)
        return sum(counts, Counter[str]())

    def _counted(self, pod: str, name: str, label: str) -> Counter[str]:
        return Counter({value: round(count) for value, count in metric(self.steps, pod, name, label).items()})


@pytest.fixture(scope="module")
def fleet(
    cluster: Cluster | Foreign, helm: Command, images: str, tmp_path_factory: pytest.TempPathFactory, say: Say
) -> Iterator[Fleet]:
    """The chart, the weights on a volume, and the service; afterwards none of them is left."""
    if isinstance(cluster, Foreign):
        pytest.skip("vLLM's environment comes from this machine's disk, which only its own test cluster can mount")
    steps = Steps(cluster, NAMESPACE)
    weights = readable_copy(found().models / MODEL, tmp_path_factory.mktemp("weights"))
    known = shared_cache(tmp_path_factory.mktemp("cache"))
    chart = str(ROOT / "charts" / "paceline")
    helm("install", "paceline", chart, "-n", RELEASE_NAMESPACE, "--create-namespace", "--wait")
    cluster.kubectl("create", "namespace", NAMESPACE)
    steps.apply(*volume(weights, NAMESPACE), make_vllm_service(SERVICE, images, found(), known, NODES))
    yield Fleet(steps, cluster)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    cluster.kubectl("delete", "persistentvolume", VOLUME, "--wait=false")
    helm("uninstall", "paceline", "-n", RELEASE_NAMESPACE, "--wait")


def test_two_engines_of_real_vllm_are_ready_on_two_nodes(fleet: Fleet, say: Say) -> None:
    began = time.monotonic()
    fleet.await_ready()
    took = time.monotonic() - began
    nodes = tuple(fleet.steps.get("pod", fleet.engine(role))["spec"]["nodeName"] for role in ("prefill", "decode"))
    assert nodes == NODES
    say(f"vLLM: 1 prefill + 1 decode Ready in {took:.0f} s, on {' and '.join(nodes)}")


def test_the_openai_client_gets_a_single_engines_answers_and_prompts_are_handed_over(fleet: Fleet, say: Say) -> None:
    asked = fleet.ask()
    assert {a.error for a in asked} == {""}
    prompt_tokens = sum(a.prompt_tokens for a in asked)
    assert +fleet.sources("prefill") == {"local_compute": prompt_tokens}
    assert +fleet.sources("decode") == {"external_kv_transfer": prompt_tokens}
    assert fleet.legs() == {"prefill": len(asked), "decode": len(asked)}
    address = fleet.steps.get("pod", fleet.engine("decode"))["status"]["podIP"]
    alone = ask_once(fleet.cluster, f"http://{address}:8000", ONCE)
    assert fleet.sources("decode")["local_compute"] == prompt_tokens, "or it was no single engine"
    fleet.answers.extend(a.text for a in alone)
    assert [a.text for a in asked] == fleet.answers
    assert len(set(fleet.answers)) == len(ONCE.questions)
    say(f"{len(asked)} answers are a single engine's; {prompt_tokens} prompt tokens handed over, none computed twice")


def kill(fleet: Fleet, pod: str) -> None:
    fleet.cluster.kill_pod(NAMESPACE, pod)


def delete(fleet: Fleet, pod: str) -> None:
    """At once, and its address with it."""
    fleet.steps.kubectl("delete", "pod", pod, "--force", "--grace-period=0")


LOSSES = {
    "the prefill engine's pod is deleted": ("prefill", delete, "local_compute", {"completed"}, "completed"),
    "the decode engine is killed": ("decode", kill, "external_kv_transfer", DECODE_LOST, "upstream_failed"),
}


@pytest.mark.parametrize(("role", "lose", "source", "ends", "long_ends"), LOSSES.values(), ids=LOSSES)
def test_a_lost_engine_costs_nobody_a_right_answer_or_a_clear_error(
    fleet: Fleet,
    role: str,
    lose: Callable[[Fleet, str], None],
    source: str,
    ends: set[str],
    long_ends: str,
    say: Say,
) -> None:
    counts, url = partial(fleet.steps.router_counts, SERVICE), fleet.steps.url(SERVICE)
    before = counts()
    long_one = LONG if long_ends == "completed" else replace(LONG, tokens=7000)  # it must still run when it is cut
    with asking(fleet.cluster, url, long_one) as end_long:
        fleet.steps.until("a long answer is under way", fleet.decodes, 30)
        with asking(fleet.cluster, url, LOAD) as end:
            fleet.steps.until("others are answered", lambda: (counts() - before)["completed"] > 0, 30)
            lost_s = time.monotonic()
            lose(fleet, fleet.engine(role))
            fleet.await_ready("False")
            fleet.await_ready()
            fleet.steps.until("its successor is in use", lambda: fleet.sources(role)[source] > 0, 30)
            back_s = time.monotonic() - lost_s
            asked, (long,) = end(), end_long()
    ended = Counter(a.error or "completed" for a in asked)
    assert set(ended) <= ends
    assert [a for a in asked if not a.error and a.text != fleet.answers[a.question]] == []
    assert (long.error or "completed", long.text[: len(fleet.answers[1])]) == (long_ends, fleet.answers[1])
    ended[long_ends] += 1
    assert counts() - before == ended + Counter(received=ended.total())
    longest_s = max(a.took_s for a in asked)
    say(f"{role} lost: in use again after {back_s:.0f} s; {dict(ended)}, the longest {longest_s:.1f} s")
    computed = fleet.sources("decode")["local_compute"]
    assert [a.text for a in fleet.ask()] == fleet.answers
    assert fleet.sources("decode")["local_compute"] == computed


def test_neither_engine_keeps_anything_of_requests_that_are_over(fleet: Fleet) -> None:
    """KV that nobody came for goes with its lease."""
    for role in ("prefill", "decode"):
        fleet.steps.until(f"{role} holds nothing", partial(fleet.holds_nothing, role), LEASE_S + 10)


def test_a_deleted_services_engines_are_drained_and_go(fleet: Fleet, say: Say) -> None:
    """Idle, they are gone before a drain would give up."""
    began = time.monotonic()
    fleet.steps.kubectl("delete", "llmservice", SERVICE)
    fleet.steps.until("no engine is left", lambda: not fleet.steps.items("pods", "-l", ENGINES), DRAIN_S)
    say(f"service deleted: both engines drained and gone after {time.monotonic() - began:.0f} s")
