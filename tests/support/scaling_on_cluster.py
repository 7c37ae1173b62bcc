"""What the scaling steps do with a fleet on the test cluster: its monitoring, sizes, totals, and replicas over time.

The chart itself says what is scraped and which rules hold: rendered as for a cluster that knows PodMonitor and
PrometheusRule, and given to the test Prometheus. `ready_over_time` reads every event of a watch, so that no moment
between two looks is missed.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from fleet_on_cluster import ROOT, Json, Steps, example
from testbed.cluster import Cluster
from testbed.prometheus import URL, Prometheus

CHART = str(ROOT / "charts" / "paceline")
MONITORING = "monitoring.coreos.com/v1"
SCRAPE_S, TICK_S, WINDOW_S, STABILISATION_S = 2, 2, 30, 20
SET = (f"prometheus.url={URL}", f"prometheus.scrapeInterval={SCRAPE_S}s", f"autoscaler.interval={TICK_S}s")
VALUES = [word for value in SET for word in ("--set", value)]
LEASE = "paceline-autoscaler"


def monitoring(cluster: Cluster, release_namespace: str) -> tuple[list[Json], list[Json]]:
    """The chart's PodMonitors, and its rule groups."""
    knows = [word for kind in ("PodMonitor", "PrometheusRule") for word in ("--api-versions", f"{MONITORING}/{kind}")]
    rendered = cluster.helm("template", "paceline", CHART, "-n", release_namespace, *VALUES, *knows)
    objects = [found for found in yaml.safe_load_all(rendered) if found]
    monitors = [found for found in objects if found["kind"] == "PodMonitor"]
    groups = [group for found in objects if found["kind"] == "PrometheusRule" for group in found["spec"]["groups"]]
    assert monitors
    assert groups
    return monitors, groups


def make_fleet(name: str) -> Json:
    """Long prompts of few tokens out: a handful of requests a second keep several prefill replicas busy."""
    pool = {"minReplicas": 1, "maxReplicas": 6, "accelerator": "a100-sxm-80gb"}
    service = example(
        "chat",
        slo={"classes": [{"name": "interactive", "ttftMs": 1000, "tpotMs": 40, "attainmentPercent": 90}]},
        pools=[{"name": role.lower(), "role": role, **pool} for role in ("Prefill", "Decode")],
        maxGPUs=9,
        engine={"runtime": "Simulated", "drainTimeoutSeconds": 30},
        autoscaling={"mode": "Enabled", "scaleDownStabilizationSeconds": STABILISATION_S},
    )
    del service["spec"]["workload"]
    service["metadata"]["name"] = name
    return service


@dataclass(frozen=True)
class Scaling:
    """One service that Prometheus measures and the autoscaler sizes. `reports`: of every replay that was sent to it."""

    steps: Steps
    prometheus: Prometheus
    service: str
    autoscalers: Steps
    reports: list[Json] = field(default_factory=list)

    def pool(self, name: str) -> Json:
        return self.steps.get("llmpool", f"{self.service}-{name}")

    def size(self, name: str) -> tuple[int, int]:
        """Replicas that are wanted, and that are ready."""
        found = self.pool(name)
        return found["spec"]["replicas"], found.get("status", {}).get("readyReplicas", 0)

    def wait_size(self, name: str, replicas: int, seconds: float) -> None:
        self.steps.until(f"{replicas} ready {name}", lambda: self.size(name) == (replicas, replicas), seconds)

    def scale(self, name: str, replicas: int) -> None:
        self.steps.kubectl("scale", "llmpool", f"{self.service}-{name}", f"--replicas={replicas}")

    def condition(self, type_: str) -> Json:
        return self.steps.condition(self.service, type_)

    def wait(self, type_: str, status: str, seconds: float) -> float:
        return self.steps.wait(self.service, type_, status, seconds)

    def steady(self, name: str, seconds: float) -> int:
        """The pool's size, which stayed the same for so long. AssertionError when it did not."""
        wanted, _ = self.size(name)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.size(name)[0] == wanted
            time.sleep(0.5)
        return wanted

    def leader(self) -> Json:
        """The Lease's spec."""
        spec: Json = self.autoscalers.get("lease", LEASE)["spec"]
        return spec

    def ttft_attained(self, window_s: int = WINDOW_S) -> float:
        """Share of the requests decided in the window whose first token was in time."""
        decided = f'increase(paceline_slo_decided_total{{llmservice="{self.service}"%s}}[{window_s}s])'
        in_time = decided % ',result=~"good|tpot"'
        return self.prometheus.value(f"sum({in_time}) / sum({decided % ''})", default=float("nan"))

    def total(self, counter: str, **labels: str) -> int:
        """A counter's raw value, summed over the routers."""
        terms = ",".join(f'{name}="{value}"' for name, value in {"llmservice": self.service, **labels}.items())
        return round(self.prometheus.value(f"sum({counter}{{{terms}}})"))


@contextmanager
def ready_over_time(steps: Steps, selector: str, out: Path) -> Iterator[Callable[[], list[int]]]:
    """How many pods were ready and not on their way out, after each event that the block saw."""
    assert isinstance(steps.cluster, Cluster)
    flags = ("-l", selector, "--watch", "--output-watch-events", "-o", "json")
    argv = steps.cluster.kubectl_command("-n", steps.namespace, "get", "pods", *flags)
    with out.open("w") as log, subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT) as watch:
        try:
            yield lambda: ready_counts(documents(out.read_text()))
        finally:
            watch.kill()


def documents(text: str) -> Iterator[Json]:
    """JSON documents one after the other; a last one that is cut off is left out."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(text):
        try:
            found, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return
        yield found
        at = next((i for i in range(end, len(text)) if not text[i].isspace()), len(text))


def ready_counts(events: Iterable[Json]) -> list[int]:
    """The number of ready pods after each watch event."""
    ready: set[str] = set()
    counts = []
    for event in events:
        pod = event["object"]
        uid = pod["metadata"]["uid"]
        conditions: Sequence[Json] = pod.get("status", {}).get("conditions", ())
        serves = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        if serves and event["type"] != "DELETED" and "deletionTimestamp" not in pod["metadata"]:
            ready.add(uid)
        else:
            ready.discard(uid)
        counts.append(len(ready))
    return counts


def fewest_since(counts: Sequence[int], size: int) -> int:
    """The least count after `size` was first reached. ValueError where it never was."""
    return min(counts[list(counts).index(size) :])
