"""Whose size a pool has, by what the API server notes of it, and for how long it is respected."""

from __future__ import annotations

from typing import Any

import pytest
from factories_scaling import NOW_S, make_pool_view
from paceline_router.scaling.holds import Hold, hold_of, resized_by
from paceline_router.scaling.views import Resized

HOLD_S = 900.0
AT = "2026-01-01T00:00:00Z"


def entry(manager: str, time: str = AT, fields: Any = None, **over: Any) -> dict[str, Any]:
    """One of metadata.managedFields, of a write through /scale."""
    owned = {"f:spec": {"f:replicas": {}}} if fields is None else fields
    scale = {"operation": "Update", "subresource": "scale", "fieldsType": "FieldsV1", "fieldsV1": owned}
    return {"manager": manager, "time": time, **scale, **over}


KUBECTL = Resized("kubectl", NOW_S)
WHOSE = [
    pytest.param([], None, id="nobody: the default of the schema"),
    pytest.param([entry("kubectl")], KUBECTL, id="a person's, by kubectl scale"),
    pytest.param([entry("kubectl-edit", subresource="")], Resized("kubectl-edit", NOW_S), id="a person's, by edit"),
    pytest.param([entry("kube-controller-manager")], Resized("kube-controller-manager", NOW_S), id="an HPA's"),
    pytest.param([entry("paceline-autoscaler")], None, id="the autoscaler's own"),
    pytest.param([entry("paceline-operator")], None, id="the operator's, at creation or to clamp it"),
    pytest.param(
        [entry("kubectl", "2025-12-31T23:00:00Z"), entry("paceline-operator")], None, id="a person's that was clamped"
    ),
    pytest.param(
        [entry("paceline-autoscaler", "2025-12-31T23:00:00Z"), entry("kubectl")], KUBECTL, id="a person's after ours"
    ),
    pytest.param(
        [entry("kubectl", fields={"f:metadata": {"f:labels": {}}})], None, id="nobody's: a person labelled the pool"
    ),
    pytest.param([entry("kubectl", fields={"f:spec": {"f:plan": {}}})], None, id="nobody's: another field of spec"),
    pytest.param([entry("kubectl", fields={})], None, id="nobody's: an entry without fields"),
]


@pytest.mark.parametrize(("fields", "whose"), WHOSE)
def test_a_size_is(fields: list[dict[str, Any]], whose: Resized | None) -> None:
    assert resized_by(fields) == whose


@pytest.mark.parametrize(
    ("resized", "now_s", "held"),
    [
        pytest.param(KUBECTL, NOW_S, True, id="at once"),
        pytest.param(KUBECTL, NOW_S + 899, True, id="until its time is over"),
        pytest.param(KUBECTL, NOW_S + 900, False, id="and no longer"),
        pytest.param(None, NOW_S, False, id="never, where it is ours"),
    ],
)
def test_it_is_held(resized: Resized | None, now_s: float, held: bool) -> None:
    pool = make_pool_view("prefill", 5, resized=resized)
    assert hold_of(pool, HOLD_S, now_s) == (Hold("prefill", 5, "kubectl", NOW_S + 900) if held else None)


def test_a_size_that_the_service_fixes_is_not_held() -> None:
    assert hold_of(make_pool_view(size=5, least=5, most=5, resized=KUBECTL), HOLD_S, NOW_S) is None


def test_a_hold_says_who_and_until_when() -> None:
    assert str(Hold("prefill", 5, "kubectl", NOW_S + 900)) == "prefill: 5 replicas by kubectl until 00:15:00Z"
