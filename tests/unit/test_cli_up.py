"""`paceline up` before it starts anything: bad files, bad flags, a port in use; and the other small commands."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from paceline_api.v1alpha1 import RouterPolicy, Runtime
from paceline_cli import machine, up
from paceline_cli.__main__ import main
from paceline_planner.plan import Plan, plan


def make_file(folder: Path, **spec: Any) -> str:
    """An LLMService file with a simulated pool; a key of the spec that is None is left out."""
    base = {
        "model": {"uri": "hf://facebook/opt-13b", "maxContextTokens": 2048},
        "slo": {"classes": [{"name": "interactive", "ttftMs": 400, "tpotMs": 40}]},
        "engine": {"runtime": "Simulated"},
        "pools": [{"name": "mixed", "role": "Mixed", "replicas": 1, "accelerator": "a100-sxm-80gb"}],
    }
    value = {"apiVersion": "paceline.dev/v1alpha1", "kind": "LLMService", "metadata": {"name": "chat"}}
    path = folder / "chat.yaml"
    path.write_text(yaml.safe_dump(value | {"spec": {k: v for k, v in (base | spec).items() if v is not None}}))
    return str(path)


def mixed(**over: Any) -> dict[str, Any]:
    return {"name": "mixed", "role": "Mixed", "accelerator": "a100-sxm-80gb"} | over


@pytest.fixture
def taken() -> Iterator[int]:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        yield other.getsockname()[1]


BAD_FILES = [
    ("unknown fields, each with the field that was meant", {"topologie": "Auto", "maxGpus": 4},
     ["spec.topologie: is no field here; did you mean topology?", "spec.maxGpus: is no field here; did you mean max"]),
    ("contradictory bounds", {"pools": [mixed(minReplicas=3, maxReplicas=2)]},
     ["spec.pools[0].minReplicas: minReplicas is above maxReplicas; lower minReplicas"]),
    ("a model without a table", {"model": {"uri": "hf://acme/rocket-7b", "maxContextTokens": 2048}},
     ["spec.model.uri: no step-time table for hf://acme/rocket-7b on a100-sxm-80gb; there are: llama-2-13b"]),
    ("an unknown accelerator", {"pools": [mixed(replicas=1, accelerator="h900")]},
     ["spec.pools[0].accelerator: no accelerator 'h900'; there are: a100-sxm-80gb"]),
    ("an objective below one lone request", {"slo": {"classes": [{"name": "a", "ttftMs": 1, "tpotMs": 1}]}},
     ["spec.slo.classes[0].ttftMs: class a: TTFT 1 ms", "spec.slo.classes[0].tpotMs: class a: TPOT 1 ms"]),
    ("pools that are all empty", {"pools": [mixed(replicas=0)]},
     ["spec.pools: no replica of role Mixed, so nothing is served; raise replicas to 1"]),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "lines"), [pytest.param(*case[1:], id=case[0]) for case in BAD_FILES])
def test_bad_files(spec: dict[str, Any], lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["up", make_file(tmp_path, **spec)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == len(lines)
    for text in lines:
        assert any(text in one for one in told), told
    assert all(one.startswith(f"paceline up: {tmp_path}") for one in told)


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        pytest.param(["nothing.yaml"], 2, "nothing.yaml: file: cannot be read", id="no such file"),
        pytest.param(
            ["FILE", "--model", "opt-13b"],
            2,
            "with the flags: spec.model.uri: uri has no known scheme; begin it with hf://",
            id="a model that is no URI",
        ),
        pytest.param(["FILE", "--model", "hf://acme/rocket"], 2, "no step-time table", id="a model without a table"),
        pytest.param(["FILE", "--host", "no.such.host.invalid"], 1, "choose another --host", id="a host that is none"),
        pytest.param(["FILE", "--url-file", "no/folder/url"], 1, "--url-file no/folder/url cannot", id="no url file"),
        pytest.param(["FILE", "--log", "no/folder/log"], 1, "--log no/folder/log cannot be written", id="no log"),
        pytest.param(
            ["FILE", "--engine", "vllm", "--time-scale", "2"], 2, "--time-scale is for simulated", id="real time scaled"
        ),
        pytest.param(["FILE", "--engine", "vllm"], 1, "vllm is not installed here", id="vLLM that is not there"),
    ],
)
def test_bad_flags(
    flags: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("paceline_cli.vllm_here.MAKE", tmp_path / "no checkout")
    flags = [make_file(tmp_path) if flag == "FILE" else flag for flag in flags]
    assert main(["up", *flags, *([] if "--host" in flags else ["--port", "0"])]) == code
    (told,) = capsys.readouterr().err.splitlines()
    assert text in told


@pytest.mark.parametrize("flags", [["--port", "70000"], ["--port", "-1"], ["--time-scale", "0"], ["--time-scale", "x"]])
def test_flags_that_are_out_of_range(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["up", "chat.yaml", *flags])
    assert "give" in capsys.readouterr().err


def test_a_port_in_use_is_told_before_an_engine_starts(
    taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_serve", pytest.fail)
    assert main(["up", make_file(tmp_path), "--port", str(taken)]) == 1
    assert f"port {taken} of 127.0.0.1 is in use; stop what listens there" in capsys.readouterr().err


def test_the_flags_replace_runtime_and_model_and_what_belongs_to_that_model(tmp_path: Path) -> None:
    own = {"uri": "hf://facebook/opt-13b", "servedName": "m", "maxContextTokens": 2048, "revision": "main"}
    file = make_file(tmp_path, model=own | {"tokenSecret": {"name": "hf"}}, engine={"tokenBudget": 512})
    service = up.read_service(file, "simulated", "file:///models/opt-13b")
    model, engine = service.spec.model, service.spec.engine
    assert (model.uri, model.revision, model.token_secret) == ("file:///models/opt-13b", "", None)
    assert (service.served_name, model.max_context_tokens) == ("m", 2048)
    assert (engine.runtime, engine.token_budget) == (Runtime.SIMULATED, 512)
    assert isinstance(plan(service), Plan)


def test_the_flag_replaces_the_routers_policy_and_nothing_else_of_theirs(tmp_path: Path) -> None:
    file = make_file(tmp_path, router={"replicas": 3, "policy": "Random"})
    router = up.read_service(file, router_policy="round-robin").spec.router
    assert (router.policy, router.replicas) == (RouterPolicy.ROUND_ROBIN, 3)
    with pytest.raises(machine.CannotRun, match="localPrefill needs predictions"):
        up.read_service(make_file(tmp_path, router={"localPrefill": "Enabled"}), router_policy="round-robin")


def test_the_flags_of_another_runtime_are_left_out(tmp_path: Path) -> None:
    file = make_file(tmp_path, engine={"runtime": "Simulated", "extraArgs": ["--noise=0"], "tokenBudget": 512})
    other, same = (up.read_service(file, name, None).spec.engine for name in ("vllm", "simulated"))
    assert (other.extra_args, other.token_budget) == ((), 512)
    assert same.extra_args == ("--noise=0",)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, ["0", "1"]), ("4,5,6", ["4", "5", "6"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])],
    ids=["by number", "the visible ones", "by name"],
)
def test_devices(visible: str | None, devices: list[str], tmp_path: Path) -> None:
    service = up.read_service(make_file(tmp_path, pools=[mixed(replicas=2)]), "vllm", None)
    assert machine.choose_devices(service, up.make_plan(service, "f"), visible) == devices


def test_too_few_devices_are_told(tmp_path: Path) -> None:
    service = up.read_service(make_file(tmp_path, pools=[mixed(replicas=2)]), "vllm", None)
    with pytest.raises(machine.CannotRun, match="needs 2 GPUs and CUDA_VISIBLE_DEVICES names 1; name more"):
        machine.choose_devices(service, up.make_plan(service, "f"), "3")


def test_free_ports_are_free_and_different() -> None:
    ports = machine.free_ports(16)
    assert len(set(ports)) == 16
    assert [machine.claim_port("127.0.0.1", port) for port in ports] == ports


def test_crds_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crds"]) == 0
    names = [crd["metadata"]["name"] for crd in yaml.safe_load_all(capsys.readouterr().out)]
    assert names == ["llmservices.paceline.dev", "enginepools.paceline.dev"]


def test_help_and_version_import_no_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.import_module", pytest.fail)
    for flag, text in (("--help", "replay"), ("--version", "paceline 0.")):
        with pytest.raises(SystemExit, match="0"):
            main([flag])
        assert text in capsys.readouterr().out


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["paceline_cli.up"], "run", interrupt)
    assert main(["up", "chat.yaml"]) == 130


def test_what_needs_a_cluster_is_said_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    router = {"apiKeys": {"secretName": "a"}, "tls": {"secretName": "b"}}
    service = up.read_service(make_file(tmp_path, router=router))
    machine.say_left_out(service, None)
    told = capsys.readouterr().err.splitlines()
    lines = [f"paceline up: router.{name}" for name in ("apiKeys", "tls")]
    assert [line.partition(": left out")[0] for line in told] == lines
    machine.say_left_out(service, tmp_path)
    assert "apiKeys" not in capsys.readouterr().err


def test_a_folder_without_a_key_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").mkdir()
    assert main(["up", make_file(tmp_path), "--api-keys-dir", str(tmp_path / "keys")]) == 2
    assert "keys: there is no API key; add one" in capsys.readouterr().err
