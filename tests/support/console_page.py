"""A router's console in headless Chromium, and what the same router's /metrics say, under the names that the page uses.

`figures()` reads what the page shows; `metrics_figures` computes it from an exposition by itself, so that a test
compares two independent readings of one router.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)
PATIENCE_S = 20.0
_READ = """return Object.fromEntries(Array.from(document.querySelectorAll("[data-figure]"),
  node => [node.dataset.figure, [node.dataset.value ?? null, node.textContent]]))"""


class ConsolePage:
    """The page at `url`, once it has shown figures."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        self.driver.get(f"{url}/")
        self.refreshed()

    def refreshed(self) -> None:
        """Waits for figures that were asked for after this call."""
        seen = self.shown
        WebDriverWait(self.driver, PATIENCE_S, poll_frequency=0.05).until(lambda _: self.shown >= seen + 2)

    @property
    def shown(self) -> int:
        """How often figures were shown."""
        return int(self.run("return document.body.dataset.shown || 0"))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def figures(self) -> dict[str, float | None]:
        """Every figure on the page by its name, exact; None where there is none to show."""
        read = {name: value for name, (value, _) in self.run(_READ).items() if value is not None}
        return {name: float(value) if value else None for name, value in read.items()}

    def texts(self) -> dict[str, str]:
        """What is to be read at each figure."""
        return {name: text for name, (_, text) in self.run(_READ).items()}

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """CSS pixels; the emulated ones, because a headless window has a least width."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def problems(self) -> list[str]:
        """What the browser's console says since the last call: errors of the page, refusals of its policy."""
        entries = self.driver.get_log("browser")  # type: ignore[no-untyped-call]  # selenium leaves it untyped
        return [entry["message"] for entry in entries]

    def save(self, path: Path) -> None:
        """The whole page as PNG."""
        height = int(self.run("return document.documentElement.scrollHeight"))
        width = int(self.run("return document.documentElement.clientWidth"))
        dark = bool(self.run("return matchMedia('(prefers-color-scheme: dark)').matches"))
        self.size(width, height, dark=dark)
        self.driver.save_screenshot(str(path))


@contextmanager
def chromium(profile: Path) -> Iterator[ConsolePage]:
    """A browser with a profile of its own, gone at the end."""
    options = Options()
    for flag in (*FLAGS, f"--user-data-dir={profile}", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(executable_path=shutil.which("chromedriver")))
    try:
        yield ConsolePage(driver)
    finally:
        driver.quit()


Labels = dict[str, str]


def metrics_figures(exposition: str) -> dict[str, float | None]:
    """Those figures of the console that /metrics has too."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))

    def total(name: str, **labels: str) -> float:
        return sum(value for have, value in samples.get(name, ()) if labels.items() <= have.items())

    figures: dict[str, float | None] = {
        "requests.total.arrivals": total("paceline_requests_received_total"),
        "requests.in_flight": total("paceline_requests_in_flight"),
        "gpus": total("paceline_gpus"),
    }
    for labels, _ in samples["paceline_requests_total"]:
        outcome = labels["outcome"]
        figures[f"requests.total.outcomes.{outcome}"] = total("paceline_requests_total", outcome=outcome)
    for labels, _ in samples.get("paceline_miss_total", ()):
        figures[f"misses.total.{labels['cause']}"] = total("paceline_miss_total", cause=labels["cause"])
    for labels, value in samples["paceline_requests_in_flight"]:
        figures[f"roles.{labels['role']}.in_flight"] = value
    for labels, _ in samples["paceline_slo_target_ratio"]:
        name = labels["slo_class"]
        good, decided = (
            total("paceline_slo_decided_total", slo_class=name, **which) for which in ({"result": "good"}, {})
        )
        at = f"classes.{name}.total"
        figures |= {
            f"{at}.arrivals": total("paceline_requests_received_total", slo_class=name),
            f"{at}.good": good,
            f"{at}.decided": decided,
            f"{at}.attainment_ratio": good / decided if decided else None,
        }
        for phase in ("ttft", "tpot"):
            buckets = [
                (float(have["le"]), value)
                for have, value in samples.get(f"paceline_{phase}_seconds_bucket", ())
                if have["slo_class"] == name
            ]
            for quantile in (50, 90):
                figures[f"{at}.{phase}_s.p{quantile}"] = _quantile(sorted(buckets), quantile / 100)
    return figures


def pool_figures(exposition: str) -> dict[str, float]:
    """GPUs and ready replicas of each pool, for a fleet whose pools are called as their roles are."""
    shown = {"paceline_gpus": "gpus", "paceline_ready_replicas": "ready"}
    return {
        f"pools.{sample.labels['role']}.{shown[sample.name]}": sample.value
        for family in text_string_to_metric_families(exposition)
        for sample in family.samples
        if sample.name in shown
    }


def _quantile(buckets: list[tuple[float, float]], q: float) -> float | None:
    """histogram_quantile as Prometheus documents it: the bucket that the rank falls into, linear within."""
    if not buckets or not buckets[-1][1]:
        return None
    rank = q * buckets[-1][1]
    index = next(i for i, (_, count) in enumerate(buckets) if count >= rank)
    low, below = buckets[index - 1] if index else (0.0, 0.0)
    high, count = buckets[index]
    if high == float("inf"):
        return low
    return low + (high - low) * (rank - below) / (count - below)
