"""The autoscaler's part of the status: its conditions, what is news and what is not, and its bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from factories_scaling import NOW_S, make_view
from paceline_api.conditions import AUTOSCALER_CONDITIONS
from paceline_api.status import LLMServiceStatus
from paceline_router.autoscale.signals import Blind, Change, Ruling, Unattainable
from paceline_router.scaling.figures import ClassFigures
from paceline_router.scaling.holds import Hold
from paceline_router.scaling.report import DECISIONS, Finding, decided, is_news, own_part, status_part

AWAY = Blind("MetricsUnreachable", "Prometheus at prom:9090: ConnectError")
CHANGE = Change("mixed", 2, 3, "interactive/ttft", "TTFT of interactive at 8.2 rps: 2 replicas attain 78.4 %")
HOLD = Hold("mixed", 5, NOW_S + 900)


def make_figures(good: float | None = 0.98, name: str = "interactive") -> ClassFigures:
    return ClassFigures(name, 0.95, good, None if good is None else 4.0 * good)


def make_ruling(**over: Any) -> Ruling:
    return Ruling(**{"wanted": {"mixed": 1}, "changes": (), "predicted": {}, **over})


def make_finding(**over: Any) -> Finding:
    whole: dict[str, Any] = {"blind": None, "figures": (make_figures(),), "ruling": make_ruling(), "seen_s": 60.0}
    return Finding(**{**whole, **over})


def conditions(finding: Finding, **view: Any) -> dict[str, dict[str, Any]]:
    part = status_part(make_view(**view), finding, [], NOW_S)
    return {c["type"]: c for c in part["conditions"]}


BEYOND = make_ruling(unattainable=(Unattainable("interactive", "ttft", 0.8, 0.95),))
JUDGED = [
    pytest.param(
        make_finding(), {}, ("True", "True", "True"), ("MetricsFresh", "ObjectivesMet", "Scaling"), id="all is well"),
    pytest.param(
        make_finding(blind=AWAY, figures=(make_figures(None),), ruling=None), {},
        ("False", "Unknown", "False"), ("MetricsUnreachable",) * 3, id="Prometheus is away"),
    pytest.param(
        make_finding(blind=Blind("MetricsInvalid", "m"), ruling=None), {}, ("False", "True", "False"),
        ("MetricsInvalid", "ObjectivesMet", "MetricsInvalid"), id="engines contradict, routers do not"),
    pytest.param(
        make_finding(figures=(make_figures(None),)), {}, ("True", "Unknown", "True"),
        ("MetricsFresh", "NoTraffic", "Scaling"), id="there is no traffic"),
    pytest.param(
        make_finding(figures=(make_figures(0.94), make_figures(1.0, "batch"))), {}, ("True", "False", "True"),
        ("MetricsFresh", "ObjectivesMissed", "Scaling"), id="one of two classes is missed"),
    pytest.param(
        make_finding(figures=(make_figures(0.7),), ruling=BEYOND), {}, ("True", "False", "True"),
        ("MetricsFresh", "ObjectiveUnattainable", "Scaling"), id="the missed class is out of reach"),
    pytest.param(
        make_finding(figures=(make_figures(0.7), make_figures(0.7, "batch")), ruling=BEYOND), {},
        ("True", "False", "True"), ("MetricsFresh", "ObjectivesMissed", "Scaling"), id="only one missed class is"),
    pytest.param(
        make_finding(seen_s=59.0), {}, ("True", "True", "True"),
        ("MetricsFresh", "ObjectivesMet", "WindowIncomplete"), id="a new leader"),
    pytest.param(
        make_finding(holds=(HOLD,)), {}, ("True", "True", "False"),
        ("MetricsFresh", "ObjectivesMet", "ManualHold"), id="a person set a size"),
    pytest.param(
        make_finding(ruling=None), {"mode": "Disabled"}, ("True", "True", "False"),
        ("MetricsFresh", "ObjectivesMet", "ScalingDisabled"), id="mode Disabled"),
    pytest.param(
        make_finding(), {"mode": "Recommend"}, ("True", "True", "False"),
        ("MetricsFresh", "ObjectivesMet", "RecommendOnly"), id="mode Recommend"),
]  # fmt: skip


@pytest.mark.parametrize(("finding", "view", "status", "reasons"), JUDGED)
def test_conditions_when(
    finding: Finding, view: dict[str, Any], status: tuple[str, ...], reasons: tuple[str, ...]
) -> None:
    found = conditions(finding, **view)
    assert tuple(found) == tuple(map(str, AUTOSCALER_CONDITIONS))
    assert tuple(c["status"] for c in found.values()) == status
    assert tuple(c["reason"] for c in found.values()) == reasons
    assert all(c["message"] for c in found.values())


def test_messages_say_what_a_person_needs() -> None:
    assert conditions(make_finding(figures=(make_figures(0.912),)))["SLOMet"]["message"] == "interactive 91.2 % of 95 %"
    assert conditions(make_finding(holds=(HOLD,)))["ScalingActive"]["message"] == str(HOLD)
    assert "prom:9090" in conditions(make_finding(blind=AWAY))["MetricsAvailable"]["message"]
    waiting = make_finding(ruling=make_ruling(waits="mixed is not settled"))
    assert "mixed is not settled" in conditions(waiting)["ScalingActive"]["message"]


def test_a_condition_keeps_its_time_until_its_status_turns() -> None:
    live = {"conditions": [{"type": "SLOMet", "status": "True", "lastTransitionTime": "2025-01-01T00:00:00Z"}]}
    assert conditions(make_finding(), status=live)["SLOMet"]["lastTransitionTime"] == "2025-01-01T00:00:00Z"
    missed = make_finding(figures=(make_figures(0.5),))
    assert conditions(missed, status=live)["SLOMet"]["lastTransitionTime"] == "2026-01-01T00:00:00Z"


def test_a_class_without_verdicts_has_a_name_and_nothing_else() -> None:
    part = status_part(make_view(), make_finding(figures=(make_figures(None),)), [], NOW_S)
    assert part["classes"] == [{"name": "interactive"}]


def test_the_whole_part_is_valid_by_the_crds_own_model() -> None:
    whole = replace(make_figures(), ttft_p90_s=0.3104, tpot_p90_s=0.033)
    part = status_part(make_view(), make_finding(figures=(whole,)), decided([], [CHANGE], NOW_S), NOW_S)
    status = LLMServiceStatus.model_validate(part)
    assert status.classes[0].attainment_percent == "98.0"
    assert (status.classes[0].goodput_per_second, status.classes[0].ttft_p90_ms) == ("3.9", 310)
    assert (status.decisions[0].from_, status.decisions[0].to) == (2, 3)
    assert own_part(part) == part


def test_ten_decisions_are_kept_each_below_a_kibibyte() -> None:
    long = replace(CHANGE, why="€" * 2000)
    found = decided([], [long] * (DECISIONS + 3), NOW_S)
    assert len(found) == DECISIONS
    assert all(len(repr(one).encode()) <= 1024 for one in found)
    assert LLMServiceStatus.model_validate({"decisions": found})


def test_a_decision_and_a_flip_are_news_and_figures_are_not() -> None:
    before = status_part(make_view(), make_finding(), [], NOW_S)

    def after(**over: Any) -> dict[str, Any]:
        return status_part(make_view(), make_finding(**over), [], NOW_S)

    assert not is_news(before, after(figures=(make_figures(0.97),)))
    assert not is_news(before, after(ruling=make_ruling(waits="for a while")))
    assert is_news(before, after(figures=(make_figures(0.9),)))
    edited = [{**one, "observedGeneration": 99} for one in before["conditions"]]
    assert is_news(before, {**before, "conditions": edited})
    assert is_news(before, after(holds=(HOLD,)))
    assert is_news(before, {**before, "decisions": decided([], [CHANGE], NOW_S)})
    assert is_news(own_part({}), before)
