"""plan(): the fixed rule of Auto, the first sizes, and each obstacle with what exists instead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.catalog import ACCELERATORS
from paceline_api.conditions import Reason
from paceline_api.v1alpha1 import LLMService, Role, Topology
from paceline_engine.tables import available, load_table
from paceline_planner.plan import RULE, Infeasible, Plan, plan
from paceline_planner.roofline.shape import from_config
from paceline_planner.step_tables import Tables

VLLM = {"runtime": "VLLM"}
OPT, QWEN = "hf://facebook/opt-13b", "hf://Qwen/Qwen3-8B"
ROCKET_CONFIG = {  # a config.json of Llama's kin, 7 billion parameters
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
}


def make_pool(role: str = "Mixed", **over: Any) -> dict[str, Any]:
    size = {} if "replicas" in over else {"minReplicas": 1, "maxReplicas": 4}
    base = {"name": role.lower(), "role": role, "accelerator": "a100-sxm-80gb", "parallelism": {"tensor": 1}}
    return {k: v for k, v in (base | size | over).items() if v is not None}


def make_service(*pools: dict[str, Any], uri: str = OPT, context: int = 2048, **spec: Any) -> LLMService:
    slo = {"classes": [{"name": "interactive", "ttftMs": 400, "tpotMs": 40}]}
    base = {
        "model": {"uri": uri, "maxContextTokens": context},
        "slo": slo,
        "engine": {"runtime": "Simulated"},
        "pools": list(pools) or [make_pool()],
    }
    return LLMService.model_validate({"metadata": {"name": "chat"}, "spec": base | spec})


def make_slo(ttft_ms: int = 400, tpot_ms: int = 40, **over: Any) -> dict[str, Any]:
    return {"classes": [{"name": "interactive", "ttftMs": ttft_ms, "tpotMs": tpot_ms} | over]}


def lengths(mean: int, p90: int) -> dict[str, Any]:
    return {"promptTokens": {"mean": mean, "p90": p90}, "outputTokens": {"mean": 200, "p90": 400}}


def feasible(service: LLMService) -> Plan:
    found = plan(service)
    assert isinstance(found, Plan), found
    return found


PREFILL, DECODE, MIXED = make_pool("Prefill"), make_pool("Decode"), make_pool("Mixed")


@pytest.mark.parametrize(
    ("wanted", "pools", "topology", "reason", "rejected"),
    [
        pytest.param("Auto", [MIXED], "Aggregated", RULE, ["Disaggregated"], id="Auto with a mixed pool aggregates"),
        pytest.param(
            "Auto", [PREFILL, DECODE], "Disaggregated", RULE, ["Aggregated"], id="Auto with both roles disaggregates"
        ),
        pytest.param(
            "Auto",
            [PREFILL, DECODE, MIXED],
            "Disaggregated",
            RULE,
            ["Aggregated"],
            id="Auto with all roles disaggregates, and says that the other was not compared",
        ),
        pytest.param(
            "Auto",
            [make_pool("Prefill", parallelism={"tensor": 3}), DECODE, MIXED],
            "Aggregated",
            RULE,
            ["Disaggregated"],
            id="Auto falls back to the mixed pool when disaggregated cannot run",
        ),
        pytest.param(
            "Aggregated",
            [PREFILL, DECODE, MIXED],
            "Aggregated",
            "as the service says",
            [],
            id="a topology that the service names is not questioned",
        ),
    ],
)
def test_topology(wanted: str, pools: list[dict[str, Any]], topology: str, reason: str, rejected: list[str]) -> None:
    found = feasible(make_service(*pools, topology=wanted))
    assert found.topology == topology
    assert found.reason == reason
    assert [r.topology for r in found.rejected] == rejected
    assert {p.role for p in found.pools} == set(
        (Role.PREFILL, Role.DECODE) if topology == "Disaggregated" else (Role.MIXED,)
    )


@pytest.mark.parametrize(
    ("pool", "replicas"),
    [
        pytest.param(make_pool(replicas=3), 3, id="a fixed size is the size"),
        pytest.param(make_pool(minReplicas=2), 2, id="bounds start at the lower one"),
        pytest.param(make_pool(minReplicas=None), 1, id="an absent lower bound is 1"),
        pytest.param(make_pool(minReplicas=0), 1, id="a pool that may be empty starts with one"),
        pytest.param(make_pool(replicas=0), 0, id="a size fixed at 0 stays 0"),
    ],
)
def test_first_size(pool: dict[str, Any], replicas: int) -> None:
    found = feasible(make_service(pool))
    assert [p.replicas for p in found.pools] == [replicas]
    assert found.gpus == replicas
    assert found.roles_without_replicas == (() if replicas else (Role.MIXED,))


def test_token_budget_is_the_service_s_or_0_for_each_engine_s_own_choice() -> None:
    assert feasible(make_service()).token_budget == 0
    assert feasible(make_service(engine={"runtime": "Simulated", "tokenBudget": 512})).token_budget == 512


@pytest.mark.parametrize(
    ("uri", "spec", "tensor"),
    [
        pytest.param(OPT, {}, 1, id="one GPU where it does"),
        pytest.param("hf://facebook/opt-66b", {"slo": make_slo(400, 60)}, 2, id="as many as the weights need"),
        pytest.param(OPT, {"slo": make_slo(400, 15)}, 2, id="as many as the TPOT needs"),
        pytest.param(QWEN, {"slo": make_slo(400, 9)}, 2, id="more than were measured, by a roofline"),
        pytest.param(QWEN, {"slo": make_slo(400, 9), "engine": VLLM}, 2, id="of a real engine too"),
    ],
)
def test_open_parallelism_takes_the_fewest_gpus(uri: str, spec: dict[str, Any], tensor: int) -> None:
    found = feasible(make_service(make_pool(parallelism=None), uri=uri, **spec))
    assert [(p.tensor, p.pipeline) for p in found.pools] == [(tensor, 1)]


OBSTACLES = [
    ("an unknown accelerator", make_service(make_pool(accelerator="h900")), Reason.UNKNOWN_ACCELERATOR,
     "spec.pools[0].accelerator", "no accelerator 'h900'; there are: a100-sxm-80gb, a40, b200-sxm"),
    ("more GPUs than a node has", make_service(make_pool(parallelism={"tensor": 8, "pipeline": 2})),
     Reason.PARALLELISM_TOO_LARGE, "spec.pools[0].parallelism", "16 GPUs, and a node with a100-sxm-80gb has 8"),
    ("a pipeline on simulated engines", make_service(make_pool(parallelism={"tensor": 1, "pipeline": 2})),
     Reason.PARALLELISM_TOO_LARGE, "spec.pools[0].parallelism.pipeline", "set pipeline to 1"),
    ("a model without a table", make_service(uri="hf://acme/rocket-7b"), Reason.UNKNOWN_MODEL,
     "spec.model.uri", "no step-time table for hf://acme/rocket-7b on a100-sxm-80gb; there are: llama-2-13b"),
    ("a model above all of a node", make_service(make_pool(accelerator="a40"), uri="hf://facebook/opt-175b"),
     Reason.MODEL_DOES_NOT_FIT, "spec.pools[0].accelerator", "leave no room for KV on a node of a40"),
    ("a tensor without a table", make_service(make_pool(parallelism={"tensor": 3})), Reason.UNKNOWN_MODEL,
     "spec.pools[0].parallelism.tensor", "with tensor 3; there are: tensor 1, tensor 2, tensor 4"),
    ("a tensor that does not divide the heads",
     make_service(make_pool(parallelism={"tensor": 3}), uri="hf://meta-llama/Llama-3.1-8B", engine=VLLM),
     Reason.PARALLELISM_TOO_LARGE, "spec.pools[0].parallelism.tensor",
     "llama-3.1-8b has 32 attention heads, which tensor 3 does not divide; 1, 2, 4, 8 do"),
    ("weights above the memory", make_service(uri="hf://meta-llama/Llama-2-70b-hf", engine=VLLM),
     Reason.MODEL_DOES_NOT_FIT, "spec.pools[0].parallelism", "128 GiB of weights, and 1 × a100-sxm-80gb 79 GiB"),
    ("a context above the model's", make_service(context=4096), Reason.MODEL_DOES_NOT_FIT,
     "spec.model.maxContextTokens", "lower it to at most 2048"),
    ("a context above the KV room",
     make_service(make_pool(accelerator="l40s", parallelism={"tensor": 4}), uri="hf://meta-llama/Llama-3.1-70B",
                  context=131072, slo=make_slo(400, 60)),
     Reason.MODEL_DOES_NOT_FIT, "spec.pools[0].parallelism", "is more than the 62192 tokens of KV that 4 × l40s hold"),
    ("more GPUs than maxGPUs", make_service(make_pool(replicas=3), maxGPUs=2), Reason.GPU_LIMIT,
     "spec.maxGPUs", "Aggregated starts with 3 GPUs (mixed 3 × 1) and maxGPUs is 2"),
    ("a TTFT below the lone prefill of one token", make_service(slo=make_slo(5, 40)), Reason.OBJECTIVE_UNATTAINABLE,
     "spec.slo.classes[0].ttftMs", "TTFT 5 ms is below a lone prefill of a prompt of one token"),
    ("a TTFT below the lone prefill of the mean prompt", make_service(slo=make_slo(100), workload=lengths(1500, 1900)),
     Reason.OBJECTIVE_UNATTAINABLE, "spec.slo.classes[0].ttftMs", "lone prefill of the mean prompt of 1500 tokens"),
    ("a TPOT below a lone decode step", make_service(slo=make_slo(400, 10)), Reason.OBJECTIVE_UNATTAINABLE,
     "spec.slo.classes[0].tpotMs", "TPOT 10 ms is below a lone decode step"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("service", "cause", "path", "message"), [pytest.param(*case[1:], id=case[0]) for case in OBSTACLES]
)
def test_obstacles(service: LLMService, cause: Reason, path: str, message: str) -> None:
    found = plan(service)
    assert isinstance(found, Infeasible)
    assert [(o.cause, o.path) for o in found.obstacles] == [(cause, path)]
    assert message in found.reason


def test_all_obstacles_are_told_at_once_and_each_once() -> None:
    pools = [make_pool("Prefill", accelerator="x1"), make_pool("Decode", accelerator="x2"), make_pool("Mixed")]
    found = plan(make_service(*pools, uri="hf://acme/rocket", topology="Auto", context=4096))
    assert isinstance(found, Infeasible)
    assert [o.path for o in found.obstacles] == [
        "spec.pools[0].accelerator",
        "spec.pools[1].accelerator",
        "spec.model.uri",
    ]


def test_accelerators_of_a_cluster_replace_the_built_in_ones() -> None:
    own = {"mine": replace(ACCELERATORS["a100-sxm-80gb"], name="mine")}
    found = plan(make_service(make_pool(accelerator="mine")), own)
    assert isinstance(found, Plan)
    assert found.pools[0].table == "a100-sxm-80gb"


def test_an_accelerator_that_nothing_is_known_of_names_those_with_tables() -> None:
    own = {"mine": replace(ACCELERATORS["a40"], name="mine")}
    found = plan(make_service(make_pool(accelerator="mine")), own)
    assert isinstance(found, Infeasible)
    assert "there are some for: a100-sxm-80gb, b200-sxm, h100-sxm" in found.reason


@pytest.mark.parametrize(
    ("pool", "table"),
    [
        pytest.param(make_pool(accelerator="a40"), "roofline.a40", id="on a GPU that nobody measured"),
        pytest.param(make_pool(parallelism={"tensor": 8}), "roofline.a100-sxm-80gb", id="on more GPUs than measured"),
    ],
)
def test_a_roofline_stands_in_for_a_measured_table_and_says_its_error(pool: dict[str, Any], table: str) -> None:
    found = feasible(make_service(pool, slo=make_slo(4000, 200)))
    assert [p.table for p in found.pools] == [table]
    assert any("are a roofline's, not measured (error up to " in text for text in found.warnings)


def test_what_a_roofline_alone_says_warns_of_real_engines_and_stops_none() -> None:
    """29 ms a decode step, with an error of 16 % at p90."""
    pool, slo = make_pool(accelerator="a40"), make_slo(tpot_ms=27)
    assert isinstance(plan(make_service(pool, uri=QWEN, slo=slo)), Infeasible)
    found = feasible(make_service(pool, uri=QWEN, slo=slo, engine=VLLM))
    assert any(text.startswith("class interactive: TPOT 27 ms is below a lone decode step") for text in found.warnings)


def test_a_model_of_one_s_own_is_planned_by_the_roofline_of_its_config() -> None:
    service = make_service(make_pool(parallelism=None), uri="hf://acme/rocket-7b")
    found = plan(service, tables=Tables(from_config(ROCKET_CONFIG, "rocket-7b")))
    assert isinstance(found, Plan)
    assert [(p.table, p.tensor) for p in found.pools] == [("roofline.a100-sxm-80gb", 1)]
    assert any(text.startswith("pool mixed: step times of rocket-7b on 1 × a100") for text in found.warnings)


@pytest.mark.parametrize(
    ("service", "warning"),
    [
        pytest.param(
            make_service(PREFILL, DECODE, MIXED), "pool mixed is not used: Disaggregated has no role Mixed", id="unused"
        ),
        pytest.param(make_service(make_pool(replicas=0)), "pool mixed is fixed at 0 replicas", id="empty on purpose"),
        pytest.param(
            make_service(uri="hf://acme/rocket-7b", engine=VLLM),
            "pool mixed: no step-time table for hf://acme/rocket-7b",
            id="a real engine needs no table",
        ),
        pytest.param(
            make_service(slo=make_slo(150), workload=lengths(500, 2000)),
            "class interactive: the p90 prompt of 2000 tokens alone takes",
            id="a tenth of the prompts is too long",
        ),
    ],
)
def test_warnings(service: LLMService, warning: str) -> None:
    assert any(text.startswith(warning) for text in feasible(service).warnings)


@given(
    entry=st.sampled_from([e for e in available() if e[0] in ACCELERATORS]),
    replicas=st.integers(1, 8),
    most=st.integers(1, 64),
    context=st.integers(1, 200_000),
    ttft_ms=st.integers(1, 2000),
    tpot_ms=st.integers(1, 200),
)
def test_a_plan_keeps_what_its_docstring_promises(
    entry: tuple[str, str, int], replicas: int, most: int, context: int, ttft_ms: int, tpot_ms: int
) -> None:
    accelerator, model, tensor = entry
    pool = make_pool(accelerator=accelerator, replicas=replicas, parallelism={"tensor": tensor})
    service = make_service(pool, uri=f"hf://x/{model}", context=context, maxGPUs=most, slo=make_slo(ttft_ms, tpot_ms))
    found = plan(service)
    if isinstance(found, Infeasible):
        assert found.reason
        return
    table = load_table(accelerator, model, tensor)
    assert found.gpus == replicas * tensor <= most
    assert context <= table.kv_tokens
    assert table.seconds4(1, 0.5, 0, 0) * 1e3 <= ttft_ms
    assert table.seconds4(0, 0.0, 1, 1) * 1e3 <= tpot_ms
    assert found.topology is Topology.AGGREGATED
