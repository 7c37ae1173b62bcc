"""Each CEL rule of the CRDs with one object that it admits and one that it refuses, by its own string and message."""

from __future__ import annotations

import pytest
from factories_api import make_class
from paceline_api.cel import violations
from paceline_api.config import TracingConfig
from paceline_api.crdgen import openapi
from paceline_api.pools import PoolSpec
from paceline_api.schema import Model
from paceline_api.v1alpha1 import LLMService, LLMServiceSpec, SLOClassSpec
from paceline_api.validate import with_defaults
from rule_cases import CARRIERS, CASES, COLLECTORS, STORED, Json


def broken_by(carrier: type[Model], message: str, value: Json) -> list[str]:
    """Messages of the rules of `carrier` with this message that `value` breaks, its defaults applied."""
    raw = carrier.model_json_schema()
    schema = {"properties": {name: node for name, node in raw["properties"].items() if node.get("default") is not None}}
    rules = [{"rule": r.rule, "message": r.message} for r in carrier.CEL if r.message == message]
    assert rules, f"{carrier.__name__} has no rule with this message"
    return violations(rules, with_defaults(schema, value), STORED.get(carrier))


@pytest.mark.parametrize(("carrier", "message", "admitted", "refused"), CASES, ids=[c[1].split(";")[0] for c in CASES])
def test_rule(carrier: type[Model], message: str, admitted: list[Json], refused: list[Json]) -> None:
    assert [broken_by(carrier, message, value) for value in admitted] == [[]] * len(admitted)
    assert [broken_by(carrier, message, value) for value in refused] == [[message]] * len(refused)


@pytest.mark.parametrize("endpoint", COLLECTORS)
def test_routers_take_every_collector_that_the_crd_admits(endpoint: str) -> None:
    assert TracingConfig(endpoint=endpoint).traces_url.startswith(endpoint.rstrip("/"))


def test_every_rule_has_a_case() -> None:
    assert {(c, r.message) for c in CARRIERS for r in c.CEL} == {(case[0], case[1]) for case in CASES}


def test_every_model_with_rules_is_a_carrier() -> None:
    def with_rules(model: type[Model]) -> set[type[Model]]:
        own = {model} if model.CEL else set()
        return own.union(*(with_rules(child) for child in model.__subclasses__()))

    assert with_rules(Model) == set(CARRIERS)


@pytest.mark.parametrize("ttft_ms", [10, 5000], ids=["TTFT below TPOT", "TTFT above TPOT"])
def test_no_rule_stands_between_ttft_and_tpot(ttft_ms: int) -> None:
    value = make_class(ttftMs=ttft_ms, tpotMs=500)
    assert violations([{"rule": r.rule, "message": r.message} for r in SLOClassSpec.CEL], value) == []


def test_the_rules_stand_in_the_crd_at_the_node_of_their_model() -> None:
    spec_node = openapi(LLMService)["properties"]["spec"]
    assert [r["message"] for r in spec_node["x-kubernetes-validations"]] == [r.message for r in LLMServiceSpec.CEL]
    pool = spec_node["properties"]["pools"]["items"]
    assert [r["rule"] for r in pool["x-kubernetes-validations"]] == [r.rule for r in PoolSpec.CEL]
