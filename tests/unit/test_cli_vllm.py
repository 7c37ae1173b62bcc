"""`paceline up` on vLLM without a GPU: which vLLM, what the model takes, and the command of each engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paceline_cli import machine, up
from paceline_cli.layout import Layout, lay_out
from paceline_cli.on_cpu import CPU, LEAST_KV_BYTES, UNKNOWN_KV_BYTES, make_cpu, shrink
from paceline_cli.vllm_here import ModelFolder, NotHere, Program, clip_context, find_program, read_model
from paceline_planner.plan import Plan

EXAMPLES = Path(__file__).parents[2] / "examples"
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "vocab_size": 49152,
}
KV_BYTES_PER_TOKEN = 30 * 3 * 64 * 2 * 2


def make_model(folder: Path, config: object = SMOLLM2) -> str:
    path = folder / "model"
    path.mkdir()
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return f"file://{path}"


def make_environment(folder: Path, version: str = "0.32.0+cpu") -> Path:
    """A virtual environment as far as anyone looks at it; the folder of its programs."""
    (folder / f"lib/python3.11/site-packages/vllm-{version}.dist-info").mkdir(parents=True)
    program = folder / "bin/vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return program.parent


def make_script(folder: Path, text: str) -> Path:
    script = folder / "build.sh"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return script


@pytest.mark.parametrize(
    ("version", "for_cpu"), [("0.32.0+cpu", True), ("0.32.0", False)], ids=["a build for CPUs", "a build for GPUs"]
)
def test_the_program_on_the_path_comes_first(version: str, for_cpu: bool, tmp_path: Path) -> None:
    programs = make_environment(tmp_path / "own", version)
    script = make_script(tmp_path, "exit 9")
    assert find_program({"PATH": str(programs)}, script) == Program(programs / "vllm", for_cpu)


def test_that_of_make_vllm_comes_next_with_its_models(tmp_path: Path) -> None:
    script = make_script(tmp_path, '[ "$1" = where ] && echo /cache/vllm/x && echo /cache/models/y')
    found = find_program({"PATH": "/no/folder"}, script)
    assert found == Program(Path("/cache/vllm/x/bin/vllm"), for_cpu=True, models=Path("/cache/models/y"))


@pytest.mark.parametrize("script", ["exit 1", None], ids=["not made yet", "no checkout"])
def test_where_there_is_none_all_remedies_are_named(script: str | None, tmp_path: Path) -> None:
    make = make_script(tmp_path, script) if script else tmp_path / "build.sh"
    with pytest.raises(NotHere, match=r"`make vllm`.*install vLLM, or add --engine simulated"):
        find_program({"PATH": "/no/folder"}, make)


def test_a_model_s_context_and_tokens_are_those_of_its_configuration(tmp_path: Path) -> None:
    model = read_model(make_model(tmp_path))
    assert (model.name, model.context_tokens, model.kv_bytes_per_token) == ("model", 8192, KV_BYTES_PER_TOKEN)


def test_of_an_unknown_family_the_context_counts_all_the_same(tmp_path: Path) -> None:
    model = read_model(make_model(tmp_path, {"model_type": "mamba", "max_position_embeddings": 512}))
    assert (model.context_tokens, model.kv_bytes_per_token) == (512, None)


@pytest.mark.parametrize(
    ("config", "text"), [("{", "is no JSON"), ("[]", "holds no object")], ids=["torn", "not an object"]
)
def test_a_configuration_that_cannot_be_read(config: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(NotHere, match=f"{text}.*; name a folder as Hugging Face has it"):
        read_model(make_model(tmp_path, config))


def run_up(monkeypatch: pytest.MonkeyPatch, programs: Path, *flags: str) -> tuple[int, list[Layout]]:
    """Exit code of `paceline up` that stops short of starting anything, and what it would have started."""
    layouts: list[Layout] = []

    def serve(layout: Layout, *_: Any) -> int:
        layouts.append(layout)
        return 0

    from paceline_cli.__main__ import main

    monkeypatch.setattr(up, "_serve", serve)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    return main(["up", "--port", "0", "--engine", "vllm", *flags]), layouts


def test_an_example_becomes_1p1d_on_the_cpu_and_what_is_cut_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    programs, model = make_environment(tmp_path / "env"), make_model(tmp_path)
    code, (layout,) = run_up(monkeypatch, programs, str(EXAMPLES / "chat.yaml"), "--model", model)
    assert code == 0
    each = "each computes with OMP_NUM_THREADS=1 and has 720 MiB for KV"
    assert capsys.readouterr().err.splitlines() == [
        "paceline up: context: 8192 tokens, all that model takes; the file asks for 16384",
        f"paceline up: this vLLM runs on the CPU: replicas prefill 1 of 2, decode 1 of 1; {each}",
    ]
    assert [engine.command.name for engine in layout.engines] == ["prefill-0", "decode-0"]
    assert layout.config.max_context_tokens == 8192
    assert dict(layout.facts)["gpus"] == 0
    for engine in layout.engines:
        assert str(tmp_path / "model") in engine.command.argv
        assert {"--max-model-len=8192", "--enforce-eager"} <= set(engine.command.argv)
        assert any(word.startswith("--kv-transfer-config=") for word in engine.command.argv)
        assert engine.command.env["PATH"].split(":")[0] == str(programs)
        assert engine.command.env["OMP_NUM_THREADS"] == "1"
        assert engine.command.env["CUDA_VISIBLE_DEVICES"] == ""
        assert engine.command.env["TORCHDYNAMO_DISABLE"] == "1"
    assert len({engine.command.env["VLLM_NIXL_SIDE_CHANNEL_PORT"] for engine in layout.engines}) == 2


def test_a_short_context_is_left_as_the_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model(tmp_path, SMOLLM2 | {"max_position_embeddings": 32768})
    flags = (str(EXAMPLES / "mixed.yaml"), "--model", model, "--router-policy", "round-robin")
    _, (layout,) = run_up(monkeypatch, make_environment(tmp_path / "env"), *flags)
    assert (layout.config.max_context_tokens, layout.config.policy) == (16384, "round-robin")
    assert "context" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uri", "code", "text"),
    [
        (
            "hf://Qwen/Qwen3-8B",
            2,
            "hf://Qwen/Qwen3-8B is for GPUs; name a small one with --model file:///DIR",
        ),
        ("file:///no/such/folder", 2, "/no/such/folder/config.json: No such file or directory; name a folder as"),
    ],
    ids=["a model of the hub", "a folder that is not there"],
)
def test_a_model_that_cannot_run_here(
    uri: str, code: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(EXAMPLES / "mixed.yaml")
    assert run_up(monkeypatch, make_environment(tmp_path / "env"), file, "--model", uri) == (code, [])
    (told,) = capsys.readouterr().err.splitlines()
    assert text in told


def make_plan() -> Plan:
    return up.make_plan(up.read_service(str(EXAMPLES / "chat.yaml"), None, None), "chat.yaml")


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        pytest.param(1, 1, id="one core is shared"),
        pytest.param(2, 1, id="two engines on two cores"),
        pytest.param(5, 2, id="a core is left to the servers"),
        pytest.param(16, 7, id="the rest is shared out"),
    ],
)
def test_threads(cores: int, threads: int) -> None:
    assert make_cpu(shrink(make_plan()), cores, 4096, 1024, "").threads == threads


@pytest.mark.parametrize(
    ("context", "per_token", "kv_bytes"),
    [
        pytest.param(8192, KV_BYTES_PER_TOKEN, 4 * 8192 * KV_BYTES_PER_TOKEN, id="four whole contexts"),
        pytest.param(8192, 2048, LEAST_KV_BYTES, id="a tiny model has the least"),
        pytest.param(8192, None, UNKNOWN_KV_BYTES, id="a model of unknown size"),
    ],
)
def test_kv_space(context: int, per_token: int | None, kv_bytes: int) -> None:
    assert make_cpu(shrink(make_plan()), 2, context, per_token, "").kv_bytes == kv_bytes


def test_a_hint_is_clipped_with_the_context() -> None:
    service = up.read_service(str(EXAMPLES / "chat.yaml"))
    assert service.spec.workload is not None
    longest = service.spec.workload.prompt_tokens.p90
    spec = clip_context(service, ModelFolder("tiny", longest // 2, None)).spec
    assert spec.workload is not None
    assert (spec.model.max_context_tokens, spec.workload.prompt_tokens.p90) == (longest // 2, longest // 2)
    assert clip_context(service, ModelFolder("long", 1 << 20, None)) is service


def test_the_file_s_own_flags_come_last_where_they_override(tmp_path: Path) -> None:
    service = up.read_service(str(EXAMPLES / "chat.yaml"), "vllm", make_model(tmp_path))
    engine = service.spec.engine.model_copy(update={"extra_args": ("--max-num-seqs=4",)})
    service = service.model_copy(update={"spec": service.spec.model_copy(update={"engine": engine})})
    plan = shrink(up.make_plan(service, "chat.yaml"))
    layout = lay_out(service, plan, "127.0.0.1", 8000, range(9000, 9010), cpu=CPU(1, 1 << 28, "/bin"))
    for one in layout.engines:
        assert one.command.argv[-1] == "--max-num-seqs=4"
        assert one.command.argv[-4:-1] == CPU(1, 1 << 28, "/bin").flags


def test_a_pool_that_is_off_stays_off() -> None:
    plan = make_plan()
    off = shrink(replace(plan, pools=tuple(replace(pool, replicas=0, tensor=2, pipeline=2) for pool in plan.pools)))
    assert [pool.replicas for pool in off.pools] == [0, 0]
    assert {(pool.tensor, pool.pipeline, pool.table) for pool in off.pools} == {(1, 1, "")}


def test_a_gpu_build_takes_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs, model = make_environment(tmp_path / "env", "0.32.0"), make_model(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    _, (layout,) = run_up(monkeypatch, programs, str(EXAMPLES / "chat.yaml"), "--model", model)
    assert [engine.command.env["CUDA_VISIBLE_DEVICES"] for engine in layout.engines] == ["0", "1", "2"]
    assert not any("--enforce-eager" in engine.command.argv for engine in layout.engines)


def test_nothing_is_asked_of_the_machine_for_simulated_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_program", pytest.fail)
    service = up.read_service(str(EXAMPLES / "chat.yaml"), None, "file:///no/such/llama")
    assert machine.fit_model(service) == (service, None)
    assert machine.check_machine(service, 2.0) is None
