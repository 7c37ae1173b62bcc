"""Every request of a real trace is accounted for: in the report, in the router's metrics, and leg by leg in engines.

The first 300 s of the Azure conversation trace, five times as fast as the clock on the wall, on both examples.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

EXAMPLES = Path(__file__).parents[2] / "examples"
PACELINE = [sys.executable, "-m", "paceline_cli"]
TIME_SCALE = "5"
READY_S = 60


@contextmanager
def fleet(example: str, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The URL of the router, and those of the engines, of `paceline up`."""
    url_file = tmp_path / "url"
    command = [*PACELINE, "up", str(EXAMPLES / f"{example}.yaml"), "--port", "0", "--time-scale", TIME_SCALE]
    up = subprocess.Popen([*command, "--url-file", str(url_file)], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + READY_S
        while not url_file.exists():
            assert up.poll() is None, "the fleet ended before it was ready"
            assert time.monotonic() < until, "the fleet is not ready"
            time.sleep(0.1)
        yield url_file.read_text().strip(), [f"http://127.0.0.1:{port}" for port in engine_ports(up.pid)]
    finally:
        up.send_signal(signal.SIGINT)
        assert up.wait(READY_S) == 0


def engine_ports(pid: int) -> list[int]:
    """The ports that the engines among the descendants of a process were given."""
    ports = []
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for name in child.read_text().split():
            argv = Path(f"/proc/{name}/cmdline").read_bytes().decode().split("\0")
            if "paceline_engine.sim" in argv:
                flag = next(arg for arg in argv if arg.startswith("--ports="))
                ports += [int(port) for port in flag.removeprefix("--ports=").split(",")]
            ports += engine_ports(int(name))
    return ports


def scrape(url: str, *names: str) -> Counter[tuple[str, ...]]:
    """Counter samples of the given names, by the values of the labels that tell them apart."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in names:
                told = [v for k, v in sorted(sample.labels.items()) if k in ("outcome", "result", "role")]
                found[(sample.name, *told)] += int(sample.value)
    return found


@pytest.mark.requires("traces")
@pytest.mark.parametrize("example", ["azure-aggregated", "azure-disaggregated"])
def test_every_request_of_the_azure_trace_is_accounted_for(example: str, traces: Path, tmp_path: Path) -> None:
    report_file = tmp_path / "report.json"
    trace = traces / "azure" / "AzureLLMInferenceTrace_conv.csv"
    load = ["--trace", str(trace), "--duration", "300", "--time-scale", TIME_SCALE, "--json", str(report_file)]
    with fleet(example, tmp_path) as (url, engines):
        assert len(engines) == 3
        subprocess.run([*PACELINE, "replay", "--url", url, *load], check=True, stdout=subprocess.DEVNULL, timeout=240)
        router = scrape(url, "paceline_requests_received_total", "paceline_requests_total", "paceline_legs_total")
        legs = sum((scrape(engine, "vllm:request_success_total") for engine in engines), Counter())
    report = json.loads(report_file.read_text())
    sent = sum(1 for line in trace.read_text().splitlines()[1:] if line)
    assert 0 < report["arrivals"] < sent
    assert report["arrivals"] == sum(report["outcomes"].values())
    assert report["outcomes"]["completed"] == report["arrivals"], "nothing is lost on a fleet that holds it"

    received = sum(n for (name, *_), n in router.items() if name == "paceline_requests_received_total")
    outcomes = sum(n for (name, *_), n in router.items() if name == "paceline_requests_total")
    assert received == outcomes == report["arrivals"]

    of_router = sum(n for (name, *_), n in router.items() if name == "paceline_legs_total")
    of_engines = sum(n for (name, *_), n in legs.items() if name == "vllm:request_success_total")
    assert of_engines == of_router == report["arrivals"] * (2 if example == "azure-disaggregated" else 1)
