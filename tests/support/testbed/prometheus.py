"""Debian's Prometheus beside the control plane: scrapes the cluster's pods, evaluates rules, can stop or lose sight.

Pods reach it by `URL`; `testbed.discovery` tells it of them. Its samples survive `stop`. `cut_off` drops what it sends
to the serving pods (routers and engines, port 8000) and nothing else, so that it still scrapes operator and autoscaler.
`Cluster.down` ends and removes it with the rest.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from testbed import discovery, pki, scraping
from testbed.cluster import Cluster
from testbed.layout import API_URL, CONTROL_IP, POD_RANGE
from testbed.processes import CommandFailed, kill, pid_of, run, start, until

Json = dict[str, Any]
PORT = 9090
URL = f"http://{CONTROL_IP}:{PORT}"
SERVING_PORT = 8000
TARGETS = "targets.json"
CUT = "prometheus_cut_off"  # a table of nftables in the control plane's namespace
# Prints the JSON answers of the URLs on standard input, also of refused ones; null: none, or 5xx as while it starts.
ASK = """
import json, sys, urllib.error, urllib.request
def ask(url):
    try:
        return json.load(urllib.request.urlopen(url, timeout=10))
    except urllib.error.HTTPError as e:
        return json.load(e) if e.code < 500 else None
    except (OSError, ValueError):
        return None
print(json.dumps([ask(url) for url in json.load(sys.stdin)]))
"""


class Refused(Exception):
    """Prometheus did not answer a query; its words, or that it was not there, are in the message."""


@dataclass(frozen=True, slots=True)
class Sample:
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Prometheus:
    """The Prometheus of `cluster`; its files, like the cluster's, say whether it runs."""

    cluster: Cluster

    def configure(self, monitors: Sequence[Json], groups: Sequence[Json], evaluation_interval: str = "2s") -> None:
        """Writes what to scrape (PodMonitors) and the rule groups, for the next start."""
        layout = self.cluster.layout
        home = layout.home / "prometheus"
        home.mkdir(exist_ok=True)
        pki.certificate(layout.pki, "prometheus", "/O=system:masters/CN=prometheus")
        (home / "rules.json").write_text(json.dumps({"groups": list(groups)}))
        (home / "prometheus.json").write_text(
            json.dumps(scraping.config(monitors, f"{home}/{TARGETS}", [f"{home}/rules.json"], evaluation_interval))
        )

    def start(self) -> None:
        """Starts it anew, with the samples that a former run left, and waits until it answers queries."""
        self.stop()
        layout = self.cluster.layout
        home = layout.home / "prometheus"
        bin_ = self.cluster.programs.cache / "bin"
        server = API_URL.removeprefix("https://")
        argv: list[str | Path] = [sys.executable, discovery.__file__, server, layout.pki, home / TARGETS]
        start(argv, layout.netns, layout.logs / "discovery.log", self._pid_files[1], bin_)
        until("the cluster's pods", (home / TARGETS).exists, 30)
        argv = [
            shutil.which("prometheus") or "prometheus",
            f"--config.file={home}/prometheus.json",
            f"--storage.tsdb.path={home}/data",
            f"--web.listen-address={CONTROL_IP}:{PORT}",
            "--log.level=warn",
        ]
        start(argv, layout.netns, layout.logs / "prometheus.log", self._pid_files[0], bin_)
        until("Prometheus", lambda: self._ask("/api/v1/query?query=1") != [None], 30, pause_s=0.3)

    def stop(self) -> None:
        """Ends it in order; nothing where it does not run."""
        kill([pid for file in self._pid_files if (pid := pid_of(file)) is not None], signal.SIGTERM)
        until("end of Prometheus", lambda: not any(map(pid_of, self._pid_files)), 30)

    def cut_off(self) -> None:
        """From here on it reaches no router and no engine, until `restore`."""
        hook = "{ type filter hook output priority 0; policy accept; }"
        rules = f"add table inet {CUT}\nadd chain inet {CUT} out {hook}\n"
        rules += f"add rule inet {CUT} out ip daddr {POD_RANGE} tcp dport {SERVING_PORT} drop\n"
        run("nft", "-f", "-", netns=self.cluster.layout.netns, stdin=rules)

    def restore(self) -> None:
        try:
            run("nft", "delete", "table", "inet", CUT, netns=self.cluster.layout.netns)
        except CommandFailed as e:
            if "No such file" not in e.said:  # it was not cut off
                raise

    # Use

    def query(self, expr: str) -> list[Sample]:
        """What an instant query answers, a scalar as one sample without labels. Refused."""
        return self.queries([expr])[0]

    def queries(self, exprs: Sequence[str]) -> list[list[Sample]]:
        """Each expression's answer, in one go. Refused names the expression."""
        answers = self._ask(*(f"/api/v1/query?query={quote(expr, safe='')}" for expr in exprs))
        return [_samples(expr, answer) for expr, answer in zip(exprs, answers, strict=True)]

    def value(self, expr: str, default: float = 0.0) -> float:
        """The only sample's value; `default` where there is none. ValueError where there are several."""
        samples = self.query(expr)
        if len(samples) > 1:
            raise ValueError(f"{expr}: {len(samples)} samples")
        return samples[0].value if samples else default

    def alerts(self, state: str = "firing") -> set[str]:
        """Names of the alerts in that state."""
        [answer] = self._ask("/api/v1/alerts")
        if answer is None:
            raise Refused("alerts: Prometheus does not answer")
        return {alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == state}

    def rules(self) -> list[Json]:
        """Each rule as it stands: name, query, type, health, lastError."""
        [answer] = self._ask("/api/v1/rules")
        if answer is None:
            raise Refused("rules: Prometheus does not answer")
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def _ask(self, *paths: str) -> list[Json | None]:
        urls = json.dumps([URL + path for path in paths])
        said = run(sys.executable, "-c", ASK, netns=self.cluster.layout.netns, stdin=urls)
        answers: list[Json | None] = json.loads(said)
        return answers

    @property
    def _pid_files(self) -> tuple[Path, Path]:
        """Prometheus' and its discovery's."""
        pids = self.cluster.layout.pids
        return pids / "prometheus", pids / "discovery"


def _samples(expr: str, answer: Json | None) -> list[Sample]:
    if answer is None or answer["status"] != "success":
        raise Refused(f"{expr}: {answer['error'] if answer else 'Prometheus does not answer'}")
    data = answer["data"]
    match data["resultType"]:
        case "scalar":
            return [Sample({}, float(data["result"][1]))]
        case "vector":
            return [Sample(one["metric"], float(one["value"][1])) for one in data["result"]]
        case other:
            raise Refused(f"{expr}: a {other} and no instant vector")
