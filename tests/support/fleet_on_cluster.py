"""What the end-to-end steps do with a service on a cluster: apply it, wait for it, look at it, load it.

Everything goes through kubectl and real HTTP. `Load` runs `paceline replay` inside the cluster's network while a step
does harm; its report says what became of every request.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from testbed.cluster import Cluster
from testbed.foreign import Foreign
from testbed.processes import CommandFailed

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@dataclass(frozen=True)
class Steps:
    """One namespace of a cluster."""

    cluster: Cluster | Foreign
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self, *what: str) -> Json:
        found: Json = json.loads(self.kubectl("get", *what, "-o", "json"))
        return found

    def items(self, *what: str) -> list[Json]:
        return list(self.get(*what)["items"])

    def apply(self, *objects: Json) -> str:
        return self.kubectl(
            "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def patch(self, service: str, patch: Json) -> None:
        self.kubectl("patch", "llmservice", service, "--type=merge", "-p", json.dumps(patch))

    def condition(self, service: str, type_: str) -> Json:
        """The condition if it is about the present spec, else {}."""
        found = self.get("llmservice", service)
        status = found.get("status", {})
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return {}
        return next((c for c in status.get("conditions", ()) if c["type"] == type_), {})

    def wait(self, service: str, type_: str, status: str, seconds: float) -> float:
        """Seconds until the condition held."""
        began = time.monotonic()
        self.until(f"{type_}={status}", lambda: self.condition(service, type_).get("status") == status, seconds)
        return time.monotonic() - began

    def until(self, what: str, holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds} s: {what}")
            time.sleep(0.25)

    def pods(self, selector: str) -> list[Json]:
        """Running pods that are not on their way out."""
        found = self.items("pods", "-l", selector)
        return [p for p in found if "deletionTimestamp" not in p["metadata"]]

    def engine_uids(self, service: str) -> set[str]:
        selector = f"paceline.dev/service={service},app.kubernetes.io/component=engine"
        return {p["metadata"]["uid"] for p in self.pods(selector)}

    def url(self, service: str) -> str:
        url: str = self.get("llmservice", service)["status"]["url"]
        return url

    def router_counts(self, service: str) -> Counter[str]:
        """Requests by outcome, and `received`, summed over the routers that run."""
        counts: Counter[str] = Counter()
        for pod in self.pods(f"paceline.dev/service={service},app.kubernetes.io/component=router"):
            url = f"http://{pod['status']['podIP']}:8000/metrics"
            script = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
            for family in text_string_to_metric_families(self.cluster.in_cluster(sys.executable, "-c", script)):
                for sample in family.samples:
                    if sample.name == "paceline_requests_total":
                        counts[sample.labels["outcome"]] += int(sample.value)
                    elif sample.name == "paceline_requests_received_total":
                        counts["received"] += int(sample.value)
        return counts


def example(name: str, **spec: Any) -> Json:
    """An example file with parts of its spec replaced."""
    found: Json = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text(encoding="utf-8"))
    found["spec"] |= spec
    return found


def refused(steps: Steps, *services: Json) -> str:
    """What the API server says of files that it does not take; AssertionError when it takes them all."""
    try:
        steps.kubectl(
            "apply",
            "--dry-run=server",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": services}),
        )
    except CommandFailed as e:
        return str(e)
    raise AssertionError("the API server took them")


@contextmanager
def load(steps: Steps, service: str, out: Path, *flags: str) -> Iterator[Callable[[], Json]]:
    """`paceline replay` beside what the block does; calling the result waits for its report."""
    assert isinstance(steps.cluster, Cluster)
    command = [sys.executable, "-m", "paceline_cli", "replay", "--url", steps.url(service), "--json", str(out), *flags]
    with out.with_suffix(".log").open("w") as log:
        replay = subprocess.Popen(steps.cluster.from_inside(*command), stdout=log, stderr=subprocess.STDOUT)

        def report() -> Json:
            assert replay.wait(180) == 0, out.with_suffix(".log").read_text()
            found: Json = json.loads(out.read_text())
            return found

        try:
            yield report
        finally:
            if replay.poll() is None:
                replay.kill()
                replay.wait()


def accounted(report: Json) -> Counter[str]:
    """Outcomes of a report; their sum is its arrivals."""
    outcomes = Counter({name: n for name, n in report["outcomes"].items() if n})
    assert sum(outcomes.values()) == report["arrivals"] > 0
    return outcomes
