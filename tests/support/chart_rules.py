"""The chart's Prometheus rules as the chart writes them for a scrape interval, without helm.

test_chart_monitoring.py holds helm's own rendering to the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from paceline_api.chartgen import CHART

Json = dict[str, Any]
FILES = ("recording", "alerts")


def rule_files(interval_s: int = 15, runbooks: str = "docs/runbooks") -> Mapping[str, str]:
    """Text by name: recording.yaml and alerts.yaml."""
    words = {"__INTERVAL__": f"{interval_s}s", "__WINDOW__": f"{max(30, 4 * interval_s)}s", "__RUNBOOKS__": runbooks}
    return {f"{name}.yaml": _filled(CHART / "rules" / f"{name}.yaml", words) for name in FILES}


def rules(name: str) -> list[Json]:
    """Every rule of one of FILES."""
    return [rule for group in yaml.safe_load(rule_files()[f"{name}.yaml"])["groups"] for rule in group["rules"]]


def recorded() -> frozenset[str]:
    """The names of the recorded series."""
    return frozenset(rule["record"] for rule in rules("recording"))


def _filled(path: Path, words: Mapping[str, str]) -> str:
    text = path.read_text(encoding="utf-8")
    for token, value in words.items():
        text = text.replace(token, value)
    return text
