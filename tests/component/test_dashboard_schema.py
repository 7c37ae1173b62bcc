"""The dashboards against Grafana's own types; a planted mistake of each sort is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grafana_schema
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "charts" / "paceline" / "dashboards"
Json = dict[str, Any]


def dashboards() -> dict[str, str]:
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.json"))}


pytestmark = pytest.mark.requires("npm")


@pytest.fixture
def installed() -> Path:
    return grafana_schema.packages()


def test_every_dashboard_fits_the_schema(installed: Path) -> None:
    assert len(dashboards()) == 4
    assert grafana_schema.problems(dashboards(), installed) == []


def first(dashboard: Json) -> Json:
    panel: Json = dashboard["panels"][0]
    return panel


def drawing(dashboard: Json) -> Json:
    custom: Json = first(dashboard)["fieldConfig"]["defaults"]["custom"]
    return custom


def override(dashboard: Json) -> Json:
    for_a_word: Json = first(dashboard)["fieldConfig"]["overrides"][1]["properties"][1]
    return for_a_word


MISTAKES: dict[str, Callable[[Json], object]] = {
    "a field of the dashboard that does not exist": lambda d: d.update(refesh="10s"),
    "a field of a panel that does not exist": lambda d: first(d).update(titel="x"),
    "a kind of panel that this check does not know": lambda d: first(d).update(type="graph"),
    "a panel without its kind": lambda d: first(d).pop("type"),
    "a way to draw that does not exist": lambda d: drawing(d).update(lineWidht=2),
    "a word that an enum does not have": lambda d: drawing(d).update(showPoints="maybe"),
    "a legend in no known mode": lambda d: first(d)["options"]["legend"].update(displayMode="lst"),
    "a query without its letter": lambda d: first(d)["targets"][0].pop("refId"),
    "a flag that is a string": lambda d: first(d)["targets"][0].update(instant="yes"),
    "an override of a field that does not exist": lambda d: override(d).update(id="custom.lineStlye"),
    "an override with a wrong value": lambda d: override(d)["value"].update(fill="dots"),
    "a variable that is refreshed at no known time": lambda d: d["templating"]["list"][0].update(refresh=7),
}


def test_a_mistake_of_each_sort_is_found(installed: Path) -> None:
    planted = {}
    for number, plant in enumerate(MISTAKES.values()):
        dashboard = json.loads(dashboards()["paceline-service"])
        plant(dashboard)
        planted[f"m{number}"] = json.dumps(dashboard)
    found = grafana_schema.problems(planted, installed)
    named = {line.partition(".ts(")[0] for line in found}
    assert {what for number, what in enumerate(MISTAKES) if f"m{number}" not in named} == set()
