"""An LLMService file: what is accepted, and for everything else a path, a line, a cause and what to change."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories_api import make_class, make_manifest, make_model, make_pool, make_service, to_yaml
from file_problems import lines, problems, without
from hypothesis import given
from hypothesis import strategies as st
from paceline_api.v1alpha1 import Runtime
from paceline_api.validate import InvalidFile, load_service, parse_service

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
DESIGN_EXAMPLE = """
apiVersion: paceline.dev/v1alpha1
kind: LLMService
metadata: {name: chat}
spec:
  model: {uri: "hf://Qwen/Qwen3-8B", revision: "", servedName: qwen3-8b, maxContextTokens: 16384,
          tokenSecret: {name: hf, key: HF_TOKEN}, cache: {claimName: models}}
  slo:
    defaultClass: interactive
    classes:
    - {name: interactive, ttftMs: 400, tpotMs: 40, attainmentPercent: 95}
    - {name: batch, ttftMs: 30000, tpotMs: 250, attainmentPercent: "99.9"}
  topology: Auto
  workload: {requestsPerSecond: "8", promptTokens: {mean: 1155, p90: 2734}, outputTokens: {mean: 211, p90: 424}}
  maxGPUs: 16
  pools:
  - {name: prefill, role: Prefill, minReplicas: 1, maxReplicas: 8, accelerator: h100-sxm,
     parallelism: {tensor: 1, pipeline: 1}}
  - {name: decode, role: Decode, minReplicas: 1, maxReplicas: 8, accelerator: h100-sxm,
     podTemplate: {spec: {priorityClassName: high, containers: [{name: engine, env: [{name: A, value: b}]}]}}}
  engine: {runtime: VLLM, image: "", extraArgs: [], tokenBudget: Auto, startupTimeoutSeconds: 1800,
           drainTimeoutSeconds: 300, kvTransfer: {connector: Nixl, timeoutMs: 5000, onFailure: Recompute}}
  router: {replicas: 2}
  autoscaling: {mode: Enabled, scaleDownStabilizationSeconds: 300}
"""


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_are_valid(path: Path) -> None:
    service = load_service(path)
    assert service.name == path.stem
    assert service.spec.engine.runtime is Runtime.SIMULATED
    assert path.read_text().startswith("# Shows ")


def test_there_are_examples() -> None:
    stems = {p.stem for p in EXAMPLES}
    assert stems >= {"chat", "code", "summarisation", "mixed", "azure-aggregated", "azure-disaggregated"}


def test_the_example_of_the_design_is_valid() -> None:
    service = parse_service(DESIGN_EXAMPLE)
    assert service.spec.pools[1].pod_template is not None
    assert service.slo_classes()["batch"].target_ratio == 0.999


def test_defaults_of_the_schema_and_of_the_models_agree() -> None:
    assert parse_service(to_yaml(make_manifest())) == make_service()


ABOUT_GPUS = "(Most GPUs over all pools)"
ABOUT_POOLS = "(Engine replicas by role and accelerator; a topology uses the pools of its roles)"
PERCENT = r"^(100(\.0{1,3})?|[1-9][0-9]?(\.[0-9]{1,3})?)$"
ABOUT_NAME = "(The EnginePool is called <service>-<pool>)"
VALUES = [
    pytest.param(
        {"topology": "disagregated"},
        "spec.topology",
        "is 'disagregated'",
        "write one of Auto, Disaggregated, Aggregated; did you mean Disaggregated?",
        id="an enum nearly right",
    ),
    pytest.param(
        {"topology": "x"}, "spec.topology", "is 'x'", "write one of Auto, Disaggregated, Aggregated", id="an enum"
    ),
    pytest.param(
        {"topology": True},
        "spec.topology",
        "is True",
        "write a string (Separate prefill and decode pools, one mixed pool, or what the plan finds)",
        id="a boolean for a word",
    ),
    pytest.param({"maxGPUs": 0}, "spec.maxGPUs", "is 0, below 1", f"write at least 1 {ABOUT_GPUS}", id="low"),
    pytest.param(
        {"maxGPUs": 10**9},
        "spec.maxGPUs",
        "is 1000000000, above 100000",
        f"write at most 100000 {ABOUT_GPUS}",
        id="high",
    ),
    pytest.param(
        {"maxGPUs": 2.0}, "spec.maxGPUs", "is the float 2.0", f"write an integer {ABOUT_GPUS}", id="a whole float"
    ),
    pytest.param({"maxGPUs": "2"}, "spec.maxGPUs", "is '2'", f"write an integer {ABOUT_GPUS}", id="quoted"),
    pytest.param(
        {"maxGPUs": None},
        "spec.maxGPUs",
        "is empty",
        f"give it a value {ABOUT_GPUS}, or remove the line",
        id="an empty field",
    ),
    pytest.param({"pools": []}, "spec.pools", "is empty", f"write at least 1 {ABOUT_POOLS}", id="an empty list"),
    pytest.param({"pools": "x"}, "spec.pools", "is 'x'", f"write a list {ABOUT_POOLS}", id="a word for a list"),
    pytest.param({"pools": ["x"]}, "spec.pools[0]", "is 'x'", "write a mapping", id="a word for a mapping"),
    pytest.param(
        {"pools": [make_pool(f"p{i}") for i in range(9)]},
        "spec.pools",
        "has 9 entries",
        f"write at most 8 {ABOUT_POOLS}",
        id="too many",
    ),
    pytest.param(
        {"pools": [make_pool("p" * 21)]},
        "spec.pools[0].name",
        "has 21 characters",
        f"write at most 20 {ABOUT_NAME}",
        id="too long",
    ),
    pytest.param(
        {"pools": [make_pool("P")]},
        "spec.pools[0].name",
        "is 'P'",
        f"write what matches ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ {ABOUT_NAME}",
        id="a pattern",
    ),
    pytest.param(
        {"pools": [make_pool("p\n")]},
        "spec.pools[0].name",
        "is 'p\\n'",
        f"write what matches ^[a-z0-9]([-a-z0-9]*[a-z0-9])?$ {ABOUT_NAME}",
        id="a line break",
    ),
    pytest.param(
        {"pools": [make_pool(), make_pool()]},
        "spec.pools[1].name",
        "is 'mixed', as in spec.pools[0]",
        "give each its own name",
        id="a name twice",
    ),
    pytest.param(
        {"slo": {"classes": [make_class(attainmentPercent=99.9)]}},
        "spec.slo.classes[0].attainmentPercent",
        "is the float 99.9",
        'write "99.9" in quotes',
        id="a float for a decimal",
    ),
    pytest.param(
        {"slo": {"classes": [make_class(attainmentPercent="0.95")]}},
        "spec.slo.classes[0].attainmentPercent",
        "is '0.95'",
        f'write what matches {PERCENT} (Share of requests that must meet both limits, in percent: 95 or "99.9")',
        id="a ratio for a percentage",
    ),
    pytest.param(
        {"slo": {"classes": [make_class(maxStallMs=1)]}},
        "spec.slo.classes[0].maxStallMs",
        "maxStallMs is below tpotMs",
        "raise it, or remove it for the default of 3 × tpotMs",
        id="a rule in a list",
    ),
    pytest.param(
        {"engine": {"tokenBudget": "auto"}},
        "spec.engine.tokenBudget",
        "is 'auto'",
        "write what matches ^Auto$ (Most tokens that one engine step may compute; Auto: the plan chooses)",
        id="an int or one word",
    ),
    pytest.param({"topolgy": "Auto"}, "spec.topolgy", "is no field here", "did you mean topology?", id="a typo"),
    pytest.param({"maxgpus": 3}, "spec.maxgpus", "is no field here", "did you mean maxGPUs?", id="a case mistake"),
    pytest.param(
        {"router": {"zzz": 1}},
        "spec.router.zzz",
        "is no field here",
        "remove it; there are replicas, policy, localPrefill, waitingRoom, apiKeys, tls, tracing",
        id="a field of nothing",
    ),
    pytest.param(
        {"model": make_model(uri="file:///models/x")},
        "spec.model.uri",
        "file:// works only with `paceline up`",
        "put the weights on a volume and use pvc://CLAIM/PATH",
        id="file:// for a cluster",
    ),
]


@pytest.mark.parametrize(("spec", "path", "cause", "fix"), VALUES)
def test_one_wrong_value_is_one_problem(spec: dict[str, Any], path: str, cause: str, fix: str) -> None:
    assert lines(**spec) == [f"{path}: {cause}; {fix}"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        pytest.param("", "file: is empty; write one document with kind: LLMService", id="empty"),
        pytest.param(
            "# nothing\n---\n", "file: is empty; write one document with kind: LLMService", id="comments only"
        ),
        pytest.param(
            to_yaml(make_manifest()) + "---\n" + to_yaml(make_manifest()),
            "file: has 2 LLMServices (lines 1, 23); put each into a file of its own",
            id="two services",
        ),
        pytest.param(
            "kind: Secret\n---\nkind: Namespace\n",
            "file: has 2 documents, none of kind LLMService; write one document with kind: LLMService",
            id="other kinds only",
        ),
        pytest.param(
            "- kind: LLMService\n",
            "file: has 1 documents, none of kind LLMService; write one document with kind: LLMService",
            id="a list",
        ),
        pytest.param(without("kind"), "kind: is missing; add kind: LLMService", id="no kind"),
        pytest.param(
            to_yaml(make_manifest() | {"kind": "LLMServce"}), "kind: is 'LLMServce'; write kind: LLMService", id="kind"
        ),
        pytest.param(
            to_yaml(make_manifest() | {"apiVersion": "v1"}),
            "apiVersion: is 'v1'; write apiVersion: paceline.dev/v1alpha1",
            id="apiVersion",
        ),
        pytest.param(
            without("metadata.name"),
            "metadata.name: is missing; add it: at most 30 characters, a DNS label that begins with a letter",
            id="no name",
        ),
        pytest.param(without("metadata"), "metadata: is missing; add it", id="no metadata"),
        pytest.param(
            to_yaml(make_manifest("a" * 31)),
            "metadata.name: has 31 characters; write at most 30 "
            "(At most 30 characters, a DNS label that begins with a letter)",
            id="a long name",
        ),
        pytest.param(
            to_yaml(make_manifest("7b-chat")),
            "metadata.name: is '7b-chat'; write what matches ^[a-z]([-a-z0-9]*[a-z0-9])?$ "
            "(At most 30 characters, a DNS label that begins with a letter)",
            id="a name that no Service can have",
        ),
        pytest.param(
            to_yaml(make_manifest() | {"metadata": {"name": "chat", "lables": {}}}),
            "metadata.lables: is no field here; did you mean labels?",
            id="a typo in metadata",
        ),
        pytest.param(without("spec"), "spec: is missing; add it: What is wanted.", id="no spec"),
        pytest.param(without("spec.model"), "spec.model: is missing; add it: What is served.", id="no model"),
        pytest.param(
            without("spec.model.uri"),
            "spec.model.uri: is missing; add it: Where the weights are: hf://ORG/NAME, pvc://CLAIM/PATH; file:///PATH "
            "only with `paceline up`.",
            id="no uri",
        ),
    ],
)
def test_one_wrong_file_is_one_problem(text: str, line: str) -> None:
    assert [str(p) for p in problems(text)] == [line]


def test_all_problems_come_at_once_in_the_order_of_the_file() -> None:
    text = to_yaml(
        make_manifest(
            "Chat",
            slo={"classes": [make_class(), make_class("batch", ttftMs=0)]},
            pools=[make_pool(minReplicas=9), make_pool("decode", "Decod", replicas=1)],
            maxGPUs=1,
            rooter={},
        )
    )
    found = problems(text)
    assert [p.path for p in found] == [
        "metadata.name",
        "spec.slo.defaultClass",
        "spec.slo.classes[1].ttftMs",
        "spec.pools[0].minReplicas",
        "spec.pools[1].role",
        "spec.maxGPUs",
        "spec.rooter",
    ]
    assert all(p.line for p in found)
    with pytest.raises(InvalidFile) as e:
        parse_service(text, "chat.yaml")
    assert str(e.value).splitlines()[0] == f"chat.yaml:4: {found[0]}"


def test_a_misspelt_field_is_not_reported_missing_again() -> None:
    pool = make_pool()
    pool["maxReplica"] = pool.pop("maxReplicas")
    pool["rol"] = pool.pop("role")
    assert sorted(lines(pools=[pool])) == [
        "spec.pools[0].maxReplica: is no field here; did you mean maxReplicas?",
        "spec.pools[0].rol: is no field here; did you mean role?",
    ]


def test_file_models_are_permitted_locally() -> None:
    text = to_yaml(make_manifest(model=make_model(uri="file:///models/x")))
    assert parse_service(text, local=True).served_name == "/models/x"
    relative = to_yaml(make_manifest(model=make_model(uri="file://models/x")))
    assert [p.path for p in problems(relative, local=True)] == ["spec.model.uri"]


WRONG = st.sampled_from([None, True, -1, 0, 2.5, "", "x", "hf://a/b", [], ["x"], {}, {"name": "x"}, "1", 10**12])
LEAVES = st.sampled_from(
    [
        *("model", "model.uri", "model.maxContextTokens", "model.cache", "slo", "slo.classes", "slo.defaultClass"),
        *("slo.classes.0", "slo.classes.0.name", "slo.classes.0.tpotMs", "slo.classes.0.attainmentPercent"),
        *(
            "topology",
            "workload",
            "workload.promptTokens",
            "maxGPUs",
            "pools",
            "pools.0",
            "pools.0.name",
            "pools.0.role",
        ),
        *("pools.0.replicas", "pools.0.parallelism", "pools.0.podTemplate", "engine", "engine.extraArgs"),
        *("engine.tokenBudget", "engine.kvTransfer", "router.replicas", "autoscaling"),
    ]
)


@given(st.dictionaries(LEAVES, WRONG, max_size=4))
def test_any_file_parses_or_says_why(changes: dict[str, Any]) -> None:
    """No crash, and whatever the CRD's schema and rules admit, the models parse."""
    manifest = make_manifest()
    for path, value in changes.items():
        node: Any = manifest["spec"]
        *parents, last = path.split(".")
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else node[0] if isinstance(node, list) and node else None
        if isinstance(node, dict):
            node[last] = copy.deepcopy(value)
        elif isinstance(node, list) and node:
            node[0] = copy.deepcopy(value)
    assert [str(p) for p in problems(to_yaml(manifest)) if p.fix == "change the value"] == []


def test_importing_costs_no_cel() -> None:
    program = "import sys, paceline_api.validate; sys.exit('celpy' in sys.modules or 'jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
