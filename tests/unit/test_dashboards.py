"""The dashboards: generated, complete, asking only for what exists, and right under two replicas of a router."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import metric_names
import pytest
import yaml
from chart_rules import recorded, rule_files
from helm_chart import needs_helm
from helm_chart import render as render_chart
from paceline_api.outcomes import Outcome
from paceline_dashboards.__main__ import FOLDER, main
from paceline_dashboards.build import COLOURS, render
from paceline_dashboards.dashboards import DASHBOARDS
from paceline_dashboards.panels import Dashboard, Kind, Panel
from paceline_router.miss import Cause
from panel_queries import RIGHTLY_EMPTY, expressions, fill

Json = dict[str, Any]
PANELS = [(dashboard, panel) for dashboard in DASHBOARDS for panel in dashboard.panels]
each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
each_panel = pytest.mark.parametrize(("dashboard", "panel"), PANELS, ids=[f"{d.uid}: {p.title}" for d, p in PANELS])


def variables(dashboard: Dashboard) -> set[str]:
    return {variable.name for variable in dashboard.variables}


# Generated files


@each_dashboard
def test_the_file_is_what_its_module_says(dashboard: Dashboard) -> None:
    text = (FOLDER / f"{dashboard.uid}.json").read_text(encoding="utf-8")
    assert text == render(dashboard), "run `python -m paceline_dashboards`"


def test_check_tells_a_stale_a_missing_and_a_left_over_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "paceline-fleet.json").write_text("{}")
    (tmp_path / "paceline-service.json").unlink()
    (tmp_path / "paceline-old.json").write_text("{}")
    assert main(["--check"], tmp_path) == 1
    assert "stale: paceline-fleet.json, paceline-old.json, paceline-service.json" in capsys.readouterr().err
    assert main([], tmp_path) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in FOLDER.iterdir())


# What a reader gets


@each_panel
def test_a_panel_has_a_unit_and_says_in_a_sentence_what_to_make_of_it(dashboard: Dashboard, panel: Panel) -> None:
    [built] = [p for p in json.loads(render(dashboard))["panels"] if p["title"] == panel.title]
    assert built["fieldConfig"]["defaults"]["unit"] == panel.unit
    assert re.fullmatch(r"[A-Z0-9].{40,260}\.", built["description"])
    assert built["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert all(target["datasource"] == built["datasource"] for target in built["targets"])


@each_panel
def test_every_series_of_a_panel_has_a_name_of_its_own(dashboard: Dashboard, panel: Panel) -> None:
    names = [query.name for query in panel.queries]
    assert all(names)
    assert len(set(names)) == len(names)


@each_dashboard
def test_a_dashboard_is_small_stable_and_found(dashboard: Dashboard) -> None:
    built = json.loads(render(dashboard))
    titles = [panel["title"] for panel in built["panels"]]
    assert len(titles) == len(set(titles)) <= 12
    assert len({panel["id"] for panel in built["panels"]}) == len(titles)
    assert (built["uid"], built["tags"], built["refresh"]) == (dashboard.uid, ["paceline"], "10s")
    assert built["templating"]["list"][0]["type"] == "datasource"
    assert {link["url"].removeprefix("/d/") for link in built.get("links", ())} <= {d.uid for d in DASHBOARDS} - {
        dashboard.uid
    }


@each_dashboard
def test_panels_fill_their_rows_and_do_not_overlap(dashboard: Dashboard) -> None:
    cells = [
        (x, y)
        for panel in json.loads(render(dashboard))["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert {x for x, _ in cells} == set(range(24))
    assert len(cells) == 24 * (max(y for _, y in cells) + 1)


def test_every_outcome_and_every_cause_of_a_miss_has_its_colour() -> None:
    assert {*Outcome, *Cause} <= COLOURS.keys()


# What a panel asks


@each_panel
def test_a_query_uses_the_variables_of_its_dashboard_alone(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        assert set(re.findall(r"\$(\w+)", query.expr)) <= variables(dashboard)


@each_panel
def test_a_query_names_metrics_that_exist(dashboard: Dashboard, panel: Panel) -> None:
    for query in panel.queries:
        names = metric_names.in_query(query.expr)
        assert names
        assert names <= metric_names.exposed() | recorded()


@each_dashboard
def test_a_variable_chooses_among_metrics_that_exist(dashboard: Dashboard) -> None:
    for variable in dashboard.variables:
        assert metric_names.in_query(variable.metric) <= metric_names.exposed()


def test_a_name_that_no_process_exposes_would_be_noticed() -> None:
    expr = 'sum(rate(paceline_request_total{outcome="paceline_gpus"}[5m])) / pool:vllm_gone:rate'
    assert metric_names.in_query(expr) == {"paceline_request_total", "pool:vllm_gone:rate"}
    assert not metric_names.in_query(expr) & (metric_names.exposed() | recorded())


def test_every_panel_is_asked_with_its_variables_filled() -> None:
    asked = expressions("llm", "chat", "interactive")
    assert {(e.dashboard, e.panel) for e in asked} == {(d.uid, p.title) for d, p in PANELS}
    assert len(asked) == sum(len(panel.queries) for _, panel in PANELS)
    assert not any("$" in e.expr for e in asked)
    with pytest.raises(KeyError, match="unknown"):
        fill('up{job="$unknown"}', {})


def test_what_may_be_empty_is_a_panel() -> None:
    assert RIGHTLY_EMPTY.keys() <= {(dashboard.uid, panel.title) for dashboard, panel in PANELS}


# With promtool


def promtool(tmp_path: Path, command: str, document: Json) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "file.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return subprocess.run(["promtool", command, "rules", path], capture_output=True, text=True, timeout=60)


def wrapped(exprs: list[str]) -> Json:
    return {"groups": [{"name": "g", "rules": [{"record": f"r{i}", "expr": e} for i, e in enumerate(exprs)]}]}


@pytest.mark.requires("prometheus")
def test_every_query_parses(tmp_path: Path) -> None:
    asked = [e.expr for e in expressions("llm", "chat", "interactive")]
    done = promtool(tmp_path, "check", wrapped(asked))
    assert done.returncode == 0, done.stdout + done.stderr
    assert promtool(tmp_path, "check", wrapped([*asked, "sum(by) (x"])).returncode != 0


SERVICE = 'llmservice_namespace="llm", llmservice="chat"'
CLASS = f'{SERVICE}, slo_class="interactive"'


def two_routers() -> dict[str, str]:
    """Series and their values each minute: two routers that share 3 requests a second, of which 9 in 10 are good."""
    series: dict[str, str] = {}
    for router, good, bad in (("a", 108, 12), ("b", 54, 6)):
        of = f'job="llm/paceline", instance="{router}:8000", namespace="llm", pod="router-{router}"'
        series |= {
            f'paceline_slo_decided_total{{{of}, {CLASS}, result="good"}}': f"0+{good}x20",
            f'paceline_slo_decided_total{{{of}, {CLASS}, result="ttft"}}': f"0+{bad}x20",
            f'paceline_requests_total{{{of}, {CLASS}, outcome="completed"}}': f"0+{good + bad}x20",
            f"paceline_requests_received_total{{{of}, {CLASS}}}": f"0+{good + bad}x20",
            f'paceline_miss_total{{{of}, {CLASS}, cause="queue"}}': f"0+{bad}x20",
            f"paceline_slo_target_ratio{{{of}, {CLASS}}}": "0.95x20",
            f'paceline_slo_limit_seconds{{{of}, {CLASS}, objective="ttft"}}': "0.4x20",
            f'paceline_gpus{{{of}, {SERVICE}, role="prefill"}}': "4x20",
            f'paceline_gpus{{{of}, {SERVICE}, role="decode"}}': "2x20",
            f'paceline_ready_replicas{{{of}, {SERVICE}, role="decode"}}': "2x20",
            f'paceline_requests_in_flight{{{of}, {SERVICE}, role="decode"}}': "3x20",
            f'paceline_ttft_seconds_bucket{{{of}, {CLASS}, le="0.4"}}': f"0+{good}x20",
            f'paceline_ttft_seconds_bucket{{{of}, {CLASS}, le="0.8"}}': f"0+{good + bad}x20",
            f'paceline_ttft_seconds_bucket{{{of}, {CLASS}, le="+Inf"}}': f"0+{good + bad}x20",
        }
    return series


def two_engines() -> dict[str, str]:
    """Two engines of the pool `decode`, and one of another service that must not be seen."""
    series: dict[str, str] = {}
    for name, service, used in (("d1", "chat", 0.2), ("d2", "chat", 0.6), ("x", "other", 0.9)):
        of = f'job="llm/paceline", instance="{name}:8000", namespace="llm", pod="{name}"'
        info = f'llmservice_namespace="llm", llmservice="{service}", pool="decode", role="decode", revision="r1"'
        series |= {
            f"paceline_engine_info{{{of}, {info}}}": "1x20",
            f'vllm:kv_cache_usage_perc{{{of}, model_name="m", engine="0"}}': f"{used}x20",
            f'paceline_step_tokens_sum{{{of}, phase="decode"}}': "0+600x20",
            f'paceline_step_seconds_bucket{{{of}, kind="measured", le="+Inf"}}': "0+60x20",
        }
    return series


FIGURES = {
    ("paceline-fleet", "Classes below target", "classes"): {"{}": 1.0},
    ("paceline-fleet", "Goodput", "good"): {"{}": 2.7},
    ("paceline-fleet", "GPUs", "GPUs"): {"{}": 6.0},
    ("paceline-fleet", "Good requests per GPU-hour", "good per GPU-hour"): {"{}": 3600 * 2.7 / 6},
    ("paceline-fleet", "Classes that miss their objective", "attainment"): {f"{{{CLASS}}}": 0.9},
    ("paceline-fleet", "Classes that miss their objective", "target"): {f"{{{CLASS}}}": 0.95},
    ("paceline-service", "Attainment", "attained"): {f"{{{CLASS}}}": 0.9},
    ("paceline-service", "TTFT", "p50"): {f"{{{CLASS}}}": 0.4 * 0.5 / 0.9},
    ("paceline-service", "TTFT", "limit"): {f'{{{CLASS}, objective="ttft"}}': 0.4},
    ("paceline-service", "Requests by outcome", "received"): {f"{{{CLASS}}}": 3.0},
    ("paceline-service", "Misses by cause", "{{cause}}"): {f'{{{CLASS}, cause="queue"}}': 0.3},
    ("paceline-service", "Requests in flight", "{{role}}"): {f'{{{SERVICE}, role="decode"}}': 6.0},
    ("paceline-engines", "KV cache in use", "{{pool}} {{pod}}"): {
        '{pool="decode", pod="d1"}': 0.2,
        '{pool="decode", pod="d2"}': 0.6,
    },
    ("paceline-engines", "Batch mix", "{{pool}} {{phase}}"): {
        f'{{{SERVICE}, pool="decode", role="decode", phase="decode"}}': 10.0
    },
    ("paceline-autoscaler", "Replicas ready", "{{role}}"): {f'{{{SERVICE}, role="decode"}}': 2.0},
}


@pytest.mark.requires("prometheus")
def test_two_routers_count_together_and_say_the_fleet_once(tmp_path: Path) -> None:
    asked = {(e.dashboard, e.panel, e.series): e.expr for e in expressions("llm", "chat", "interactive")}
    (tmp_path / "rules.yaml").write_text(rule_files(interval_s=60)["recording.yaml"], encoding="utf-8")
    questions = [
        {
            "expr": f"round({asked[key]}, 0.0001)",
            "eval_time": "15m",
            "exp_samples": [{"labels": labels, "value": round(value, 4)} for labels, value in figures.items()],
        }
        for key, figures in FIGURES.items()
    ]
    series = [{"series": name, "values": values} for name, values in {**two_routers(), **two_engines()}.items()]
    test = {"interval": "1m", "input_series": series, "promql_expr_test": questions}
    done = promtool(tmp_path, "test", {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]})
    assert done.returncode == 0, done.stdout + done.stderr


# With helm


def config_maps(*values: str) -> dict[str, Json]:
    """What the chart renders of the dashboards, by the name of the file."""
    maps = [d for d in render_chart(*(f"--set={value}" for value in values)) if d["kind"] == "ConfigMap"]
    return {name: document for document in maps for name in document["data"] if name.endswith(".json")}


@needs_helm
def test_the_chart_carries_every_dashboard_as_it_is_written_for_grafanas_sidecar() -> None:
    found = config_maps("dashboards.label=mine", "dashboards.folder=LLM serving")
    assert found.keys() == {f"{dashboard.uid}.json" for dashboard in DASHBOARDS}
    for name, document in found.items():
        assert document["data"] == {name: (FOLDER / name).read_text(encoding="utf-8")}
        assert document["metadata"]["labels"]["mine"] == "1"
        assert document["metadata"]["annotations"] == {"grafana_folder": "LLM serving"}


@needs_helm
def test_the_chart_leaves_them_out_where_they_are_not_wanted() -> None:
    assert config_maps("dashboards.enabled=false") == {}


@pytest.mark.parametrize("kind", list(Kind))
def test_every_kind_of_panel_is_used(kind: Kind) -> None:
    assert any(panel.kind is kind for _, panel in PANELS)
