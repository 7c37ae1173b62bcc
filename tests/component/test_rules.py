"""Recording rules and alerts: they load, name what is exposed, and each alert fires when it should and only then.

tests/rules holds a file for each alert; its cases are sentences that begin with "fires" or "silent", and promtool runs
them against the very files of the chart.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import metric_names
import pytest
import yaml
from chart_rules import FILES, recorded, rule_files, rules
from paceline_api.chartgen import CHART

Json = dict[str, Any]
ROOT = CHART.parents[1]
CASES = ROOT / "tests" / "rules"
RUNBOOKS = ROOT / "docs" / "runbooks"
ALERTS = [rule["alert"] for rule in rules("alerts")]
LEVELS = {"instance", "llmservice", "llmservice_class", "llmservice_role", "pool"}
OPERATION = r"rate|sum|max|avg|count|mean|p\d\d|(ratio|ratio_rate|increase)(\d+[mhd])?"


def promtool(*args: str, folder: Path) -> None:
    found = shutil.which("promtool")
    assert found, "the requirement `prometheus` stands for promtool too"
    done = subprocess.run([found, *args], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def write_rules(folder: Path, interval_s: int = 15) -> None:
    for name, text in rule_files(interval_s).items():
        (folder / name).write_text(text, encoding="utf-8")


def cases(alert: str) -> list[Json]:
    loaded: Json = yaml.safe_load((CASES / f"{alert}.yaml").read_text(encoding="utf-8"))
    found: list[Json] = loaded["tests"]
    return found


def expected(case: Json) -> list[Json]:
    [test] = case["promql_expr_test"]
    found: list[Json] = test["exp_samples"]
    return found


@pytest.mark.requires("prometheus")
@pytest.mark.parametrize("interval_s", [1, 15, 60])
def test_rules_load_for_each_scrape_interval(interval_s: int, tmp_path: Path) -> None:
    write_rules(tmp_path, interval_s)
    promtool("check", "rules", "--lint=all", "--lint-fatal", *rule_files(), folder=tmp_path)


@pytest.mark.parametrize(
    ("interval_s", "window"),
    [
        pytest.param(1, "30s", id="at least half a minute"),
        pytest.param(15, "60s", id="four intervals"),
        pytest.param(60, "240s", id="four minutes"),
    ],
)
def test_windows_follow_the_scrape_interval(interval_s: int, window: str) -> None:
    text = rule_files(interval_s)["recording.yaml"]
    assert f"rate(paceline_requests_received_total[{window}])" in text
    assert f"interval: {interval_s}s\n" in text
    assert not re.search("__[A-Z]+__", "".join(rule_files(interval_s).values()))


@pytest.mark.requires("prometheus")
@pytest.mark.parametrize("alert", ALERTS)
def test_the_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path) -> None:
    write_rules(tmp_path)
    shutil.copy(CASES / f"{alert}.yaml", tmp_path)
    promtool("test", "rules", f"{alert}.yaml", folder=tmp_path)


@pytest.mark.requires("prometheus")
def test_a_case_that_does_not_hold_is_told(tmp_path: Path) -> None:
    write_rules(tmp_path)
    text = (CASES / "PacelineOperatorDown.yaml").read_text(encoding="utf-8")
    (tmp_path / "wrong.yaml").write_text(text.replace('severity="warning"', 'severity="critical"'), encoding="utf-8")
    with pytest.raises(AssertionError, match="FAILED"):
        promtool("test", "rules", "wrong.yaml", folder=tmp_path)


@pytest.mark.parametrize("alert", ALERTS)
def test_the_alert_has_cases_of_both_kinds(alert: str) -> None:
    fires = [case for case in cases(alert) if case["name"].startswith("fires: ")]
    silent = [case for case in cases(alert) if case["name"].startswith("silent: ")]
    assert fires
    assert silent
    assert len(fires) + len(silent) == len({case["name"] for case in cases(alert)})
    for case in cases(alert):
        [test] = case["promql_expr_test"]
        assert test["expr"] == f'ALERTS{{alertname="{alert}", alertstate="firing"}}'
    assert all(len(expected(case)) == 1 for case in fires)
    assert not any(expected(case) for case in silent)


def test_there_are_no_cases_and_no_runbooks_of_alerts_that_are_gone() -> None:
    assert {path.stem for path in CASES.iterdir()} == set(ALERTS)
    assert {path.stem for path in RUNBOOKS.iterdir()} == set(ALERTS)
    assert len(ALERTS) == len(set(ALERTS))


@pytest.mark.parametrize("rule", rules("alerts"), ids=lambda rule: rule["alert"])
def test_the_alert_says_how_urgent_it_is_what_happens_and_where_to_read_on(rule: Json) -> None:
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
    text = (RUNBOOKS / f"{rule['alert']}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {rule['alert']}\n")
    parts = [text.find(part) for part in ("**Impact.**", "## Diagnosis", "## Mitigation")]
    assert -1 < parts[0] < parts[1] < parts[2], "meaning, impact, diagnosis, mitigation"


def on_pages() -> dict[str, str]:
    """The PromQL lines in the runbooks' blocks, by a word that names them."""
    fenced = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    blocks = {page.stem: "".join(fenced.findall(page.read_text(encoding="utf-8"))) for page in RUNBOOKS.iterdir()}
    lines = {name: [line for line in text.splitlines() if line[:8] != "kubectl "] for name, text in blocks.items()}
    return {f"{name}_{number}": line for name, found in sorted(lines.items()) for number, line in enumerate(found)}


@pytest.fixture(scope="module")
def known() -> frozenset[str]:
    return metric_names.exposed() | recorded()


@pytest.mark.parametrize(
    "rule", [r for name in FILES for r in rules(name)], ids=lambda r: r.get("record") or r["alert"]
)
def test_a_rule_asks_for_what_is_exposed_or_recorded(rule: Json, known: frozenset[str]) -> None:
    assert not metric_names.in_query(rule["expr"]) - known


@pytest.mark.parametrize(("page", "expr"), on_pages().items())
def test_a_runbook_asks_for_what_is_exposed_or_recorded(page: str, expr: str, known: frozenset[str]) -> None:
    assert not metric_names.in_query(expr) - known, page


@pytest.mark.requires("prometheus")
def test_what_a_runbook_asks_is_promql(tmp_path: Path) -> None:
    asked = [{"record": page, "expr": expr} for page, expr in on_pages().items()]
    (tmp_path / "pages.yaml").write_text(yaml.safe_dump({"groups": [{"name": "pages", "rules": asked}]}))
    promtool("check", "rules", "pages.yaml", folder=tmp_path)


def test_recorded_series_are_named_level_metric_operation_and_recorded_once() -> None:
    names = [rule["record"] for rule in rules("recording")]
    assert len(names) == len(set(names))
    for name in names:
        level, metric, operation = name.split(":")
        assert level in LEVELS, name
        assert metric.startswith(("paceline_", "vllm_")), name
        assert re.fullmatch(OPERATION, operation), name
